//! What refuses next, how soon, whose limit it is, and what to type.

use super::report::{LimitReport, ServerReport, Trend};
use crate::{
    output::units::{bytes, count, counted, long_time},
    verdict::{
        Change, Remedy,
        headroom::{Effect, Limit, Place, Row, Unit},
    },
};

/// Limits of every server. Where one could not be read, nobody knows what comes first.
const ALWAYS: [Limit; 5] = [
    Limit::MaxConnections,
    Limit::RlimitNproc,
    Limit::ThreadsMax,
    Limit::PidSpaceExhausted,
    Limit::GlobalOomKill,
];

/// Makes the sentences of a server from its limits.
pub(super) fn renew(server: &mut ServerReport) {
    let measured = server.backend_cost.measured_backends;
    server.unread = unread(&server.limits);
    let first = server.first.and_then(|first| server.limits.get(first));
    let before = server.first.unwrap_or(server.limits.len());
    // Refuses nobody, and is what people notice first.
    let slow = server.limits[..before]
        .iter()
        .find(|limit| limit.row.effect == Effect::Slows && limit.near);
    let partly = match server.unread.as_slice() {
        [] => String::new(),
        unread => {
            let names: Vec<&str> = unread.iter().map(|limit| limit.id()).collect();
            format!("Not all could be read (not {}). ", names.join(", "))
        }
    };
    let sentence = match slow {
        Some(slow) => {
            let slow = refusal(&slow.row, slow.trend, measured);
            format!("{slow} {}", sentence(first, measured))
        }
        None if partly.is_empty() && first.is_some_and(|first| !first.near) => {
            format!("Comfortable. {}", sentence(first, measured))
        }
        None => sentence(first, measured),
    };
    server.summary = partly + &sentence;
    let near = first.filter(|first| first.near).or(slow);
    server.make_room = near.and_then(|limit| command(&limit.row));
}

fn unread(limits: &[LimitReport]) -> Vec<Limit> {
    let read = |wanted: Limit| {
        let mut of_it = limits.iter().filter(|it| it.row.limit == wanted);
        of_it.any(|it| !it.row.limit_unknown)
    };
    ALWAYS.into_iter().filter(|limit| !read(*limit)).collect()
}

/// The sentence; `measured` backends were measured.
fn sentence(first: Option<&LimitReport>, measured: u64) -> String {
    match first {
        None => "No limit that this program can see ends the growth of this server.".to_owned(),
        Some(first) if first.near => refusal(&first.row, first.trend, measured),
        Some(LimitReport { row, trend, .. }) => format!(
            "First would be {}{}, {}{}{}.",
            title(row),
            whose(row),
            after(row, measured).unwrap_or_default(),
            at_this_rate(*trend),
            numbers(row)
        ),
    }
}

/// What makes room at once; a limit on several levels has to be raised on all of them.
fn command(row: &Row) -> Option<String> {
    let typed = |remedy: &Remedy| match &remedy.change {
        Change::Command(command) => Some(command.clone()),
        Change::Action(_) => None,
    };
    let immediate = row.remedy.iter().filter(|remedy| remedy.immediate);
    let mut at_once = immediate.filter_map(typed);
    let mut commands = vec![
        at_once
            .next()
            .or_else(|| row.remedy.iter().find_map(typed))?,
    ];
    let path =
        matches!(row.place, Place::Cgroup { .. }) && row.limit != Limit::MemcgOomKillDisabled;
    if path {
        commands.extend(at_once);
    }
    Some(commands.join(" && "))
}

fn refusal(row: &Row, trend: Option<Trend>, measured: u64) -> String {
    let (what, error) = match row.effect {
        Effect::RefusesEagain => (
            "refuses forks",
            " (EAGAIN, \"Resource temporarily unavailable\")",
        ),
        Effect::RefusesEnomem => ("refuses forks", " (ENOMEM, \"Cannot allocate memory\")"),
        Effect::Kills => ("has the OOM killer end a process", ""),
        Effect::Slows => ("slows the server down", ""),
        Effect::TurnsAway => (
            "has the server turn clients away",
            " (\"too many clients\")",
        ),
    };
    let (title, whose, numbers) = (title(row), whose(row), numbers(row));
    match after(row, measured) {
        Some(after) => {
            let when = at_this_rate(trend);
            let mut said = format!("{after}{when}, {title}{whose} {what}{error}{numbers}.");
            said[..1].make_ascii_uppercase();
            said
        }
        None if row.backends == Some(0) => {
            format!("{title}{whose} {what} now{error}{numbers}.")
        }
        None => format!("{title}{whose} {what}{error}{numbers}."),
    }
}

/// `after about 12 more backends`; nothing where that is now, or not known.
fn after(row: &Row, measured: u64) -> Option<String> {
    let more = row.backends.filter(|more| *more > 0)?;
    let of_memory = row.unit == Unit::Bytes;
    Some(format!(
        "after {}{}{}",
        if of_memory { "about " } else { "" },
        counted(more, "more backend", "more backends"),
        if of_memory && measured == 0 {
            " at most"
        } else {
            ""
        }
    ))
}

fn at_this_rate(trend: Option<Trend>) -> String {
    let seconds = trend.and_then(|trend| trend.full_in_s);
    seconds.map_or_else(String::new, |seconds| {
        let time = long_time(seconds.saturating_mul(1_000_000_000));
        format!(", in {time} at this rate")
    })
}

fn numbers(row: &Row) -> String {
    let Some(max) = row.max else {
        return String::new();
    };
    let (used, max) = match row.unit {
        Unit::Bytes => (bytes(row.used), bytes(max)),
        Unit::Tasks => (counted(row.used, "task", "tasks"), count(max)),
        Unit::Numbers => (counted(row.used, "pid", "pids"), count(max)),
        Unit::Connections => (counted(row.used, "connection", "connections"), count(max)),
    };
    format!(": {used} of {max} taken")
}

/// What the limit is called where it is set.
pub(crate) fn title(row: &Row) -> String {
    match row.limit {
        Limit::RlimitNproc => "RLIMIT_NPROC".to_owned(),
        Limit::ThreadsMax => "kernel.threads-max".to_owned(),
        Limit::CommitLimit => "Strict overcommit (vm.overcommit_memory = 2)".to_owned(),
        Limit::OvercommitHeuristic => "Overcommit (vm.overcommit_memory = 0)".to_owned(),
        Limit::PidNamespaceDying => "The dying pid namespace".to_owned(),
        Limit::PidSpaceExhausted => "kernel.pid_max".to_owned(),
        Limit::GlobalOomKill => "Memory of the host".to_owned(),
        Limit::MaxConnections => "max_connections".to_owned(),
        Limit::PidsCgroupMax
        | Limit::MemcgNoVictim
        | Limit::MemcgOomKillDisabled
        | Limit::MemcgKmemLimitV1
        | Limit::MemcgOomKill
        | Limit::MemcgHigh => match &row.place {
            Place::Cgroup { property, .. } => property.clone(),
            _ => row.limit.id().to_owned(),
        },
    }
}

fn whose(row: &Row) -> String {
    match &row.place {
        Place::Cgroup {
            unit: Some(unit), ..
        } => format!(" in {unit}"),
        Place::Cgroup {
            container: Some(id),
            ..
        } => format!(" in container {}", id.get(..12).unwrap_or(id)),
        Place::Cgroup { path, .. } => format!(" in cgroup {path}"),
        Place::User { uid } => format!(" by uid {uid}"),
        Place::Host | Place::Server => String::new(),
    }
}
