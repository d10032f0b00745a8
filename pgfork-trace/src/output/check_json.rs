//! `check` as JSON: one document on one line.

use std::{io, path::Path};

use schemars::generate::SchemaSettings;

use super::{
    file::{Created, LineWriter, OpenError},
    json,
};
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

/// A file of documents, one a line.
pub struct CheckFile {
    lines: LineWriter,
    created: Created,
}

impl CheckFile {
    /// Creates it: never an existing one, never through a symbolic link, for its owner only.
    ///
    /// # Errors
    /// When it exists or cannot be created.
    pub fn create(path: &Path) -> Result<Self, OpenError> {
        let (file, created) = Created::new(path)?;
        Ok(Self {
            lines: LineWriter::new(Box::new(file)),
            created,
        })
    }

    /// Appends a report, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, report: &Report) -> io::Result<()> {
        self.lines.write(&check_document(report))
    }
}

impl Drop for CheckFile {
    fn drop(&mut self) {
        if self.lines.written() == 0 {
            self.created.remove_empty();
        }
    }
}
