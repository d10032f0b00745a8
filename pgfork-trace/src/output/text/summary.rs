//! The end: what was counted, and whether the count is whole.

use std::collections::BTreeMap;

use super::{
    super::{
        line::{DETAILS_LOST, End, EndReason, ServerLogged, Totals, WatchedKind},
        units::{count, counted, long_time, short_time},
    },
    client, kind_and_pid,
};

/// The last lines.
pub(super) fn end(end: &End, totals: &[Totals]) -> String {
    // A terminal has just shown ^C: an empty line sets the summary apart from it.
    let watched = format!("\nWatched {}.", long_time(end.watched_ns));
    let (totals, idle) = without_idle(totals);
    let mut out = match totals.as_slice() {
        [] if idle == 0 => format!("{watched} Nothing was seen that was to be watched.\n"),
        [] => format!("{watched}\n"),
        [one] => format!("{watched} {}\n", self::totals(one)),
        several => {
            let mut out = format!("{watched}\n");
            for one in several {
                out += &self::totals(one);
                out.push('\n');
            }
            out
        }
    };
    if idle > 0 {
        out += &format!(
            "{} did not fork.\n",
            counted(idle, "more process", "more processes")
        );
    }
    if end.reason == EndReason::NoMore {
        out += "No watched process is left.\n";
    }
    out += &accounted(end);
    out
}

/// Most processes without a fork that have a line of their own.
const MOST_IDLE: usize = 4;

/// Of many processes of one name most may do nothing: then they are only counted.
fn without_idle(totals: &[Totals]) -> (Vec<Totals>, u64) {
    let is_idle = |it: &&Totals| {
        it.postmaster.kind == WatchedKind::Process && it.forks == 0 && it.merged == 0
    };
    let idle = totals.iter().filter(is_idle).count();
    if idle <= MOST_IDLE {
        return (totals.to_vec(), 0);
    }
    let busy = totals.iter().filter(|it| !is_idle(it));
    (busy.cloned().collect(), idle as u64)
}

/// Counts of one watched process.
pub(super) fn totals(totals: &Totals) -> String {
    let subject = kind_and_pid(&totals.postmaster);
    // ASCII: "postmaster" or "process".
    let subject = subject[..1].to_uppercase() + &subject[1..];
    let merged = match totals.merged {
        0 => String::new(),
        merged => format!(" and {} that ended before it", count(merged)),
    };
    let mut out = format!(
        "{subject}{merged}: {}, {} refused",
        counted(totals.forks, "fork", "forks"),
        count(totals.refused)
    );
    out += &by_cause(&totals.refused_by_cause);
    if totals.restarted > 0 {
        out += &format!(", {} restarted by signals", count(totals.restarted));
    }
    if totals.untracked > 0 {
        out += &format!(", {} not followed", count(totals.untracked));
    }
    out.push('.');
    if let Some(time) = totals.fork_time_ns {
        out += &format!(
            " Fork time p50 {}, p99 {}.",
            short_time(time.p50),
            short_time(time.p99)
        );
    }
    if let Some(row) = totals.connections.as_ref().and_then(client::connections) {
        out += &format!("\n  {row}");
    }
    if let Some(logged) = &totals.server_log {
        out += &format!("\n  {}", self::logged(logged));
    }
    let below = children(totals);
    if !below.is_empty() {
        out += &format!("\n {below}");
    }
    out
}

/// `Its log: could not fork 3 autovacuum worker, 1 client backend.`
fn logged(logged: &ServerLogged) -> String {
    let kinds: Vec<String> = logged
        .could_not_fork
        .iter()
        .map(|(kind, lines)| format!("{} {}", count(*lines), kind.replace('_', " ")))
        .collect();
    let more = if logged.partial { ", or more" } else { "" };
    format!("Its log: could not fork {}{more}.", kinds.join(", "))
}

/// ` (commit_limit 413)`, or nothing.
fn by_cause(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let causes: Vec<String> = counts
        .iter()
        .map(|(cause, refused)| match cause.as_str() {
            DETAILS_LOST => format!("details lost {}", count(*refused)),
            cause => format!("{cause} {}", count(*refused)),
        })
        .collect();
    format!(" ({})", causes.join(", "))
}

/// What was counted below the watched process.
fn children(totals: &Totals) -> String {
    let mut out = String::new();
    if let (Some(forks), Some(refused)) = (totals.child_forks, totals.child_refused) {
        out += &format!(
            " Its children: {}, {} refused{}.",
            counted(forks, "fork", "forks"),
            count(refused),
            by_cause(&totals.child_refused_by_cause)
        );
    }
    if let Some(causes) = &totals.memory_refusals {
        let all: u64 = causes.values().sum();
        out += &format!(
            " {}{}.",
            counted(all, "memory refusal", "memory refusals"),
            by_cause(causes)
        );
    }
    if totals.oom_kills > 0 {
        out += &format!(
            " {} by the OOM killer.",
            counted(totals.oom_kills, "process killed", "processes killed")
        );
    }
    out
}

fn accounted(end: &End) -> String {
    let lost = counted(end.lost, "event", "events");
    match (end.accounted, end.lost) {
        (true, 0) => "Every attempt is accounted for; 0 events lost.\n".to_owned(),
        (true, _) => {
            format!("Every attempt is accounted for; {lost} lost: counted, without details.\n")
        }
        (false, _) => {
            format!("Not every attempt is accounted for, {lost} lost: there may have been more.\n")
        }
    }
}
