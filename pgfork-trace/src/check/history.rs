//! What already happened: counters of cgroups, the kernel log, pressure, the server's log.

use std::path::Path;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::{connections::Tally, report::time_of, server::Server};
use crate::{
    gather::text,
    host::{
        Root,
        cgroup::Chain,
        kmsg::{self, KernelLog, Times},
        psi,
    },
    postgres::{foreign_messages, server_log},
};

/// Refused forks in the counters of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PidsEvents {
    /// Path of the cgroup.
    pub path: String,
    /// Times.
    pub refused: u64,
    /// The counter means forks of this very cgroup, whichever level refused them (v1, v2 before 6.12
    /// or so, and the mount option pids_localevents); else forks refused by this cgroup's own limit.
    pub counts_forker: bool,
}

/// Memory trouble in the counters of one cgroup, that of cgroups below it left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemoryEvents {
    /// Path of the cgroup.
    pub path: String,
    /// Times that the limit was reached (v1: failcnt).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_reached: Option<u64>,
    /// Times that it was slowed down at memory.high.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowed: Option<u64>,
    /// v1: times that the limit of memory and swap was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_and_swap_limit_reached: Option<u64>,
    /// v1: times that the limit of kernel memory was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_memory_limit_reached: Option<u64>,
    /// Times that nothing could be taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom: Option<u64>,
    /// Processes killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killed: Option<u64>,
}

/// Something in the kernel log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct KernelEvent {
    /// What: `fork_rejected_by_pids`, `oom_killed`, `cgroup_oom_killed`, `nothing_killable`,
    /// `commit_refused`, `allocation_failed`.
    pub what: &'static str,
    /// Process or cgroup.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Records; the kernel limits their rate, so at least.
    pub count: u64,
    /// Seconds since the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_s_ago: Option<u64>,
}

/// Refusals in the server's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LogEvents {
    /// The file, as the server sees it.
    pub file: String,
    /// When it was last written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
    /// Only the end of it was read.
    pub partial: bool,
    /// Refused forks by errno: `EAGAIN`, `ENOMEM`, `other`.
    pub could_not_fork: Vec<Tally>,
    /// Time of the first of them, as the log has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_refused: Option<String>,
    /// Time of the last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_refused: Option<String>,
    /// Clients turned away because all slots were taken.
    pub too_many_clients: u64,
    /// Backends that ran out of memory.
    pub out_of_memory: u64,
}

/// Waiting for memory, in percent of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Pressure {
    /// Some task waited, over the last 10 s.
    pub some_10s_percent: f64,
    /// Some task waited, over the last 5 min.
    pub some_300s_percent: f64,
    /// All tasks waited, over the last 10 s.
    pub full_10s_percent: f64,
}

/// What the host has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct HostHistory {
    /// The kernel log, most frequent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel_log: Vec<KernelEvent>,
    /// Pressure on memory; absent without PSI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_pressure: Option<Pressure>,
}

/// What one server has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ServerHistory {
    /// Refused forks, own cgroup first; only where there were any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pids_events: Vec<PidsEvents>,
    /// Memory limits reached, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub memory_events: Vec<MemoryEvents>,
    /// The server's own log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub server_log: Vec<LogEvents>,
}

pub(super) fn of_host(
    root: &Root,
    uptime: Option<Duration>,
    not_seen: &mut Vec<String>,
) -> HostHistory {
    let kernel_log = match kmsg::kernel_log(root) {
        Ok(log) => events(&log, uptime),
        Err(why) => {
            not_seen.push(why);
            Vec::new()
        }
    };
    let percent =
        |hundredths: u64| f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0;
    HostHistory {
        kernel_log,
        memory_pressure: psi::memory_pressure(root)
            .ok()
            .flatten()
            .map(|it| Pressure {
                some_10s_percent: percent(it.some_10),
                some_300s_percent: percent(it.some_300),
                full_10s_percent: percent(it.full_10),
            }),
    }
}

fn events(log: &KernelLog, uptime: Option<Duration>) -> Vec<KernelEvent> {
    let event = |what, name: &str, times: &Times| KernelEvent {
        what,
        name: name.to_owned(),
        count: times.count,
        last_s_ago: uptime.map(|up| {
            up.saturating_sub(Duration::from_micros(times.last_us))
                .as_secs()
        }),
    };
    let mut all = Vec::new();
    for (what, map) in [
        ("fork_rejected_by_pids", &log.forks_rejected),
        ("oom_killed", &log.oom_killed),
        ("cgroup_oom_killed", &log.cgroup_oom_killed),
        ("commit_refused", &log.commit_refused),
        ("allocation_failed", &log.allocation_failed),
    ] {
        all.extend(map.iter().map(|(name, times)| event(what, name, times)));
    }
    if log.nothing_killable.count > 0 {
        all.push(event("nothing_killable", "", &log.nothing_killable));
    }
    all.sort_by_key(|event| std::cmp::Reverse(event.count));
    all
}

pub(super) fn of_server(root: &Root, server: &mut Server<'_>) -> ServerHistory {
    let (found, unread) = server_log(root, server.postmaster.pid, &server.settings);
    server.not_seen.extend(unread);
    if let Some(language) = foreign_messages(&server.settings) {
        server.not_seen.push(format!(
            "the server's messages are not in English (lc_messages = {language}): those in its log are not counted"
        ));
    }
    let tally = |(name, count): (&&str, &u64)| Tally {
        name: (*name).to_owned(),
        count: *count,
    };
    ServerHistory {
        pids_events: server.pids.as_ref().map(pids_events).unwrap_or_default(),
        memory_events: server
            .memory
            .as_ref()
            .map(memory_events)
            .unwrap_or_default(),
        server_log: found
            .into_iter()
            .map(|counts| {
                let (first_refused, last_refused) = counts.refused.unzip();
                LogEvents {
                    file: text(counts.file.as_os_str()),
                    modified: counts.modified.and_then(time_of),
                    partial: counts.partial,
                    could_not_fork: counts.could_not_fork.iter().map(tally).collect(),
                    first_refused,
                    last_refused,
                    too_many_clients: counts.too_many_clients,
                    out_of_memory: counts.out_of_memory,
                }
            })
            .collect(),
    }
}

fn path_of(path: &Path) -> String {
    text(path.as_os_str())
}

/// The files and the mount tell whom the counter means: where `pids.events.local` exists, it counts
/// refusals by the limit itself, and `pids.events` those of limits below it too (`pids_event` in
/// kernel/cgroup/pids.c, 6.12 to 7.2).
fn pids_events(chain: &Chain) -> Vec<PidsEvents> {
    let level = |level: &crate::host::cgroup::Level| {
        let local = level.pids.events_local_max;
        let refused = local.or(level.pids.events_max);
        Some(PidsEvents {
            path: path_of(&level.path),
            refused: refused.filter(|times| *times > 0)?,
            counts_forker: local.is_none() || chain.pids_local_events,
        })
    };
    chain.levels.iter().filter_map(level).collect()
}

fn memory_events(chain: &Chain) -> Vec<MemoryEvents> {
    let some = |times: Option<u64>| times.filter(|times| *times > 0);
    let level = |level: &crate::host::cgroup::Level| {
        let facts = &level.memory;
        let found = MemoryEvents {
            path: path_of(&level.path),
            limit_reached: some(facts.events_max),
            slowed: some(facts.events_high),
            memory_and_swap_limit_reached: some(facts.events_memsw),
            kernel_memory_limit_reached: some(facts.events_kmem),
            oom: some(facts.events_oom),
            killed: some(facts.events_oom_kill),
        };
        let nothing = MemoryEvents {
            path: found.path.clone(),
            ..MemoryEvents::default()
        };
        (found != nothing).then_some(found)
    };
    chain.levels.iter().filter_map(level).collect()
}
