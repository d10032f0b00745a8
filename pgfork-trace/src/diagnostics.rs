//! Diagnostics for `-v`: what aya and the kernel side log, on standard error.

use std::io::Write as _;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::output::escape;

struct Stderr;

static STDERR: Stderr = Stderr;

impl Log for Stderr {
    /// The loader's own steps are for those who debug the loader.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.target().starts_with("aya")
            || log::max_level() == LevelFilter::Trace
            || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        // Diagnostics that cannot be written are not worth a word.
        let _ = writeln!(
            std::io::stderr(),
            "{}: {}",
            record.level().as_str().to_lowercase(),
            escape::sentence(&text)
        );
    }

    fn flush(&self) {}
}

/// Sends diagnostics to standard error: with one `-v` up to debug, with two everything.
pub fn to_stderr(verbose: u8) {
    // Only a second call can fail, and then the first one holds.
    let _ = log::set_logger(&STDERR);
    log::set_max_level(if verbose > 1 {
        LevelFilter::Trace
    } else {
        LevelFilter::Debug
    });
}
