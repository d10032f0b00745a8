//! What refuses next, how soon, whose limit it is, and what to type: two sentences.

use super::report::{LimitReport, ServerReport, Trend};
use crate::{
    output::units::{bytes, count, counted, long_time},
    verdict::{
        Change, Remedy,
        headroom::{Effect, Limit, Place, Row, Unit},
    },
};

/// Makes the sentences of a server from its limits.
pub(super) fn renew(server: &mut ServerReport) {
    let measured = server.backend_cost.measured_backends;
    let first = server.first.and_then(|first| server.limits.get(first));
    let before = server.first.unwrap_or(server.limits.len());
    // Refuses nobody, and is what people notice first.
    let slow = server.limits[..before]
        .iter()
        .find(|limit| limit.row.effect == Effect::Slows && limit.near);
    server.summary = match slow {
        Some(slow) => {
            let slow = refusal(&slow.row, slow.trend, measured);
            format!("{slow} {}", sentences(first, measured))
        }
        None => sentences(first, measured),
    };
}

/// The sentences; `measured` backends were measured. The command is the end, to be copied.
fn sentences(first: Option<&LimitReport>, measured: u64) -> String {
    let Some(first) = first else {
        return "No limit that this program can see ends the growth of this server.".to_owned();
    };
    let row = &first.row;
    let end = match command(row) {
        Some(command) => format!(" To make room, type: {command}"),
        None => String::new(),
    };
    format!("{}{end}", refusal(row, first.trend, measured))
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
    let what = match row.effect {
        Effect::RefusesEagain => {
            "refuses the next fork (EAGAIN, \"Resource temporarily unavailable\")"
        }
        Effect::RefusesEnomem => "refuses the next fork (ENOMEM, \"Cannot allocate memory\")",
        Effect::Kills => "has the OOM killer end a process",
        Effect::Slows => "slows the server down",
        Effect::TurnsAway => "has the server turn clients away (\"too many clients\")",
    };
    let about = if row.unit == Unit::Bytes {
        "about "
    } else {
        ""
    };
    let soon = match row.backends {
        Some(0) => "now".to_owned(),
        Some(more) => format!(
            "after {about}{}{}",
            counted(more, "more backend", "more backends"),
            if row.unit == Unit::Bytes && measured == 0 {
                " at most"
            } else {
                ""
            }
        ),
        None => String::new(),
    };
    let numbers = match (row.max, row.unit) {
        (None, _) => String::new(),
        (Some(max), Unit::Bytes) => format!(": {} of {} taken", bytes(row.used), bytes(max)),
        (Some(max), Unit::Tasks) => {
            format!(
                ": {} of {} taken",
                counted(row.used, "task", "tasks"),
                count(max)
            )
        }
        (Some(max), Unit::Numbers) => {
            format!(": {} of {} pid numbers taken", count(row.used), count(max))
        }
        (Some(max), Unit::Connections) => format!(
            ": {} of {} taken",
            counted(row.used, "connection", "connections"),
            count(max)
        ),
    };
    let when = trend
        .and_then(|trend| trend.full_in_s)
        .map_or_else(String::new, |seconds| {
            let time = long_time(seconds.saturating_mul(1_000_000_000));
            format!(", in {time} at this rate")
        });
    format!("{} {what} {soon}{when}{numbers}{}.", title(row), whose(row))
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
