//! JSON lines: one object for each line, written whole, within the size that was asked for.

use std::io;

use jiff::{SignedDuration, Timestamp};
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

use super::{
    Line, escape,
    file::{LineWriter, Store},
    fold::{Fold, Kind, Pace},
    line::{Notice, Record, Repeat},
};

/// Once details have stopped: one line a minute for each kind of refusal.
const PACE: Pace = Pace {
    count: SignedDuration::from_secs(60),
    whole: SignedDuration::from_secs(60),
};
/// Most bytes kept back for counts and for the end.
const MOST_RESERVE: u64 = 256 * 1024;
/// About the length of a `repeat` line.
const REPEAT_SIZE: usize = 1024;

/// The JSON schema of a line.
#[must_use]
pub fn schema() -> serde_json::Value {
    // As written, not as read back: what may be left out is not required.
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Record<'_>>()
        .to_value()
}

/// One line, with its line feed.
///
/// Strings are complete; characters that act on a terminal are written as
/// `\u009b`, as people look at JSON in terminals too.
pub(super) fn encode(time: Timestamp, line: &Line) -> Vec<u8> {
    document(&Record::new(time, line))
}

/// Anything on one line, as [`encode`].
pub(super) fn document<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    let mut serializer = Serializer::with_formatter(&mut out, SafeFormatter);
    // A Vec takes everything, and no type of an output can fail to serialize; tests
    // hold all of them to their schemas.
    if value.serialize(&mut serializer).is_err() {
        return Vec::new();
    }
    out.push(b'\n');
    out
}

struct SafeFormatter;

impl Formatter for SafeFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(escape::is_unsafe) {
            CompactFormatter.write_string_fragment(writer, &rest[..at])?;
            let mut tail = rest[at..].chars();
            if let Some(c) = tail.next() {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = tail.as_str();
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

/// How a line is treated near the size limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Refusals: stop first, then are counted.
    Detail,
    /// Counts and events: while there is room before the reserve for the end.
    /// Start, last counts, totals and end are always written: they do not grow with time.
    Event,
}

/// JSON lines to one place.
pub(super) struct JsonLines {
    writer: LineWriter,
    max_size: Option<u64>,
    /// Refusals since details stopped.
    counted: Option<Fold>,
}

impl JsonLines {
    pub(super) fn new(store: Box<dyn Store>, max_size: Option<u64>) -> Self {
        Self {
            writer: LineWriter::new(store),
            max_size,
            counted: None,
        }
    }

    /// Writes a line, or counts it.
    pub(super) fn emit(&mut self, time: Timestamp, line: &Line) -> io::Result<()> {
        match line {
            Line::Refusal(refusal) => self.detail(time, line, refusal.as_ref()),
            Line::MemoryRefusal(refusal) => self.detail(time, line, refusal.as_ref()),
            Line::Start(_) => self.put(time, &encode(time, line)),
            Line::Totals(_) | Line::End(_) => {
                self.flush(time)?;
                self.put(time, &encode(time, line))
            }
            Line::Repeat(_)
            | Line::Postmaster(_)
            | Line::Lost(_)
            | Line::Notice(_)
            | Line::OomKill(_)
            | Line::Killed(_) => {
                let encoded = encode(time, line);
                if self.has_room(Class::Event, encoded.len()) {
                    self.put(time, &encoded)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Writes a refusal, or counts it.
    fn detail<'a>(
        &mut self,
        time: Timestamp,
        line: &Line,
        refusal: impl Into<Kind<'a>>,
    ) -> io::Result<()> {
        let encoded = encode(time, line);
        if self.counted.is_none() && !self.has_room(Class::Detail, encoded.len()) {
            self.stop_details(time)?;
        }
        match &mut self.counted {
            None => self.put(time, &encoded),
            Some(fold) => {
                let let_go = fold.count(time, refusal);
                self.put_repeats(time, let_go)
            }
        }
    }

    /// Writes counts that are due, while there is room; else they wait for the end.
    pub(super) fn tick(&mut self, now: Timestamp) -> io::Result<()> {
        let size = self.counted.as_ref().map_or(0, Fold::len) * REPEAT_SIZE;
        if size == 0 || !self.has_room(Class::Event, size) {
            return Ok(());
        }
        let due = self.counted.as_mut().map(|fold| fold.due(now));
        self.put_repeats(now, due.unwrap_or_default())
    }

    /// Writes all counts: the end is near.
    pub(super) fn flush(&mut self, now: Timestamp) -> io::Result<()> {
        let rest = self.counted.as_mut().map(|fold| fold.drain(now));
        self.put_repeats(now, rest.unwrap_or_default())
    }

    /// Lines that could not be written.
    pub(super) const fn unwritten(&self) -> u64 {
        self.writer.unwritten()
    }

    /// Whether nothing was written yet.
    pub(super) const fn is_empty(&self) -> bool {
        self.writer.written() == 0
    }

    fn stop_details(&mut self, time: Timestamp) -> io::Result<()> {
        self.counted = Some(Fold::new(PACE));
        let notice = Notice::line(
            "max_size_reached",
            "--max-size is reached: from here on refusals are counted in repeat lines, without details",
        );
        self.put(time, &encode(time, &notice))
    }

    fn put_repeats(&mut self, time: Timestamp, repeats: Vec<Repeat>) -> io::Result<()> {
        for repeat in repeats {
            self.put(time, &encode(time, &Line::Repeat(repeat)))?;
        }
        Ok(())
    }

    fn has_room(&self, class: Class, more: usize) -> bool {
        let Some(limit) = self.max_size else {
            return true;
        };
        let reserve = (limit / 4).min(MOST_RESERVE);
        let limit = match class {
            Class::Detail => limit - reserve,
            Class::Event => limit - reserve / 2,
        };
        self.writer.written() + more as u64 <= limit
    }

    fn put(&mut self, time: Timestamp, encoded: &[u8]) -> io::Result<()> {
        if self.writer.missing() > 0 {
            let notice = Notice::line(
                "lines_not_written",
                format!(
                    "{} lines before this one could not be written",
                    self.writer.missing()
                ),
            );
            self.writer.write_notice(&encode(time, &notice));
        }
        self.writer.write(encoded)
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
