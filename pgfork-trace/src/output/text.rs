//! Lines as text for people.

use jiff::{Timestamp, tz::TimeZone};

use super::Line;

/// How text is written.
#[derive(Clone, Debug)]
pub(super) struct TextOptions {
    /// With colours.
    pub(super) color: bool,
    /// Time zone of times.
    pub(super) time_zone: TimeZone,
    /// 1: no header and no notices; 2: totals only.
    pub(super) quiet: u8,
    /// More.
    pub(super) verbose: u8,
    /// With refusals; else header, notices and totals only.
    pub(super) details: bool,
}

pub(super) struct Text {
    options: TextOptions,
}

impl Text {
    pub(super) fn new(options: TextOptions) -> Self {
        Self { options }
    }

    pub(super) fn line(&mut self, _time: Timestamp, line: &Line) -> String {
        format!("{line:?} {:?}\n", self.options)
    }

    pub(super) fn tick(&mut self, _now: Timestamp) -> String {
        String::new()
    }

    pub(super) fn finish(&mut self, _now: Timestamp) -> String {
        String::new()
    }
}
