//! The room that is left under every limit that can refuse a postmaster's next fork. Pure.
//!
//! One row for each limit, as the kernel would compute it, in units and in backends like those
//! that run. `check` shows all rows; `trace` names the one that refuses next.

mod limits;
mod memory;
mod next;
mod remedies;
#[cfg(test)]
mod tests;

pub use next::{NextLimit, next};
pub(in crate::verdict) use remedies::{restart, sql};
use schemars::JsonSchema;
use serde::Serialize;

use super::{CgroupLevel, Facts, MemcgFact, Remedy};

/// A limit. Causes of refused forks have the id that the catalogue of causes gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    // In the order in which a fork meets them: the first of two equally close ones refuses.
    /// `RLIMIT_NPROC`.
    RlimitNproc,
    /// kernel.threads-max.
    ThreadsMax,
    /// Strict overcommit.
    CommitLimit,
    /// Overcommit mode 0: one mapping larger than RAM and swap.
    OvercommitHeuristic,
    /// The pid namespace has lost its first process.
    PidNamespaceDying,
    /// Numbers below kernel.pid_max.
    PidSpaceExhausted,
    /// Tasks of a pids cgroup.
    PidsCgroupMax,
    /// Memory of a cgroup; nothing in it can be killed, so a fork is refused.
    MemcgNoVictim,
    /// Memory of a v1 cgroup whose OOM killer is switched off.
    MemcgOomKillDisabled,
    /// Kernel memory of a v1 cgroup.
    MemcgKmemLimitV1,
    /// Memory of a cgroup; at the limit, a process in it is killed.
    MemcgOomKill,
    /// memory.high of a cgroup, above which its processes are slowed down.
    MemcgHigh,
    /// RAM and swap of the host; when they end, a process is killed.
    GlobalOomKill,
    /// Connection slots of the server.
    MaxConnections,
}

impl Limit {
    /// Its id in output.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::RlimitNproc => "rlimit_nproc",
            Self::ThreadsMax => "threads_max",
            Self::CommitLimit => "commit_limit",
            Self::OvercommitHeuristic => "overcommit_heuristic",
            Self::PidNamespaceDying => "pid_namespace_dying",
            Self::PidSpaceExhausted => "pid_space_exhausted",
            Self::PidsCgroupMax => "pids_cgroup_max",
            Self::MemcgNoVictim => "memcg_no_victim",
            Self::MemcgOomKillDisabled => "memcg_oom_kill_disabled",
            Self::MemcgKmemLimitV1 => "memcg_kmem_limit_v1",
            Self::MemcgOomKill => "memcg_oom_kill",
            Self::MemcgHigh => "memcg_high",
            Self::GlobalOomKill => "global_oom_kill",
            Self::MaxConnections => "max_connections",
        }
    }
}

/// What happens at a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// fork() fails with EAGAIN.
    RefusesEagain,
    /// fork() fails with ENOMEM.
    RefusesEnomem,
    /// fork() succeeds, and the OOM killer ends a process.
    Kills,
    /// Processes are slowed down.
    Slows,
    /// The server forks, and then turns the client away.
    TurnsAway,
}

/// Whose limit it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Place {
    /// The whole host.
    Host,
    /// A control group.
    Cgroup {
        /// Path below the hierarchy's root.
        path: String,
        /// 0 is the postmaster's own cgroup, 1 its parent, and so on.
        ancestor: usize,
        /// The systemd unit that manages it.
        #[serde(skip_serializing_if = "Option::is_none")]
        unit: Option<String>,
        /// The systemd property, or the cgroup file, that holds the limit.
        property: String,
        /// Container id, when the path names one.
        #[serde(skip_serializing_if = "Option::is_none")]
        container: Option<String>,
    },
    /// A user.
    User {
        /// Real uid, as the tool sees it.
        uid: u32,
    },
    /// The server itself.
    Server,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Processes and threads.
    Tasks,
    /// Process numbers.
    Numbers,
    /// Bytes.
    Bytes,
    /// Connections.
    Connections,
}

/// One limit and the room under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Row {
    /// Which limit.
    pub limit: Limit,
    /// Whose.
    pub place: Place,
    /// What happens there.
    pub effect: Effect,
    /// What is counted.
    pub unit: Unit,
    /// In use, without this program's own share.
    pub used: u64,
    /// The limit as the check compares it; absent when there is none, or `limit_unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// There is a limit, and it cannot be read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub limit_unknown: bool,
    /// Room left, in `unit`; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<u64>,
    /// More backends like those that run until the first one is refused; absent when no number of
    /// them reaches the limit, or their cost is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<u64>,
    /// `backends` may be off by this many: the kernel's counter is approximate, or caches in use
    /// may be dropped too.
    #[serde(skip_serializing_if = "is_zero")]
    pub uncertain_backends: u64,
    /// What the numbers are made of, and what could not be seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What to change, best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remedy: Vec<Remedy>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// When a limit counts as close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near {
    /// At most this many more backends.
    pub backends: u64,
    /// At most this much of the limit is left.
    pub percent: u64,
}

impl Default for Near {
    fn default() -> Self {
        Self {
            backends: 20,
            percent: 10,
        }
    }
}

impl Row {
    /// Whether this limit is close or reached.
    #[must_use]
    pub fn is_near(&self, near: Near) -> bool {
        let (Some(max), Some(room)) = (self.max, self.room) else {
            return self.backends == Some(0);
        };
        let little = u128::from(room) * 100 <= u128::from(max) * u128::from(near.percent);
        let few = self.backends.is_some_and(|more| more <= near.backends);
        little || few
    }

    fn new(limit: Limit, place: Place, effect: Effect, unit: Unit) -> Self {
        Self {
            limit,
            place,
            effect,
            unit,
            used: 0,
            max: None,
            limit_unknown: false,
            room: None,
            backends: None,
            uncertain_backends: 0,
            notes: Vec::new(),
            remedy: Vec::new(),
        }
    }
}

/// What one more backend costs, measured from those that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Cost {
    /// Backends that were measured; 0: none runs, and the postmaster's own fork is the estimate.
    pub measured_backends: u64,
    /// Tasks of one.
    pub tasks: u64,
    /// Commit charge of one: its private writable memory, used or not. The median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_bytes: Option<u64>,
    /// Anonymous memory of its own. The median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_bytes: Option<u64>,
    /// Kernel memory for one task of the postmaster's cgroup: stack, page tables, objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_bytes: Option<u64>,
}

/// A level of the memory controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryLevel {
    /// Which cgroup, its limits, and who manages them.
    pub fact: MemcgFact,
    /// Part of what is in use that the kernel takes back before it refuses, bytes.
    pub reclaimable: u64,
    /// Part of it that may be taken back as well: file pages in use, of programs for one.
    pub cache_in_use: u64,
    /// Shared memory and tmpfs in what is in use, bytes.
    pub shmem: Option<u64>,
    /// `memory.high`, bytes.
    pub high: Option<u64>,
    /// v2: what is left under `memory.swap.max`, bytes; absent: no limit.
    pub swap_room: Option<u64>,
    /// v2: `memory.oom.group`, all processes are killed together.
    pub oom_group: bool,
    /// Whether the OOM killer may end any process in it or below it.
    pub killable: Option<bool>,
}

/// `RLIMIT_NPROC` of the postmaster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NprocFacts {
    /// Real uid.
    pub uid: u32,
    /// User namespace of the postmaster.
    pub userns_inum: Option<u32>,
    /// Tasks of the uid in it (before 5.14: on the host), without this program.
    pub tasks: u64,
    /// Tasks of the uid that may or may not be in it.
    pub uncertain: u64,
    /// It is uid 0 of the host.
    pub root: bool,
    /// Soft limit.
    pub limit: Option<u64>,
}

/// Numbers of the pid space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PidNumbers {
    /// Taken, without this program's.
    pub taken: u64,
    /// Numbers that can be given out at all.
    pub usable: u64,
    /// The postmaster is in another pid namespace, which has so many tasks; its own pid_max cannot
    /// be read.
    pub inner: Option<u64>,
}

/// Connection slots of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Taken by clients.
    pub used: u64,
    /// max_connections.
    pub max: u64,
    /// Of these, kept for superusers and for roles that may use reserved ones.
    pub reserved: u64,
    /// max_connections is given where the server is started, which comes before all files.
    pub on_command_line: bool,
}

/// Whether what the files say is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Written {
    /// As far as anybody can tell.
    #[default]
    InForce,
    /// They say another number, from the next restart on.
    Pending {
        /// That.
        number: u64,
        /// And where: `500 in postgresql.auto.conf:3`.
        written: String,
    },
    /// Perhaps not.
    Unsure {
        /// Changed after the server started.
        file: String,
        /// Why it is not known what the server was started with.
        why: String,
    },
}

impl Written {
    /// The number after the next restart, where that is known to be another.
    pub(super) fn pending(&self) -> Option<u64> {
        match self {
            Self::Pending { number, .. } => Some(*number),
            Self::InForce | Self::Unsure { .. } => None,
        }
    }
}

/// How a command gets to the server, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Owner of its processes.
    pub uid: u32,
    /// Name of that user on this host.
    pub user: Option<String>,
    /// Directory of its Unix socket, as the server sees it.
    pub socket_dir: Option<String>,
    /// TCP port, also in the name of that socket.
    pub port: Option<u16>,
    /// Directory of its programs, as the server sees it.
    pub programs: Option<String>,
    /// Data directory, as the server sees it.
    pub data_dir: String,
    /// The file that its standard error is, as the server sees it.
    pub log: Option<String>,
    /// It sees other files than this program does.
    pub elsewhere: bool,
}

/// Everything that the rows are computed from. Absent means: could not be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadroomFacts {
    /// The host and the postmaster, as for a verdict. `memory.committed_as` without this program.
    pub host: Facts,
    /// How a command gets to the server.
    pub access: Access,
    /// Kernel version, for what cannot be told otherwise.
    pub kernel: (u32, u32),
    /// `SwapFree`, bytes.
    pub swap_free: Option<u64>,
    /// Shared memory and tmpfs in use on the host, bytes.
    pub shmem: Option<u64>,
    /// Address space of the postmaster, in pages.
    pub total_vm_pages: Option<u64>,
    /// The postmaster has CAP_SYS_ADMIN on the host.
    pub cap_sys_admin: bool,
    /// The postmaster has CAP_SYS_RESOURCE on the host.
    pub cap_sys_resource: bool,
    /// The largest single mapping that its fork charges, bytes.
    pub largest_charge: Option<u64>,
    /// What a backend costs.
    pub cost: Cost,
    /// pids limits from the postmaster's own cgroup upwards, without this program.
    pub pids: Vec<CgroupLevel>,
    /// Levels of the memory controller, likewise.
    pub memory: Vec<MemoryLevel>,
    /// Whether the OOM killer may end any process of the server.
    pub killable: Option<bool>,
    /// `RLIMIT_NPROC`.
    pub nproc: Option<NprocFacts>,
    /// The pid space.
    pub numbers: Option<PidNumbers>,
    /// The pid namespace for children has its first process.
    pub pid_namespace_alive: Option<bool>,
    /// Connection slots.
    pub slots: Option<Slots>,
    /// What the files say of max_connections.
    pub max_connections: Written,
}

/// One row for each limit: what refuses first comes first, limits that backends cannot reach last.
#[must_use]
pub fn headroom(facts: &HeadroomFacts) -> Vec<Row> {
    let mut rows: Vec<Row> = limits::rows(facts);
    rows.extend(memory::rows(facts));
    for row in &mut rows {
        remedies::lasting(&mut row.remedy);
    }
    rows.sort_by_key(|row| {
        let reached = row.backends.is_none();
        // Being slowed down refuses nobody.
        let slows = row.effect == Effect::Slows;
        (reached, row.backends, slows, row.limit)
    });
    rows
}

/// The limit that ends the growth of this server: the first row that is not only a slowdown.
#[must_use]
pub fn first(rows: &[Row]) -> Option<&Row> {
    rows.iter()
        .find(|row| row.backends.is_some() && row.effect != Effect::Slows)
}
