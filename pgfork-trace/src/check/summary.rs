//! One sentence: what refuses next, how soon, whose limit it is.

use crate::{
    output::units::{bytes, count, counted},
    verdict::headroom::{Effect, Limit, Place, Row, Unit},
};

/// The sentence; `measured` backends were measured.
pub(super) fn sentence(first: Option<&Row>, measured: u64) -> String {
    let Some(row) = first else {
        return "No limit that this program can see ends the growth of this server.".to_owned();
    };
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
    format!("{} {what} {soon}{numbers}{}.", title(row), whose(row))
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
