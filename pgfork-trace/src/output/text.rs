//! Lines as text for people.

mod actor;
mod block;
mod client;
mod kills;
mod memory;
mod numbers;
mod style;
mod summary;

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use super::{
    Line,
    escape::{name, sentence},
    fold::{Fold, Pace},
    line::{
        Change, Lost, LostWhat, Postmaster, PostmasterChange, Refused, Repeat, Start, Totals,
        WatchedKind,
    },
    units::{count, counted, short_time},
};
pub(super) use style::Style;

/// A storm of equal refusals is a line a second; who looks a minute later sees the whole again.
const PACE: Pace = Pace {
    count: SignedDuration::from_secs(1),
    whole: SignedDuration::from_secs(60),
};

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

/// What stands above a line: blocks are set apart by an empty line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Above {
    Nothing,
    Lines,
    Block,
}

/// Renders lines; keeps what is folded or belongs to the summary.
pub(super) struct Text {
    options: TextOptions,
    style: Style,
    fold: Fold,
    kills: kills::Fold,
    /// Held until the end, which is told first.
    totals: Vec<Totals>,
    above: Above,
    date: Option<Date>,
}

impl Text {
    pub(super) fn new(options: TextOptions) -> Self {
        Self {
            style: Style {
                color: options.color,
            },
            options,
            fold: Fold::new(PACE),
            kills: kills::Fold::default(),
            totals: Vec::new(),
            above: Above::Nothing,
            date: None,
        }
    }

    /// What to print for a line; may be nothing.
    pub(super) fn line(&mut self, time: Timestamp, line: &Line) -> String {
        let quiet = self.options.quiet;
        match line {
            Line::Start(start) if quiet == 0 => {
                self.date = Some(self.date_of(time));
                self.above = Above::Lines;
                header(start, time, self.options.verbose)
            }
            Line::Refusal(refusal) if quiet < 2 && self.options.details => {
                let seen = self.fold.see(time, refusal.as_ref());
                let mut out = self.repeats(time, &seen.repeats);
                if seen.whole {
                    out += &self.block(time, |clock, style| block::refusal(clock, refusal, style));
                }
                out
            }
            Line::MemoryRefusal(refusal) if quiet < 2 && self.options.details => {
                let seen = self.fold.see(time, refusal.as_ref());
                let mut out = self.repeats(time, &seen.repeats);
                if seen.whole {
                    out += &self.block(time, |clock, style| memory::refusal(clock, refusal, style));
                }
                out
            }
            Line::OomKill(kill) if quiet < 2 && self.options.details => {
                self.block(time, |clock, style| kills::oom(clock, kill, style))
            }
            Line::Killed(killed) if quiet < 2 && self.options.details => {
                if self.kills.see(time, killed) {
                    self.event(time, &kills::killed(killed))
                } else {
                    String::new()
                }
            }
            Line::Repeat(repeat) if quiet < 2 && self.options.details => {
                self.repeats(time, std::slice::from_ref(repeat))
            }
            Line::Postmaster(change) if quiet == 0 => self.event(time, &changed(change)),
            Line::Lost(lost) if quiet == 0 => self.event(time, &lost_text(lost)),
            Line::Notice(notice) if quiet == 0 => {
                self.event(time, &format!("note: {}", sentence(&notice.message)))
            }
            Line::Totals(totals) => {
                self.totals.push(totals.clone());
                String::new()
            }
            Line::End(end) => {
                let mut out = self.tick_all(time);
                out += &summary::end(end, &std::mem::take(&mut self.totals));
                out
            }
            _ => String::new(),
        }
    }

    /// Counts that are due.
    pub(super) fn tick(&mut self, now: Timestamp) -> String {
        let due = self.fold.due(now);
        self.repeats(now, &due) + &self.kills_due(now, false)
    }

    fn kills_due(&mut self, now: Timestamp, all: bool) -> String {
        let due = self.kills.due(now, all);
        due.iter().map(|text| self.event(now, text)).collect()
    }

    /// What is left: counts, and totals that no end followed.
    pub(super) fn finish(&mut self, now: Timestamp) -> String {
        let mut out = self.tick_all(now);
        for totals in std::mem::take(&mut self.totals) {
            out += &summary::totals(&totals);
            out.push('\n');
        }
        out
    }

    fn tick_all(&mut self, now: Timestamp) -> String {
        let rest = self.fold.drain(now);
        self.repeats(now, &rest) + &self.kills_due(now, true)
    }

    fn repeats(&mut self, time: Timestamp, repeats: &[Repeat]) -> String {
        repeats
            .iter()
            .map(|repeat| {
                let (what, below) = match repeat.refused {
                    Refused::Fork => ("", ""),
                    Refused::Memory => ("memory ", "below "),
                };
                let text = format!(
                    "{} more {what}{}, same cause ({below}{})",
                    count(repeat.refusals),
                    if repeat.refusals == 1 {
                        "refusal"
                    } else {
                        "refusals"
                    },
                    kind_and_pid(&repeat.postmaster)
                );
                self.event(time, &text)
            })
            .collect()
    }

    /// A block, set apart from what is above.
    fn block(&mut self, time: Timestamp, render: impl FnOnce(&str, Style) -> String) -> String {
        let mut out = self.new_date(time);
        if self.above != Above::Nothing {
            out.push('\n');
        }
        self.above = Above::Block;
        out += &render(&self.clock(time, "%H:%M:%S%.3f"), self.style);
        out
    }

    /// A line with a time.
    fn event(&mut self, time: Timestamp, text: &str) -> String {
        let mut out = self.new_date(time);
        if self.above == Above::Block {
            out.push('\n');
        }
        self.above = Above::Lines;
        out += &format!("{}      {text}\n", self.clock(time, "%H:%M:%S"));
        out
    }

    fn clock(&self, time: Timestamp, format: &str) -> String {
        let zoned = time.to_zoned(self.options.time_zone.clone());
        zoned.strftime(format).to_string()
    }

    fn date_of(&self, time: Timestamp) -> Date {
        time.to_zoned(self.options.time_zone.clone()).date()
    }

    /// A line where another day begins.
    fn new_date(&mut self, time: Timestamp) -> String {
        let date = self.date_of(time);
        match self.date.replace(date) {
            Some(before) if before != date => {
                self.above = Above::Lines;
                format!("\n{date}\n")
            }
            _ => String::new(),
        }
    }
}

/// `postmaster 1843`, `process 77 (pgbouncer)`.
fn kind_and_pid(watched: &Postmaster) -> String {
    match watched.kind {
        WatchedKind::Postmaster => format!("postmaster {}", watched.pid),
        WatchedKind::Process => match &watched.comm {
            Some(comm) => format!("process {} ({})", watched.pid, name(comm)),
            None => format!("process {}", watched.pid),
        },
    }
}

/// `postmaster 1843 (port 5432)`.
fn who(watched: &Postmaster) -> String {
    let detail = match watched {
        Postmaster {
            port: Some(port), ..
        } => format!("port {port}"),
        Postmaster {
            data_dir: Some(directory),
            ..
        } => name(directory).into_owned(),
        _ => return kind_and_pid(watched),
    };
    format!("{} ({detail})", kind_and_pid(watched))
}

/// First twelve characters of a container's id, as its tools show it.
fn container(id: &str) -> String {
    let short: String = id.chars().take(12).collect();
    format!("container {}", name(&short))
}

fn header(start: &Start, now: Timestamp, verbose: u8) -> String {
    let of_kind = |kind| {
        start
            .postmasters
            .iter()
            .filter(|it| it.kind == kind)
            .count() as u64
    };
    let kinds = [
        (
            of_kind(WatchedKind::Postmaster),
            "postmaster",
            "postmasters",
        ),
        (of_kind(WatchedKind::Process), "process", "processes"),
    ];
    let watched: Vec<String> = kinds
        .into_iter()
        .filter(|(number, ..)| *number > 0)
        .map(|(number, one, many)| counted(number, one, many))
        .collect();
    let watched = if watched.is_empty() {
        let names: Vec<_> = start.names.iter().map(|it| name(it)).collect();
        match names.as_slice() {
            [] => "Waiting for a postmaster".to_owned(),
            names => format!("Waiting for a process named {}", names.join(" or ")),
        }
    } else {
        format!("Watching {}", watched.join(" and "))
    };
    let mut out = format!(
        "{watched} on kernel {}: {} ({}), attached in {}. Ctrl-C stops.\n",
        name(&start.kernel),
        counted(start.probes, "probe", "probes"),
        start.method.name(),
        short_time(start.attach_ns)
    );
    out += &table(&start.postmasters, now);
    match start.not_seen.as_slice() {
        [] => {}
        not_seen if verbose > 0 => {
            out += "Cannot be seen here:\n";
            for why in not_seen {
                out += &format!("  {}\n", sentence(why));
            }
        }
        not_seen => {
            let things = counted(not_seen.len() as u64, "thing", "things");
            out += &format!("{things} cannot be seen here: `pgfork-trace probes` says which.\n");
        }
    }
    out
}

/// Watched processes in aligned columns: pid, what, port, directory, where, since when.
fn table(watched: &[Postmaster], now: Timestamp) -> String {
    let row = |watched| {
        let [pid, what, port, directory, place] = columns(watched);
        let age = watched
            .started
            .map(|started| age(now.duration_since(started)));
        [pid, what, port, directory, place, age.unwrap_or_default()]
    };
    let rows: Vec<[String; 6]> = watched.iter().map(row).collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths).filter(|(_, width)| *width > 0) {
            line += &format!("  {cell:<width$}");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// `up 3 d`: the largest unit is enough to tell a restart from a long life.
fn age(age: SignedDuration) -> String {
    let seconds = age.as_secs().max(0);
    let (number, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86_400 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("up {number} {unit}")
}

fn columns(watched: &Postmaster) -> [String; 5] {
    let text = |it: &Option<String>| it.as_deref().map(name).unwrap_or_default().into_owned();
    let what = match (watched.kind, &watched.version) {
        (WatchedKind::Postmaster, Some(version)) => format!("PostgreSQL {}", name(version)),
        (WatchedKind::Postmaster, None) => "PostgreSQL".to_owned(),
        (WatchedKind::Process, _) => text(&watched.comm),
    };
    let place = match &watched.container {
        Some(id) => container(id),
        None => text(&watched.unit),
    };
    [
        watched.pid.to_string(),
        what,
        watched
            .port
            .map(|port| format!("port {port}"))
            .unwrap_or_default(),
        text(&watched.data_dir),
        place,
    ]
}

fn changed(change: &PostmasterChange) -> String {
    let subject = who(&change.postmaster);
    match (change.event, change.previous_pid) {
        (Change::Appeared, _) => {
            let [_, what, _, directory, place] = columns(&change.postmaster);
            let details = [what, directory, place];
            let details: Vec<String> = details.into_iter().filter(|it| !it.is_empty()).collect();
            format!("{subject} appeared: {}", details.join(", "))
        }
        (Change::Gone, _) => match &change.killed_by {
            Some(killed_by) => format!("{subject} is gone: killed {}", kills::by(killed_by)),
            None => format!("{subject} is gone"),
        },
        (Change::Restarted, Some(previous)) => format!("{subject} took the place of {previous}"),
        (Change::Restarted, None) => format!("{subject} was restarted"),
    }
}

fn lost_text(lost: &Lost) -> String {
    match lost.what {
        LostWhat::Records => format!(
            "lost: details of {}; they are counted",
            counted(lost.count, "refusal", "refusals")
        ),
        LostWhat::Returns => format!(
            "lost: {} of watched kernel functions",
            counted(lost.count, "return", "returns")
        ),
        LostWhat::Attempts => format!(
            "lost: {} not followed, too many at once",
            counted(lost.count, "fork", "forks")
        ),
        LostWhat::Events => format!(
            "lost: {} of refused memory, kills, or processes that start or end",
            counted(lost.count, "record", "records")
        ),
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
