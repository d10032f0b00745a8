//! Settings that contradict each other, or what the files say. Pure.

mod commands;

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    MemoryFacts, OvercommitSettings,
    headroom::{self, HeadroomFacts, Limit, Row},
};
use crate::output::units::{bytes, count};

/// What is wrong, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingId {
    /// Strict overcommit, no swap, and a limit below RAM.
    StrictWithoutSwap,
    /// Huge pages are set aside and not used; they lower the commit limit.
    HugePagesUnused,
    /// The pool of huge pages cannot hold shared_buffers.
    HugePagesTooFew,
    /// A limit allows fewer tasks than the server's settings.
    FewerTasksThanConnections,
    /// Nothing of the server can be killed: at a memory limit forks are refused.
    NothingKillable,
    /// The postmaster is as likely to be killed as its backends.
    PostmasterKillable,
    /// The kernel has another value than the files.
    KernelDiffersFromFiles,
    /// A file was changed after the server started: what it sets is not in force, or may not be.
    SettingsNewerThanServer,
    /// Shared memory that the server has not used yet takes most of what a memory limit leaves.
    SharedMemoryNotFilled,
    /// work_mem of all connections together is more than the host has.
    WorkMemExceedsMemory,
    /// vm.max_map_count is below the kernel's default.
    LowMaxMapCount,
    /// limits.conf sets a limit for this user that does not apply to services.
    LimitsConfNotApplied,
    /// /etc/sysctl.conf sets something, and nothing applies it at boot.
    SysctlConfNotApplied,
    /// PG_OOM_ADJUST_FILE is set, and the children are as exempt as the postmaster all the same.
    OomAdjustWithoutEffect,
    /// The postmaster is exempt from the OOM killer, and its children with it.
    OomAdjustNotSet,
}

/// One contradiction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// Which.
    pub id: FindingId,
    /// What it is and what follows, with numbers.
    pub text: String,
    /// What to type against it, where a command does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// What a file sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSetting {
    /// `vm.overcommit_ratio`, `TasksMax`, `nproc`.
    pub key: String,
    /// As written.
    pub value: String,
    /// `/etc/sysctl.d/x.conf:3`.
    pub place: String,
    /// What is in force now, where it is another.
    pub now: Option<String>,
}

impl FileSetting {
    /// `500 in postgresql.auto.conf:3`, or `100 by default` where no file sets it.
    #[must_use]
    pub fn written(&self) -> String {
        match self.place.as_str() {
            "" => format!("{} by default", self.value),
            place => format!("{} in {place}", self.value),
        }
    }
}

/// Everything that findings are made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FindingFacts {
    /// As for the rows.
    pub headroom: HeadroomFacts,
    /// PostgreSQL: most processes at one time, by the settings: connections, workers, senders, helpers.
    pub most_tasks: Option<u64>,
    /// max_connections.
    pub max_connections: Option<u64>,
    /// `shared_buffers`, bytes.
    pub shared_buffers: Option<u64>,
    /// The shared memory segment, which holds more than shared_buffers: bytes, and whether it is of
    /// huge pages.
    pub shared: Option<(u64, bool)>,
    /// `huge_pages`: on, off, try.
    pub huge_pages: Option<String>,
    /// `work_mem`, bytes.
    pub work_mem: Option<u64>,
    /// Huge pages of the size that the server takes: all, free, reserved; and their size in bytes.
    pub huge: Option<(u64, u64, u64, u64)>,
    /// oom_score_adj of the postmaster, and the highest of its children.
    pub oom_score_adj: (Option<i32>, Option<i32>),
    /// `vm.max_map_count`.
    pub max_map_count: Option<u64>,
    /// Settings that change when the server is restarted.
    pub pending_settings: Vec<FileSetting>,
    /// The file that sets max_connections is newer than the server, and what is in force not known.
    pub newer_settings: Option<String>,
    /// PG_OOM_ADJUST_FILE is in the postmaster's environment.
    pub oom_adjust: Option<bool>,
    /// The unit sets it.
    pub unit_sets_oom_adjust: bool,
    /// Winning lines of sysctl.d.
    pub sysctls: Vec<FileSetting>,
    /// Lines of /etc/sysctl.conf that systemd does not read.
    pub unread_sysctls: Vec<FileSetting>,
    /// Winning lines of units.
    pub units: Vec<FileSetting>,
    /// Lines of limits.conf for this user that are not in force.
    pub user_limits: Vec<FileSetting>,
    /// The server is a service of the system, which pam_limits does not touch by itself.
    pub is_service: bool,
    /// It is started through a login all the same: PAMName=, su, runuser.
    pub logs_in: bool,
}

/// The default of vm.max_map_count (`DEFAULT_MAX_MAP_COUNT`, include/linux/mm.h).
const DEFAULT_MAX_MAP_COUNT: u64 = 65530;

/// All findings, what ends in refused forks first.
#[must_use]
pub fn findings(facts: &FindingFacts, rows: &[Row]) -> Vec<Finding> {
    [
        refusals(facts, rows),
        kills(facts),
        huge_pages(facts),
        files(facts),
        not_filled(facts, rows),
        sizes(facts),
        logins(facts),
    ]
    .concat()
}

/// A finding, where there is something to say.
fn told(id: FindingId, text: Option<String>, command: Option<String>) -> Option<Finding> {
    text.map(|text| Finding { id, text, command })
}

fn refusals(facts: &FindingFacts, rows: &[Row]) -> Vec<Finding> {
    let host = &facts.headroom.host;
    let strict = host
        .memory
        .zip(host.overcommit)
        .and_then(|(memory, settings)| {
            let command = commands::strict(settings);
            told(
                FindingId::StrictWithoutSwap,
                strict(&memory, settings),
                command,
            )
        });
    let few = rows.iter().filter_map(|row| {
        let command = commands::more_tasks(facts, row);
        told(
            FindingId::FewerTasksThanConnections,
            too_few(facts, row),
            command,
        )
    });
    strict.into_iter().chain(few).collect()
}

fn kills(facts: &FindingFacts) -> Vec<Finding> {
    let unit = facts.headroom.host.unit.as_deref();
    let nothing = told(
        FindingId::NothingKillable,
        nothing_killable(facts),
        commands::expose_children(unit),
    );
    let adjust = oom_adjust(facts);
    let postmaster = told(
        FindingId::PostmasterKillable,
        postmaster_killable(facts).filter(|_| adjust.is_none()),
        commands::protect_postmaster(unit),
    );
    [nothing, adjust, postmaster]
        .into_iter()
        .flatten()
        .collect()
}

fn postmaster_killable(facts: &FindingFacts) -> Option<String> {
    let (own, children) = facts.oom_score_adj;
    let (own, children) = own.zip(children)?;
    (own >= children && own > -1000).then(|| {
        format!(
            "oom_score_adj is {own} for the postmaster and {children} for its children: the OOM killer may end the postmaster first, and all connections with it; OOMScoreAdjust=-900 in the unit, PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj for the children"
        )
    })
}

fn huge_pages(facts: &FindingFacts) -> Vec<Finding> {
    let needed = facts
        .huge
        .map(|(all, free, reserved, _)| all - free.saturating_sub(reserved).min(all));
    let unused = told(
        FindingId::HugePagesUnused,
        huge_unused(facts),
        needed.map(commands::huge_pages),
    );
    let too_few = told(
        FindingId::HugePagesTooFew,
        huge_too_few(facts),
        commands::enough_huge_pages(facts),
    );
    [unused, too_few].into_iter().flatten().collect()
}

/// What files say and the kernel or the server does not have.
fn files(facts: &FindingFacts) -> Vec<Finding> {
    let user_limits = facts.user_limits.iter().filter(|_| facts.is_logged_in());
    let set = facts.sysctls.iter().chain(&facts.units).chain(user_limits);
    let differing = set.filter_map(|setting| {
        let command = commands::as_in_file(facts, setting);
        told(FindingId::KernelDiffersFromFiles, differs(setting), command)
    });
    let not_read = facts.unread_sysctls.iter().map(|setting| Finding {
        id: FindingId::SysctlConfNotApplied,
        text: format!(
            "{} = {} in {} is not applied at boot: systemd reads sysctl.d only, and no file there is a link to it",
            setting.key, setting.value, setting.place
        ),
        command: Some("ln -s ../sysctl.conf /etc/sysctl.d/99-sysctl.conf".to_owned()),
    });
    let restart = headroom::restart(&facts.headroom);
    let pending = facts.pending_settings.iter().filter_map(|setting| {
        let id = FindingId::SettingsNewerThanServer;
        told(id, pending(setting), restart.clone())
    });
    let newer = facts.newer_settings.iter().map(|file| Finding {
        id: FindingId::SettingsNewerThanServer,
        text: format!(
            "{file} was changed after the server started: max_connections in it may not be in force yet"
        ),
        command: None,
    });
    differing
        .chain(not_read)
        .chain(pending)
        .chain(newer)
        .collect()
}

/// Memory rows count what is in use: shared_buffers are charged page by page, as they fill
/// (mm/shmem.c `shmem_get_folio`, by older names before 6.0).
fn not_filled(facts: &FindingFacts, rows: &[Row]) -> Vec<Finding> {
    let Some((segment, false)) = facts.shared else {
        return Vec::new();
    };
    let text = |row: &Row| {
        let (used, place) = match (row.limit, &row.place) {
            (Limit::GlobalOomKill, _) => (facts.headroom.shmem, "the host".to_owned()),
            (
                Limit::MemcgOomKill | Limit::MemcgNoVictim | Limit::MemcgOomKillDisabled,
                headroom::Place::Cgroup { ancestor, path, .. },
            ) => {
                let level = facts.headroom.memory.get(*ancestor);
                (level.and_then(|level| level.shmem), path.clone())
            }
            _ => return None,
        };
        let to_come = segment.saturating_sub(used?);
        let room = row.room?;
        row.max?;
        (to_come > room / 2).then(|| {
            format!(
                "{} is left in {place}, and {} of the server's shared memory is not in use yet: it will be, as shared_buffers fill, and room for {} is left then",
                bytes(room),
                bytes(to_come),
                bytes(room.saturating_sub(to_come))
            )
        })
    };
    let all = rows
        .iter()
        .filter_map(|row| told(FindingId::SharedMemoryNotFilled, text(row), None));
    all.collect()
}

fn sizes(facts: &FindingFacts) -> Vec<Finding> {
    let work_mem = told(
        FindingId::WorkMemExceedsMemory,
        work_mem(facts),
        commands::less_work_mem(facts),
    );
    let low = facts.max_map_count.filter(|it| *it < DEFAULT_MAX_MAP_COUNT);
    let mappings = told(
        FindingId::LowMaxMapCount,
        low.map(|it| {
            format!(
                "vm.max_map_count = {it} is below the default of {DEFAULT_MAX_MAP_COUNT}: backends with many mappings get \"out of memory\"; a fork is not refused by it"
            )
        }),
        Some(format!("sysctl vm.max_map_count={DEFAULT_MAX_MAP_COUNT}")),
    );
    [work_mem, mappings].into_iter().flatten().collect()
}

/// Limits for logins, which this server is none of.
fn logins(facts: &FindingFacts) -> Vec<Finding> {
    let unit = facts.headroom.host.unit.as_deref();
    let limits = facts.user_limits.iter().filter(|_| !facts.is_logged_in());
    let not_applied = limits.filter_map(|setting| {
        let text = setting.now.as_ref().map(|now| {
            format!(
                "{} {} ({}) does not apply to this server, which has {now}: pam_limits acts at logins, services have LimitNPROC=",
                setting.key, setting.value, setting.place
            )
        });
        let command = commands::limit_of_unit(unit, setting);
        told(FindingId::LimitsConfNotApplied, text, command)
    });
    not_applied.collect()
}

impl FindingFacts {
    /// pam_limits acts on this server.
    fn is_logged_in(&self) -> bool {
        !self.is_service || self.logs_in
    }
}

fn strict(memory: &MemoryFacts, settings: OvercommitSettings) -> Option<String> {
    let low =
        settings.mode == 2 && memory.swap_total == 0 && memory.commit_limit < memory.mem_total;
    low.then(|| {
        format!(
            "vm.overcommit_memory = 2 without swap: only {} may be promised of {} of RAM (vm.overcommit_ratio = {}{}); the rest can hold file cache, but no process",
            bytes(memory.commit_limit),
            bytes(memory.mem_total),
            settings.ratio,
            match settings.kbytes {
                0 => String::new(),
                kbytes => format!(", overridden by vm.overcommit_kbytes = {kbytes}"),
            }
        )
    })
}

/// The server alone could fill the limit, whatever else counts towards it.
fn too_few(facts: &FindingFacts, row: &Row) -> Option<String> {
    let counts_tasks = matches!(
        row.limit,
        Limit::PidsCgroupMax | Limit::RlimitNproc | Limit::ThreadsMax | Limit::PidSpaceExhausted
    );
    let most = facts.most_tasks.filter(|_| counts_tasks)?;
    let max = row.max.filter(|max| *max < most)?;
    let place = match &row.place {
        headroom::Place::Cgroup { path, .. } => format!(" of {path}"),
        _ => String::new(),
    };
    Some(format!(
        "{}{place} allows {} tasks, but by its settings this server may run {}: max_connections {}, workers, senders, and its own processes",
        row.limit.id(),
        count(max),
        count(most),
        facts
            .max_connections
            .map_or_else(|| "unknown".to_owned(), count)
    ))
}

fn nothing_killable(facts: &FindingFacts) -> Option<String> {
    // Others in the same cgroup may be killed instead.
    let own = facts.headroom.memory.first();
    let others = own.is_some_and(|level| level.killable == Some(true));
    (facts.headroom.killable == Some(false) && !others).then(|| {
        "oom_score_adj is -1000 for the postmaster and all its children: at a memory limit of its cgroup nothing can be killed, and forks are refused instead; start with PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj and PG_OOM_ADJUST_VALUE=0".to_owned()
    })
}

fn huge_unused(facts: &FindingFacts) -> Option<String> {
    let (all, free, reserved, size) = facts.huge?;
    let unused = free.saturating_sub(reserved).saturating_mul(size);
    let strict = facts
        .headroom
        .host
        .overcommit
        .is_some_and(|it| it.mode == 2);
    // A few pages more than needed are no waste worth a word.
    (all > 0 && unused > all.saturating_mul(size) / 10).then(|| {
        format!(
            "{} of {} in huge pages are set aside and not used{}",
            bytes(unused),
            bytes(all.saturating_mul(size)),
            if strict {
                ", and do not count towards the commit limit"
            } else {
                ""
            }
        )
    })
}

fn huge_too_few(facts: &FindingFacts) -> Option<String> {
    let (all, _, _, size) = facts.huge.filter(|(all, ..)| *all > 0)?;
    // The segment is larger than shared_buffers; where it cannot be seen these are the least.
    let (what, needed) = match facts.shared {
        Some((_, true)) => return None,
        Some((segment, false)) => ("the server's shared memory", segment),
        None => ("shared_buffers", facts.shared_buffers?),
    };
    let wanted = facts.huge_pages.as_deref() != Some("off");
    (wanted && all.saturating_mul(size) < needed).then(|| {
        format!(
            "the pool of huge pages ({}) cannot hold {what} ({}): with huge_pages = try the server goes without and the pool lies idle, with on it does not start",
            bytes(all.saturating_mul(size)),
            bytes(needed)
        )
    })
}

/// src/backend/postmaster/fork_process.c, PostgreSQL 10 to 18: a child writes PG_OOM_ADJUST_VALUE, or
/// 0, to the file that PG_OOM_ADJUST_FILE names; without that it keeps the postmaster's exemption.
fn oom_adjust(facts: &FindingFacts) -> Option<Finding> {
    let (Some(own), Some(children)) = facts.oom_score_adj else {
        return None;
    };
    // Up to here the unit's OOMScoreAdjust= is meant to protect the postmaster alone.
    if own > -900 || children != own {
        return None;
    }
    let (id, text) = match facts.oom_adjust? {
        true => (
            FindingId::OomAdjustWithoutEffect,
            format!(
                "PG_OOM_ADJUST_FILE is set, but the children have oom_score_adj {children} like the postmaster: PG_OOM_ADJUST_VALUE says so, or the file cannot be written to"
            ),
        ),
        false => (
            FindingId::OomAdjustNotSet,
            format!(
                "oom_score_adj is {own} for the postmaster and, as PG_OOM_ADJUST_FILE is not set, for its children: the OOM killer spares them and ends something else; {}",
                if facts.unit_sets_oom_adjust {
                    "the unit sets it, from the next restart on"
                } else {
                    "set Environment=PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj in the unit"
                }
            ),
        ),
    };
    let needed = id == FindingId::OomAdjustNotSet && !facts.unit_sets_oom_adjust;
    let unit = facts.headroom.host.unit.as_deref().filter(|_| needed);
    Some(Finding {
        id,
        text,
        command: commands::expose_children(unit),
    })
}

fn differs(setting: &FileSetting) -> Option<String> {
    let now = setting.now.as_ref()?;
    Some(format!(
        "{} = {} now, but {} in {}: changed by hand, or not applied yet",
        setting.key, now, setting.value, setting.place
    ))
}

fn pending(setting: &FileSetting) -> Option<String> {
    let now = setting.now.as_ref()?;
    Some(format!(
        "{}: {}, {now} in force until the server is restarted",
        setting.key,
        setting.written()
    ))
}

fn work_mem(facts: &FindingFacts) -> Option<String> {
    let memory = facts.headroom.host.memory?;
    let (each, most) = facts.work_mem.zip(facts.max_connections)?;
    let total = each.saturating_mul(most);
    (total > memory.mem_total).then(|| {
        format!(
            "work_mem {} for each of {} connections is {}, more than the {} of RAM; one query may use it several times",
            bytes(each),
            count(most),
            bytes(total),
            bytes(memory.mem_total)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::headroom::{Slots, headroom};
    use super::*;

    const GIB: u64 = 1 << 30;

    fn ids(facts: &FindingFacts) -> Vec<FindingId> {
        let rows = headroom(&facts.headroom);
        findings(facts, &rows).iter().map(|it| it.id).collect()
    }

    #[test]
    fn nothing_is_found_where_nothing_is_known() {
        assert_eq!(ids(&FindingFacts::default()), []);
    }

    #[test]
    fn contradictions() {
        let mut facts = FindingFacts {
            most_tasks: Some(130),
            max_connections: Some(100),
            shared_buffers: Some(2 * GIB),
            huge_pages: Some("try".to_owned()),
            work_mem: Some(GIB),
            huge: Some((512, 512, 0, 2 << 20)),
            oom_score_adj: (Some(-1000), Some(-1000)),
            max_map_count: Some(1000),
            is_service: true,
            ..FindingFacts::default()
        };
        facts.headroom.killable = Some(false);
        facts.headroom.host.page_size = 4096;
        facts.headroom.host.threads = Some((50, 120));
        facts.headroom.slots = Some(Slots {
            used: 1,
            max: 100,
            reserved: 3,
            on_command_line: false,
        });
        facts.headroom.host.overcommit = Some(OvercommitSettings {
            mode: 2,
            ratio: 50,
            ..OvercommitSettings::default()
        });
        facts.headroom.host.memory = Some(MemoryFacts {
            mem_total: 8 * GIB,
            commit_limit: 4 * GIB,
            ..MemoryFacts::default()
        });
        let line = |now: Option<&str>| FileSetting {
            key: "vm.overcommit_ratio".to_owned(),
            value: "80".to_owned(),
            place: "/etc/sysctl.d/x.conf:1".to_owned(),
            now: now.map(str::to_owned),
        };
        facts.sysctls = vec![line(Some("50")), line(None)];
        facts.user_limits = vec![line(Some("40"))];
        facts.unread_sysctls = vec![line(None)];
        assert_eq!(
            ids(&facts),
            [
                FindingId::StrictWithoutSwap,
                FindingId::FewerTasksThanConnections,
                FindingId::NothingKillable,
                FindingId::HugePagesUnused,
                FindingId::HugePagesTooFew,
                FindingId::KernelDiffersFromFiles,
                FindingId::SysctlConfNotApplied,
                FindingId::WorkMemExceedsMemory,
                FindingId::LowMaxMapCount,
                FindingId::LimitsConfNotApplied,
            ]
        );
    }

    #[test]
    fn shared_memory_that_is_not_filled_yet_is_part_of_what_is_left() {
        let mut facts = FindingFacts {
            shared: Some((4 * GIB, false)),
            ..FindingFacts::default()
        };
        facts.headroom.host.memory = Some(MemoryFacts {
            mem_total: 16 * GIB,
            mem_available: 6 * GIB,
            ..MemoryFacts::default()
        });
        facts.headroom.shmem = Some(GIB / 2);
        let rows = headroom(&facts.headroom);
        let found = findings(&facts, &rows);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].id, FindingId::SharedMemoryNotFilled);
        assert!(
            found[0].text.contains("room for 2.5 GiB is left"),
            "{found:?}"
        );
        // It is in use; or it is set aside, as huge pages.
        facts.headroom.shmem = Some(3 * GIB);
        assert_eq!(ids(&facts), []);
        facts.headroom.shmem = Some(0);
        facts.shared = Some((4 * GIB, true));
        assert_eq!(ids(&facts), []);
    }

    /// What a finding says to type is whole, or not there.
    #[test]
    fn findings_say_what_to_type() {
        let mut facts = FindingFacts {
            most_tasks: Some(130),
            max_connections: Some(100),
            work_mem: Some(GIB),
            oom_score_adj: (Some(0), Some(0)),
            ..FindingFacts::default()
        };
        facts.headroom.host.memory = Some(MemoryFacts {
            mem_total: 8 * GIB,
            ..MemoryFacts::default()
        });
        facts.headroom.host.threads = Some((50, 120));
        facts.sysctls = vec![FileSetting {
            key: "kernel.threads-max".to_owned(),
            value: "9000".to_owned(),
            place: "/etc/sysctl.d/x.conf:1".to_owned(),
            now: Some("120".to_owned()),
        }];
        let commands = |facts: &FindingFacts| {
            let rows = headroom(&facts.headroom);
            let found = findings(facts, &rows).into_iter();
            let all: Vec<(FindingId, Option<String>)> =
                found.map(|it| (it.id, it.command)).collect();
            all
        };
        let typed = |command: &str| Some(command.to_owned());
        // Nobody knows the unit, or how to get to the server.
        assert_eq!(
            commands(&facts),
            [
                (
                    FindingId::FewerTasksThanConnections,
                    typed("sysctl kernel.threads-max=180")
                ),
                (FindingId::PostmasterKillable, None),
                (
                    FindingId::KernelDiffersFromFiles,
                    typed("sysctl kernel.threads-max=9000")
                ),
                (FindingId::WorkMemExceedsMemory, None),
            ]
        );
        facts.headroom.host.unit = typed("pg.service");
        facts.headroom.access.user = typed("postgres");
        facts.headroom.access.port = Some(5432);
        facts.headroom.access.socket_dir = typed("/run/postgresql");
        let known = commands(&facts);
        let drop_in = known[1].1.as_ref().unwrap();
        assert!(drop_in.contains("pg.service.d") && drop_in.contains("OOMScoreAdjust=-900"));
        assert_eq!(
            known[3].1,
            typed(
                "runuser -u postgres -- psql -h /run/postgresql -p 5432 -d postgres -c \"ALTER SYSTEM SET work_mem = '20MB'\" -c 'select pg_reload_conf()'"
            )
        );
    }

    #[test]
    fn a_postmaster_that_is_killed_first() {
        let mut facts = FindingFacts {
            oom_score_adj: (Some(0), Some(0)),
            ..FindingFacts::default()
        };
        assert_eq!(ids(&facts), [FindingId::PostmasterKillable]);
        facts.oom_score_adj = (Some(-900), Some(0));
        assert_eq!(ids(&facts), []);
    }

    #[test]
    fn children_that_are_as_exempt_as_the_postmaster() {
        let mut facts = FindingFacts {
            oom_score_adj: (Some(-900), Some(-900)),
            ..FindingFacts::default()
        };
        // The environment cannot be read.
        assert_eq!(ids(&facts), [FindingId::PostmasterKillable]);
        facts.oom_adjust = Some(false);
        assert_eq!(ids(&facts), [FindingId::OomAdjustNotSet]);
        facts.oom_adjust = Some(true);
        facts.oom_score_adj = (Some(-1000), Some(-1000));
        assert_eq!(ids(&facts), [FindingId::OomAdjustWithoutEffect]);
        facts.oom_score_adj.1 = Some(0);
        assert_eq!(ids(&facts), []);
    }
}
