//! What the user asked for, and what it is asked of.

use std::{io::IsTerminal, path::PathBuf};

use clap::ValueEnum;
use jiff::tz::TimeZone;

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Where and how to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputOptions {
    /// JSON lines on standard output instead of text.
    pub json: bool,
    /// Also JSON lines to this file.
    pub file: Option<PathBuf>,
    /// Most bytes of JSON, for the file and for standard output each.
    pub max_size: Option<u64>,
    /// Colours.
    pub color: Color,
    /// 1: no header and no notices; 2: totals only.
    pub quiet: u8,
    /// More for people.
    pub verbose: u8,
}

/// What the output is written to, and where its reader lives.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Standard output is a terminal.
    pub stdout_terminal: bool,
    /// Standard error is a terminal.
    pub stderr_terminal: bool,
    /// The environment asks for no colours.
    pub no_color: bool,
    /// Time zone of times in text.
    pub time_zone: TimeZone,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn read() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Self {
            stdout_terminal: std::io::stdout().is_terminal(),
            stderr_terminal: std::io::stderr().is_terminal(),
            no_color: set("NO_COLOR")
                || std::env::var_os("TERM").is_some_and(|term| term == "dumb"),
            time_zone: TimeZone::system(),
        }
    }

    /// Whether to colour what goes to a place that is a terminal or not.
    pub(super) fn colors(&self, wanted: Color, terminal: bool) -> bool {
        match wanted {
            Color::Auto => terminal && !self.no_color,
            Color::Always => true,
            Color::Never => false,
        }
    }
}
