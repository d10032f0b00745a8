//! What already happened, as text for `check`.

use super::{
    escape::name,
    units::{count, counted, long_time},
};
use crate::check::{HostHistory, ServerHistory};

/// Most rows of the kernel log.
const MOST_EVENTS: usize = 8;

/// The host's rows.
pub(super) fn host(history: &HostHistory) -> Vec<String> {
    let mut out: Vec<String> = history
        .kernel_log
        .iter()
        .take(MOST_EVENTS)
        .map(|event| {
            let what = match event.what {
                "fork_rejected_by_pids" => "fork rejected by the pids controller, forked in",
                "oom_killed" => "killed for want of memory on the host:",
                "cgroup_oom_killed" => "killed for want of memory in a cgroup:",
                "nothing_killable" => "out of memory, and nothing could be killed",
                "commit_refused" => "promise of memory refused to",
                _ => "kernel memory not to be had for",
            };
            let last = event.last_s_ago.map_or_else(String::new, |ago| {
                format!(
                    ", last {} ago",
                    long_time(ago.saturating_mul(1_000_000_000))
                )
            });
            let times = counted(event.count, "time", "times");
            let whom = match event.name.as_str() {
                "" => String::new(),
                whom => format!(" {}", name(whom)),
            };
            format!("{what}{whom} ({times} in the kernel log{last})")
        })
        .collect();
    if let Some(pressure) = &history.memory_pressure
        && pressure.some_300s_percent > 0.0
    {
        out.push(format!(
            "tasks waited for memory {:.2} % of the last 10 s, {:.2} % of the last 5 min",
            pressure.some_10s_percent, pressure.some_300s_percent
        ));
    }
    out
}

/// A server's rows.
pub(super) fn server(history: &ServerHistory) -> Vec<String> {
    let mut out = Vec::new();
    for events in &history.pids_events {
        let by = if events.counts_forker {
            "forks in it refused, by it or a level above"
        } else {
            "forks refused by its limit"
        };
        out.push(format!(
            "{} {by} (counters of {})",
            count(events.refused),
            name(&events.path)
        ));
    }
    for events in &history.memory_events {
        let part = |number: Option<u64>, what: &str| {
            number.map(|number| format!("{what} {}", counted(number, "time", "times")))
        };
        let parts: Vec<String> = [
            part(events.limit_reached, "limit reached"),
            part(events.slowed, "slowed down"),
            part(
                events.memory_and_swap_limit_reached,
                "limit of memory and swap reached",
            ),
            part(
                events.kernel_memory_limit_reached,
                "limit of kernel memory reached",
            ),
            part(events.oom, "nothing to take back"),
            part(events.killed, "process killed"),
        ]
        .into_iter()
        .flatten()
        .collect();
        out.push(format!(
            "memory of {}: {}",
            name(&events.path),
            parts.join(", ")
        ));
    }
    for log in &history.server_log {
        let mut parts: Vec<String> = log
            .could_not_fork
            .iter()
            .map(|tally| {
                format!(
                    "{} \"could not fork\" ({})",
                    count(tally.count),
                    name(&tally.name)
                )
            })
            .collect();
        for (number, what) in [
            (log.too_many_clients, "\"too many clients\""),
            (log.out_of_memory, "\"out of memory\""),
        ] {
            if number > 0 {
                parts.push(format!("{} {what}", count(number)));
            }
        }
        if let (Some(first), Some(last)) = (&log.first_refused, &log.last_refused) {
            parts.push(format!("refused from {} to {}", name(first), name(last)));
        }
        if parts.is_empty() {
            parts.push("0 refusals".to_owned());
        }
        let end = if log.partial { "the end of " } else { "" };
        out.push(format!("{} in {end}{}", parts.join(", "), name(&log.file)));
    }
    out
}
