//! What users and programs read: text, JSON lines, and the file they are kept in.
//!
//! [`Line`] is what there is to say; [`Reporter`] says it, in the forms and to
//! the places that [`OutputOptions`] ask for. Nothing here decides or reads the
//! kernel.

mod check_history;
mod check_json;
mod check_prometheus;
mod check_table;
mod check_text;
pub mod escape;
mod file;
mod fold;
mod json;
pub mod line;
mod options;
mod reporter;
#[cfg(test)]
pub(crate) mod samples;
mod selftest;
mod text;
pub mod units;

pub use check_json::{CheckFile, check_document, check_schema};
pub use check_prometheus::{check_metrics, write_failed_metrics, write_metrics};
pub use check_text::{check_text, watch_text};
pub use file::OpenError;
pub use json::schema;
pub use line::Line;
pub use options::{Color, OutputOptions, Surroundings};
pub use reporter::{Closed, Reporter};
pub use selftest::{selftest_document, selftest_schema, selftest_summary, selftest_text};
