//! Where the limits of a server were set, and what in it contradicts itself.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::Serialize;

use super::{host::Host, report::time_of, server::Server};
use crate::{
    gather::text,
    host::{
        Root,
        cgroup::{self, Controller},
        config::{self, Line},
        sysctl,
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
/// Properties of units.
const PROPERTIES: [&str; 9] = [
    "TasksMax",
    "LimitNPROC",
    "LimitAS",
    "LimitDATA",
    "MemoryMax",
    "MemoryHigh",
    "MemoryLimit",
    "MemorySwapMax",
    "OOMScoreAdjust",
];
/// Defaults of the service manager.
const DEFAULTS: [&str; 3] = ["DefaultTasksMax", "DefaultLimitNPROC", "DefaultLimitAS"];
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
    /// File; absent for the server's command line.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Line in it, from 1.
    pub line: usize,
    /// When the file was last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
    /// Later lines override this one.
    pub overridden: bool,
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
            line: line.line,
            modified: line.modified.and_then(time_of),
            overridden: false,
            now: None,
        }
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
    uptime: Option<Duration>,
) -> (Vec<Origin>, FindingFacts) {
    let mut facts = FindingFacts {
        headroom: server.headroom.clone(),
        ..FindingFacts::default()
    };
    let mut all = sysctls(root, &mut facts);
    all.extend(units(root, server, &mut facts));
    all.extend(user_limits(root, server, &mut facts));
    all.extend(settings(server));
    settings_facts(host, server, uptime, &mut facts);
    facts.max_map_count = sysctl::sysctl_number(root, "vm/max_map_count")
        .ok()
        .flatten();
    facts.oom_score_adj = (server.oom_score_adj, server.child_oom_score_adj);
    (all, facts)
}

/// Marks all but the last of each key and target.
fn mark(origins: &mut [Origin]) {
    let mut winners = HashSet::new();
    for origin in origins.iter_mut().rev() {
        origin.overridden = !winners.insert((origin.key.clone(), origin.target.clone()));
    }
}

fn sysctls(root: &Root, facts: &mut FindingFacts) -> Vec<Origin> {
    let lines = config::sysctl_lines(root, &SYSCTLS);
    let mut origins: Vec<Origin> = lines.iter().map(Origin::new).collect();
    mark(&mut origins);
    for origin in origins.iter_mut().filter(|origin| !origin.overridden) {
        let path = origin.key.replace('.', "/");
        let now = sysctl::read_sysctl(root, &path).ok().flatten();
        facts.sysctls.push(origin.setting(now.clone()));
        origin.now = now.filter(|now| *now != origin.value);
    }
    origins
}

/// The unit of the server, the slices above it, and the defaults.
fn units(root: &Root, server: &Server<'_>, facts: &mut FindingFacts) -> Vec<Origin> {
    let levels = server.pids.iter().flat_map(|chain| &chain.levels);
    let limits: HashMap<String, Option<u64>> = levels
        .filter_map(|level| {
            let unit = cgroup::unit_of(&level.path).filter(|unit| unit.cgroup == level.path)?;
            debug_assert_eq!(unit.property(Controller::Pids), "TasksMax");
            Some((
                unit.unit,
                level.pids.max.and_then(crate::host::Ceiling::value),
            ))
        })
        .collect();
    let mut names: Vec<&String> = limits.keys().collect();
    names.extend(server.postmaster.unit.as_ref().map(|unit| &unit.unit));
    names.sort_unstable();
    names.dedup();
    let mut origins: Vec<Origin> = config::manager_lines(root, &DEFAULTS)
        .iter()
        .map(Origin::new)
        .collect();
    for name in names {
        let lines = config::unit_lines(root, name, &PROPERTIES);
        origins.extend(lines.iter().map(Origin::new));
    }
    mark(&mut origins);
    for origin in origins.iter_mut().filter(|origin| !origin.overridden) {
        // Only plain numbers can be compared: a share is of a number that systemd chooses.
        let plain = origin.value.parse::<u64>().is_ok();
        if origin.key == "TasksMax" && plain {
            let limit = limits.get(&origin.target);
            let now =
                limit.map(|max| max.map_or_else(|| "infinity".to_owned(), |max| max.to_string()));
            facts.units.push(origin.setting(now.clone()));
            origin.now = now.filter(|now| *now != origin.value);
        }
    }
    let service = |unit: &cgroup::UnitRef| {
        unit.kind == cgroup::UnitKind::Service && !unit.unit.starts_with("user@")
    };
    facts.is_service = server.postmaster.unit.as_ref().is_some_and(service);
    origins
}

fn user_limits(root: &Root, server: &Server<'_>, facts: &mut FindingFacts) -> Vec<Origin> {
    let uid = server.postmaster.uid;
    let name = user_name(root, uid);
    let applies = |line: &Line| {
        let target = line.target.as_str();
        target == "*"
            || name.as_deref() == Some(target)
            || target == uid.to_string()
            || target.starts_with('@')
    };
    let lines = config::limits_lines(root, &["nproc", "as", "data"]);
    let origins: Vec<Origin> = lines
        .iter()
        .filter(|line| applies(line))
        .map(Origin::new)
        .collect();
    // Groups and "*" may or may not be this user.
    facts.user_limits = origins
        .iter()
        .filter(|origin| name.as_deref() == Some(origin.target.as_str()))
        .map(|origin| origin.setting(None))
        .collect();
    origins
}

fn user_name(root: &Root, uid: u32) -> Option<String> {
    let path = root.join(std::path::Path::new("/etc/passwd"));
    let content = crate::host::read_config(&path, 1 << 20).ok()?;
    let content = String::from_utf8_lossy(&content);
    content.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn settings(server: &Server<'_>) -> Vec<Origin> {
    let found = SETTINGS.iter().filter_map(|name| {
        let setting = server.settings.set.get(*name)?;
        Some(Origin {
            key: (*name).to_owned(),
            value: setting.value.clone(),
            target: String::new(),
            file: setting
                .file
                .as_ref()
                .map(|file| text(file.as_os_str()))
                .unwrap_or_default(),
            line: setting.line,
            modified: setting.modified.and_then(time_of),
            overridden: false,
            now: None,
        })
    });
    found.collect()
}

fn settings_facts(
    host: &Host,
    server: &Server<'_>,
    uptime: Option<Duration>,
    facts: &mut FindingFacts,
) {
    let set = &server.settings;
    let number = |name, default| set.number(name, default);
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
    if let Some(info) = &host.info
        && let [Some(all), Some(free), Some(reserved)] = info.huge_pages
    {
        facts.huge = info.huge_page_bytes.map(|size| (all, free, reserved, size));
    }
    let started =
        uptime.and_then(|uptime| SystemTime::now().checked_sub(server.postmaster.age(uptime)));
    facts.newer_settings = set.set.get("max_connections").and_then(|setting| {
        // Times of files and of processes come from different clocks: a second of doubt.
        let newer = setting.modified? > started?.checked_add(Duration::from_secs(2))?;
        let file = setting.file.as_ref()?;
        newer.then(|| text(file.as_os_str()))
    });
}
