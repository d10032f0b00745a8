//! What to change, with numbers computed from the evidence.

mod container;
pub(super) mod memory;
mod process;
mod scope;
mod tasks;

use std::{fmt, ops::Deref};

use pgfork_trace_common::PIDS_MAX;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Cause, Evidence, Facts, MemoryFacts, NprocLevelEvidence, OvercommitEvidence,
    OvercommitSettings, evidence::CgroupLevel,
};

pub(super) use memory::heuristic;
pub(super) use scope::scope;

/// What to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// To be typed into a shell as it is.
    Command(String),
    /// Said in words, where no command does it.
    Action(String),
}

impl Deref for Change {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Command(text) | Self::Action(text) => text,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// A change that lets the refused fork pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Remedy {
    /// What to do.
    #[serde(flatten)]
    pub change: Change,
    /// What it gives, and what it costs.
    pub effect: String,
    /// Takes effect at once, without a restart.
    pub immediate: bool,
}

/// Smallest number of further backends that a remedy makes room for.
const FEWEST_BACKENDS: u64 = 10;
/// What a remedy aims for, where memory allows.
const WANTED_BACKENDS: u64 = 50;

pub(super) fn remedies(cause: Cause, evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    match cause {
        Cause::CommitLimit => evidence
            .overcommit
            .as_ref()
            .and_then(|overcommit| commit_limit(overcommit, facts))
            .unwrap_or_default(),
        Cause::PidsCgroupMax => pids(evidence, facts),
        Cause::RlimitNproc => nproc(evidence, facts),
        Cause::ThreadsMax => tasks::threads(evidence, facts),
        Cause::PidSpaceExhausted => tasks::numbers(evidence, facts),
        Cause::OvercommitHeuristic => evidence
            .overcommit
            .as_ref()
            .map(heuristic)
            .unwrap_or_default(),
        Cause::MemcgNoVictim => memory::no_victim(evidence, facts),
        Cause::MemcgOomKillDisabled => memory::oom_kill_disabled(evidence, facts),
        Cause::MemcgKmemLimitV1 => memory::kernel_memory(&facts.memory_cgroups),
        _ => process::remedies(cause, evidence, facts),
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Raises the commit limit so far that the fork and some more pass for certain:
/// both reserves and the counter's inexactness are on top.
pub(super) fn commit_limit(overcommit: &OvercommitEvidence, facts: &Facts) -> Option<Vec<Remedy>> {
    commit_limit_for(&BACKENDS, overcommit, facts)
}

/// What room is made for.
pub(super) struct Unit {
    /// At least so many.
    pub(super) fewest: u64,
    /// `backends like these`.
    pub(super) like_these: &'static str,
    /// `backends`.
    pub(super) many: &'static str,
}

const BACKENDS: Unit = Unit {
    fewest: FEWEST_BACKENDS,
    like_these: "backends like these",
    many: "backends",
};

/// The same for whatever is charged in units of one size.
pub(super) fn commit_limit_for(
    unit: &Unit,
    overcommit: &OvercommitEvidence,
    facts: &Facts,
) -> Option<Vec<Remedy>> {
    let settings = facts.overcommit?;
    let memory = facts.memory?;
    let charge = overcommit
        .fork_charge_bytes
        .or(overcommit.requested_bytes)?;
    let backend = overcommit
        .backend_commit_bytes
        .unwrap_or(0)
        .max(charge)
        .max(MIB);
    let reserves = overcommit
        .admin_reserve_bytes?
        .saturating_add(overcommit.user_reserve_bytes?);
    let skew = overcommit.counter_skew_bytes?;
    // The exact sum right after, the approximate counter at the refusal, and the least
    // that makes the check refuse: whichever is most, or a remedy could lower the limit.
    let committed = memory
        .committed_as
        .max(overcommit.committed_bytes.unwrap_or(0))
        .max(overcommit.usable_bytes?.saturating_sub(charge));
    let affordable = memory.mem_available / 2 / backend;
    let backends = affordable.clamp(unit.fewest, WANTED_BACKENDS);
    let taken = committed.saturating_add(reserves).saturating_add(skew);
    let target = taken.saturating_add(backends.saturating_mul(backend));

    let (command, limit) = raised_limit(&settings, &memory, target, facts.page_size);
    let mut remedies = Vec::new();
    remedies.push(Remedy {
        change: Change::Command(command),
        effect: format!(
            "room for about {} more {}{}",
            limit.saturating_sub(taken) / backend,
            unit.like_these,
            if limit > memory.mem_total.saturating_add(memory.swap_total) {
                "; promises more than RAM and swap hold, so the OOM killer may act"
            } else {
                ""
            }
        ),
        immediate: true,
    });
    let missing = target.saturating_sub(memory.commit_limit).div_ceil(MIB);
    remedies.push(Remedy {
        change: Change::Action(format!("add {missing} MiB of swap")),
        effect: match GIB / backend {
            0 => "the same; each GiB of swap raises the limit by 1 GiB".to_owned(),
            room => format!(
                "the same; each GiB of swap raises the limit by 1 GiB, room for about {room} {}",
                unit.many
            ),
        },
        immediate: true,
    });
    Some(remedies)
}

/// The setting that makes the commit limit `target` or a little more, and what it
/// makes of it: `vm_commit_limit` (mm/util.c, 5.10 to 7.2) adds all swap to either.
fn raised_limit(
    settings: &OvercommitSettings,
    memory: &MemoryFacts,
    target: u64,
    page: u64,
) -> (String, u64) {
    let without_swap = target.saturating_sub(memory.swap_total).max(page);
    if settings.kbytes > 0 {
        let kbytes = without_swap.div_ceil(page).saturating_mul(page / KIB);
        let limit = kbytes.saturating_mul(KIB).saturating_add(memory.swap_total);
        return (format!("sysctl vm.overcommit_kbytes={kbytes}"), limit);
    }
    let ram = memory.mem_total.saturating_sub(memory.hugetlb).max(1);
    let percent = (u128::from(without_swap) * 100).div_ceil(u128::from(ram));
    let percent = u64::try_from(percent).unwrap_or(u64::MAX);
    let limit = scaled(ram, percent).saturating_add(memory.swap_total);
    (format!("sysctl vm.overcommit_ratio={percent}"), limit)
}

fn scaled(ram: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(ram) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

/// Room for half as many again, at least `WANTED_BACKENDS`.
pub(super) fn raised(limit: u64) -> u64 {
    limit.saturating_add(WANTED_BACKENDS.max(limit / 2))
}

/// Raises every level that would refuse within the room that is made: the
/// refusing one alone may uncover the next.
fn pids(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    match evidence.refusing_pids() {
        Some((_, refusing)) => pids_path(&evidence.pids, refusing, facts),
        None => Vec::new(),
    }
}

/// The same for a level that is not full yet; `refusing` is one of `levels`.
pub(super) fn pids_path(
    levels: &[CgroupLevel],
    refusing: &CgroupLevel,
    facts: &Facts,
) -> Vec<Remedy> {
    let Some(limit) = refusing.limit else {
        return Vec::new();
    };
    let more = raised(limit.max(refusing.tasks)) - refusing.tasks;
    let mut remedies = Vec::new();
    for level in levels {
        let Some(limit) = level.limit else { continue };
        let target = level.tasks.saturating_add(more);
        if target <= limit {
            continue;
        }
        let effect = if std::ptr::eq(level, refusing) {
            format!("room for {more} more tasks")
        } else {
            format!(
                "needed as well: this one has {} tasks of {limit}",
                level.tasks
            )
        };
        remedies.push(raise_pids(level, target, &effect, facts));
    }
    remedies
}

fn raise_pids(level: &CgroupLevel, target: u64, effect: &str, facts: &Facts) -> Remedy {
    let effect = effect.to_owned();
    // Above this the kernel takes only "max": kernel/cgroup/pids.c `pids_max_write`.
    let (target, file_target) = if target < PIDS_MAX as u64 {
        (target.to_string(), target.to_string())
    } else {
        ("infinity".to_owned(), "max".to_owned())
    };
    if let Some(unit) = &level.unit
        && level.container.is_none()
    {
        return Remedy {
            change: Change::Command(format!(
                "systemctl set-property {} {}={target}",
                quoted(unit),
                level.property
            )),
            effect: format!("{effect}; lasts across restarts (--runtime: until the next boot)"),
            immediate: true,
        };
    }
    let known = facts.cgroups.iter().find(|fact| fact.id == level.cgroup_id);
    let file = match known {
        Some(fact) => quoted(&format!("{}/pids.max", fact.directory)),
        // Inode numbers repeat between the hierarchies of v1; only one has the file.
        None => format!(
            "\"$(find /sys/fs/cgroup -inum {} -exec test -e {{}}/pids.max \\; -print)/pids.max\"",
            level.cgroup_id
        ),
    };
    let runtime = known.and_then(|fact| fact.runtime);
    let effect = match &level.container {
        Some(container) => {
            let id = container.get(..12).unwrap_or(container);
            if let Some(command) = container::update(runtime, "--pids-limit", &target, id) {
                return Remedy {
                    change: Change::Command(command),
                    effect: format!("{effect}; until container {id} is recreated"),
                    immediate: true,
                };
            }
            let lasting = container::lasting(runtime, "its pids limit", "podPidsLimit", "pids.max");
            format!("{effect}; until container {id} is recreated: {lasting}")
        }
        None => effect,
    };
    Remedy {
        change: Change::Command(format!("echo {file_target} > {file}")),
        effect,
        immediate: true,
    }
}

/// `RLIMIT_NPROC` of a running process can be raised from outside; children inherit it.
fn nproc(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let Some(nproc) = &evidence.nproc else {
        return Vec::new();
    };
    match nproc.refusing() {
        Some((ancestor, level)) => nproc_level(ancestor, level, facts),
        None => Vec::new(),
    }
}

/// The same for one user namespace; `ancestor` counts from the process's own.
pub(super) fn nproc_level(
    ancestor: usize,
    level: &NprocLevelEvidence,
    facts: &Facts,
) -> Vec<Remedy> {
    if ancestor > 0 {
        // kernel/user_namespace.c `create_user_ns`, 6.1 to 7.2: frozen at creation.
        return vec![Remedy {
            change: Change::Action("raise RLIMIT_NPROC of the process that creates the user namespace, then recreate the container".to_owned()),
            effect: format!(
                "the limit of {} was frozen when the user namespace was made; it cannot be changed from outside",
                level.limit.unwrap_or(0)
            ),
            immediate: false,
        }];
    }
    let target = raised(level.limit.unwrap_or(0).max(level.tasks));
    let room = target - level.tasks;
    let mut remedies = vec![Remedy {
        change: Change::Command(prlimit(facts.pid, "nproc", target, facts.hard_limits.nproc)),
        effect: format!("room for {room} more tasks of this user, until the process is restarted"),
        immediate: true,
    }];
    remedies.push(match &facts.unit {
        Some(unit) => Remedy {
            change: Change::Command(drop_in(unit, &[&format!("LimitNPROC={target}")])),
            effect: "the same, from the next restart on".to_owned(),
            immediate: false,
        },
        None => Remedy {
            change: Change::Action(format!("nproc {target} for the user in /etc/security/limits.conf, or ulimit -u where it is started")),
            effect: "the same, from the next start on".to_owned(),
            immediate: false,
        },
    });
    remedies
}

/// Raises the soft limit of a running process, and the hard one only where that is in the way.
pub(super) fn prlimit(pid: u32, name: &str, target: u64, hard: Option<u64>) -> String {
    let and_hard = match hard {
        Some(hard) if hard >= target => String::new(),
        _ => target.to_string(),
    };
    format!("prlimit --pid {pid} --{name}={target}:{and_hard}")
}

/// Sets what `systemctl set-property` does not take, in a file of its own.
pub(super) fn drop_in(unit: &str, settings: &[&str]) -> String {
    let name = settings.first().and_then(|first| first.split('=').next());
    let file = |path: &str| quoted(&format!("/etc/systemd/system/{unit}.d{path}"));
    format!(
        "mkdir -p {} && printf '[Service]\\n{}\\n' > {} && systemctl daemon-reload",
        file(""),
        settings.join("\\n"),
        file(&format!("/{}.conf", name.unwrap_or("pgfork-trace")))
    )
}

/// A word for a POSIX shell: unchanged where that is safe, else in single quotes.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+,@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
