//! Where the limits of a server were set, and what in it contradicts itself.

mod limits;
mod units;

use std::collections::HashSet;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use super::{host::Host, report::time_of, server::Server};
use crate::{
    gather::text,
    host::{
        Root, cgroup,
        config::{self, Line},
        memory, process, sysctl,
    },
    verdict::findings::{FileSetting, FindingFacts},
};

/// Settings of the kernel that a fork can run into.
const SYSCTLS: [&str; 9] = [
    "vm.overcommit_memory",
    "vm.overcommit_ratio",
    "vm.overcommit_kbytes",
    "vm.admin_reserve_kbytes",
    "vm.user_reserve_kbytes",
    "vm.nr_hugepages",
    "vm.max_map_count",
    "kernel.threads-max",
    "kernel.pid_max",
];
/// Settings of the server that decide how many processes it may have, and how large.
const SETTINGS: [&str; 10] = [
    "max_connections",
    "superuser_reserved_connections",
    "reserved_connections",
    "max_worker_processes",
    "autovacuum_max_workers",
    "max_wal_senders",
    "shared_buffers",
    "huge_pages",
    "work_mem",
    "update_process_title",
];
/// Processes that every server has: checkpointer, writers, launchers, archiver, logger, and some spare.
const OWN_PROCESSES: u64 = 10;

/// One line that sets a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Origin {
    /// `vm.overcommit_ratio`, `TasksMax`, `nproc`, `max_connections`.
    pub key: String,
    /// As written.
    pub value: String,
    /// The unit, the user or group of limits.conf; absent for the whole host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// File; absent for what no file sets.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Without a file: what sets it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Line in it, from 1.
    pub line: usize,
    /// When the file was last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
    /// Another line overrides this one.
    pub overridden: bool,
    /// Why nobody applies this line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_applied: Option<String>,
    /// What is in force now, where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
}

impl Origin {
    fn new(line: &Line) -> Self {
        Self {
            key: line.key.clone(),
            value: line.value.clone(),
            target: line.target.clone(),
            file: text(line.file.as_os_str()),
            source: String::new(),
            line: line.line,
            modified: line.modified.and_then(time_of),
            overridden: false,
            not_applied: None,
            now: None,
        }
    }

    /// Lines that override each other have the same.
    fn subject(&self) -> (String, String) {
        let key = match self.key.as_str() {
            // Writing one sets the other to 0 (mm/util.c `overcommit_kbytes_handler`, 5.10 to 7.2).
            "vm.overcommit_kbytes" => "vm.overcommit_ratio",
            key => key,
        };
        (key.to_owned(), self.target.clone())
    }

    fn applies(&self) -> bool {
        !self.overridden && self.not_applied.is_none()
    }

    fn setting(&self, now: Option<String>) -> FileSetting {
        FileSetting {
            key: match self.target.as_str() {
                "" => self.key.clone(),
                target => format!("{target} {}", self.key),
            },
            value: self.value.clone(),
            place: format!("{}:{}", self.file, self.line),
            now,
        }
    }
}

/// Reads where everything was set; the facts for findings come along.
pub(super) fn of_server(
    root: &Root,
    host: &Host,
    server: &Server<'_>,
) -> (Vec<Origin>, FindingFacts) {
    let mut facts = FindingFacts {
        headroom: server.headroom.clone(),
        ..FindingFacts::default()
    };
    let mut all = sysctls(root, &mut facts);
    all.extend(containers(server));
    let rlimits = process::limits(root, server.postmaster.pid).ok().flatten();
    let rlimits = rlimits.unwrap_or_default();
    let units = units::origins(root, host, server, &rlimits, &mut facts);
    all.extend(units);
    // What is in a container has files of its own.
    if server.postmaster.container.is_none() {
        all.extend(limits::origins(root, server, &rlimits, &mut facts));
    }
    all.extend(settings(server));
    settings_facts(root, host, server, &mut facts);
    facts.max_map_count = sysctl::sysctl_number(root, "vm/max_map_count")
        .ok()
        .flatten();
    facts.oom_score_adj = (server.oom_score_adj, server.child_oom_score_adj);
    let adjust = process::variable(root, server.postmaster.pid, "PG_OOM_ADJUST_FILE");
    facts.oom_adjust = adjust.map(|file| file.is_some());
    (all, facts)
}

/// Marks all but the last of each key and target that is applied.
fn mark(origins: &mut [Origin]) {
    let mut winners = HashSet::new();
    for origin in origins.iter_mut().rev() {
        origin.overridden = origin.not_applied.is_none() && !winners.insert(origin.subject());
    }
}

fn sysctls(root: &Root, facts: &mut FindingFacts) -> Vec<Origin> {
    let lines = config::sysctl_lines(root, &SYSCTLS);
    let mut origins: Vec<Origin> = lines.iter().map(Origin::new).collect();
    let by_systemd = root.join(Path::new("/run/systemd/system")).is_dir();
    let unread = |origin: &&mut Origin| by_systemd && origin.file == config::SYSCTL_CONF;
    for origin in origins.iter_mut().filter(unread) {
        let why = "systemd does not read this file at boot, as nothing in sysctl.d is a link to it";
        origin.not_applied = Some(why.to_owned());
        facts.unread_sysctls.push(origin.setting(None));
    }
    mark(&mut origins);
    for origin in origins.iter_mut().filter(|origin| origin.applies()) {
        let path = origin.key.replace('.', "/");
        let now = sysctl::read_sysctl(root, &path).ok().flatten();
        origin.now = now.filter(|now| !same_number(now, &origin.value));
        facts.sysctls.push(origin.setting(origin.now.clone()));
    }
    origins
}

/// Limits of the container's own cgroup, which no file of this host has.
fn containers(server: &Server<'_>) -> Vec<Origin> {
    let limits = [("pids.max", &server.pids), ("memory.max", &server.memory)];
    let levels = limits.iter().flat_map(|(key, chain)| {
        let levels = chain.iter().flat_map(|chain| &chain.levels);
        levels.map(move |level| (*key, level))
    });
    let origins = levels.filter_map(|(key, level)| {
        let container = cgroup::container_of(&level.path)?;
        let limit = level.pids.max.or(level.memory.max_bytes)?.value()?;
        (container.cgroup == level.path).then(|| Origin {
            key: key.to_owned(),
            value: limit.to_string(),
            target: container.short().to_owned(),
            file: String::new(),
            source: format!("set by {}", container.runtime.name()),
            line: 0,
            modified: None,
            overridden: false,
            not_applied: None,
            now: None,
        })
    });
    origins.collect()
}

fn same_number(a: &str, b: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    a == b || number(a).is_some() && number(a) == number(b)
}

fn settings(server: &Server<'_>) -> Vec<Origin> {
    let found = SETTINGS.iter().filter_map(|name| {
        let setting = server.settings.set.get(*name)?;
        let now = server.in_force.other(&server.settings, name);
        Some(Origin {
            key: (*name).to_owned(),
            value: setting.value.clone(),
            target: String::new(),
            file: setting
                .file
                .as_ref()
                .map(|file| text(file.as_os_str()))
                .unwrap_or_default(),
            source: match setting.file {
                Some(_) => String::new(),
                None => "the command line".to_owned(),
            },
            line: setting.line,
            modified: setting.modified.and_then(time_of),
            overridden: false,
            not_applied: None,
            now: now.map(|now| now.to_string()),
        })
    });
    found.collect()
}

/// The pool that the server takes from: of the size in huge_page_size (PostgreSQL 14 and later),
/// else of the default size. All, free and reserved pages, and their size.
fn huge_pages(root: &Root, host: &Host, size: u64) -> Option<(u64, u64, u64, u64)> {
    let info = host.info.as_ref()?;
    if size == 0 || info.huge_page_bytes == Some(size) {
        let [Some(all), Some(free), Some(reserved)] = info.huge_pages else {
            return None;
        };
        return Some((all, free, reserved, info.huge_page_bytes?));
    }
    let (all, free, reserved) = memory::huge_page_pool(root, size).ok().flatten()?;
    Some((all, free, reserved, size))
}

fn settings_facts(root: &Root, host: &Host, server: &Server<'_>, facts: &mut FindingFacts) {
    let set = &server.settings;
    let number = |name, default| server.in_force.number(set, name, default);
    facts.max_connections = number("max_connections", 100);
    let version = server.major_version().unwrap_or(0);
    // Before 12 wal senders are among the connections.
    let senders = match version {
        ..12 => Some(0),
        _ => number("max_wal_senders", 10),
    };
    let parts = [
        facts.max_connections,
        number("max_worker_processes", 8),
        number("autovacuum_max_workers", 3),
        senders,
        if version >= 18 {
            number("io_workers", 3)
        } else {
            Some(0)
        },
        Some(OWN_PROCESSES),
    ];
    facts.most_tasks = parts
        .into_iter()
        .try_fold(0_u64, |sum, part| Some(sum.saturating_add(part?)));
    facts.shared_buffers = set.bytes("shared_buffers", 8192, 128 << 20);
    facts.huge_pages = set.text("huge_pages").map(str::to_owned);
    facts.work_mem = set.bytes("work_mem", 1024, 4 << 20);
    facts.shared = server.shared;
    facts.huge = huge_pages(
        root,
        host,
        set.bytes("huge_page_size", 1024, 0).unwrap_or(0),
    );
    facts.pending_settings = server.in_force.pending(set);
    facts.newer_settings = server.in_force.newer(set, "max_connections");
}
