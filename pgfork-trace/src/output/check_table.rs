//! The rows of limits of `check`, as a table no wider than it must be.

use super::{
    escape::{name, sentence},
    text::Style,
    units::{bytes, count, counted, long_time},
};
use crate::{
    check::{LimitReport, Trend},
    verdict::headroom::{Effect, Limit, Place, Row, Unit},
};

/// Width of a bar in characters.
const BAR: u64 = 10;

/// The table; notes on a limit below it: of those that are close, or with `verbose` of all.
pub(super) fn table(limits: &[&LimitReport], style: Style, verbose: bool) -> Vec<String> {
    let cells: Vec<[String; 3]> = limits
        .iter()
        .map(|limit| {
            let row = &limit.row;
            [row.limit.id().to_owned(), numbers(row), room(row)]
        })
        .collect();
    let width = |column: usize| {
        let widths = cells.iter().map(|cells| cells[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let [id, used, left] = [width(0), width(1), width(2)];
    let mut out = Vec::new();
    for (limit, cells) in limits.iter().zip(&cells) {
        let bar = painted(limit, style);
        let near = if limit.near { "  CLOSE" } else { "" };
        out.push(format!(
            "{:<id$} {bar} {:>used$}  {:<left$}  {}{}{}",
            cells[0],
            cells[1],
            cells[2],
            place(&limit.row),
            limit
                .trend
                .map_or_else(String::new, |it| moved(it, limit.row.unit)),
            style.alarm(near)
        ));
    }
    for limit in limits.iter().filter(|limit| verbose || limit.near) {
        let id = limit.row.limit.id();
        let notes = limit.row.notes.iter();
        out.extend(notes.map(|note| style.label(&format!("  {id}: {}", sentence(note)))));
    }
    out
}

/// Limits that no number of backends reaches, in one line.
pub(super) fn unlimited(limits: &[&LimitReport]) -> Option<String> {
    let names: Vec<String> = limits
        .iter()
        .filter(|limit| limit.row.limit != Limit::PidNamespaceDying)
        .map(|limit| format!("{} {}", limit.row.limit.id(), place(&limit.row)))
        .collect();
    (!names.is_empty()).then(|| format!("no limit: {}", names.join(", ")))
}

/// `12 of 17 tasks`.
fn numbers(row: &Row) -> String {
    let unit = match row.unit {
        Unit::Tasks => " tasks",
        Unit::Numbers => " pids",
        Unit::Bytes | Unit::Connections => "",
    };
    match row.max {
        Some(max) => format!(
            "{} of {}{unit}",
            plain(row.used, row.unit),
            plain(max, row.unit)
        ),
        None if row.limit_unknown => {
            format!("{}{unit}, limit not readable", plain(row.used, row.unit))
        }
        None => String::new(),
    }
}

fn room(row: &Row) -> String {
    match (row.backends, row.room) {
        (Some(more), _) => {
            let about = match row.uncertain_backends {
                0 => String::new(),
                off => format!(" (+-{})", count(off)),
            };
            format!("{}{about}", counted(more, "backend", "backends"))
        }
        (None, Some(room)) => format!("{} left", amount(room, row.unit)),
        (None, None) => String::new(),
    }
}

/// `, +12 tasks in 2.0 s, full in 40 s`.
fn moved(trend: Trend, unit: Unit) -> String {
    if trend.used_change == 0 {
        return String::new();
    }
    let sign = if trend.used_change > 0 { '+' } else { '-' };
    let full = trend.full_in_s.map_or_else(String::new, |seconds| {
        format!(
            ", full in {}",
            long_time(seconds.saturating_mul(1_000_000_000))
        )
    });
    format!(
        ", {sign}{} in {}.{} s{full}",
        amount(trend.used_change.unsigned_abs(), unit),
        trend.over_ms / 1000,
        trend.over_ms % 1000 / 100
    )
}

fn painted(limit: &LimitReport, style: Style) -> String {
    let bar = bar(&limit.row);
    match (limit.near, limit.row.effect) {
        (true, _) => style.alarm(&bar),
        (false, Effect::Slows) => style.doubt(&bar),
        (false, _) => style.good(&bar),
    }
}

/// `[#######...]`, full only when nothing is left.
fn bar(row: &Row) -> String {
    let filled = match (row.max, row.room) {
        (_, Some(0)) | (None, None) => BAR,
        (Some(max), Some(room)) => {
            let left =
                (u128::from(room.min(max)) * u128::from(BAR)).div_ceil(u128::from(max.max(1)));
            BAR - u64::try_from(left).unwrap_or(BAR).min(BAR)
        }
        _ => 0,
    };
    (0..BAR)
        .map(|at| if at < filled { '#' } else { '.' })
        .fold(String::from("["), |bar, c| bar + &c.to_string())
        + "]"
}

fn plain(number: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => bytes(number),
        Unit::Tasks | Unit::Numbers | Unit::Connections => count(number),
    }
}

fn amount(number: u64, unit: Unit) -> String {
    match unit {
        Unit::Tasks => counted(number, "task", "tasks"),
        Unit::Numbers => counted(number, "pid", "pids"),
        Unit::Bytes | Unit::Connections => plain(number, unit),
    }
}

fn place(row: &Row) -> String {
    match &row.place {
        Place::Host => "host".to_owned(),
        Place::Server => "this server".to_owned(),
        Place::User { uid } => format!("uid {uid}"),
        Place::Cgroup {
            path,
            unit,
            property,
            ..
        } => match unit {
            Some(unit) => format!("{} {}", name(unit), name(property)),
            None => format!("{} {}", name(path), name(property)),
        },
    }
}
