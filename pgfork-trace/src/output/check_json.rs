//! `check` as JSON: one document on one line.

use schemars::generate::SchemaSettings;

use super::json;
use crate::check::Report;

/// The JSON schema of the document.
#[must_use]
pub fn check_schema() -> serde_json::Value {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Report>()
        .to_value()
}

/// The document, with its line feed; characters that act on a terminal are escaped.
#[must_use]
pub fn check_document(report: &Report) -> Vec<u8> {
    json::document(report)
}
