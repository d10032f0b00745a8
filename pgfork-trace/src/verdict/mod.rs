//! From a refusal to a verdict. Pure: nothing here reads a file, a clock or the kernel.

mod candidates;
mod causes;
pub mod client;
mod decide;
mod evidence;
mod facts;
pub mod findings;
pub mod headroom;
mod memcg;
pub mod memory;
pub mod oom;
pub(crate) mod overcommit;
mod privilege;
mod remedy;
#[cfg(test)]
mod tests;

pub use causes::{Cause, CauseEntry, catalogue};
pub use evidence::{
    CgroupLevel, Evidence, MemcgEvidence, MemcgLevel, NprocEvidence, NprocLevelEvidence,
    OpenFilesEvidence, OvercommitEvidence, PidNamespaceLevel, ProcessEvidence, ThreadsEvidence,
    UserTasks,
};
pub use facts::{
    BackendCost, CgroupFact, Coverage, Facts, HardLimits, KillableFact, LogFact, MemcgFact,
    MemoryFacts, OvercommitSettings, UnitFact,
};
pub use remedy::{Change, Remedy};

use pgfork_trace_common::{Attempt, Check, source, syscall, valid};
use schemars::JsonSchema;
use serde::Serialize;

use crate::kernel::plan;

/// How sure the verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// The refusing check itself was seen returning the error, with its own numbers.
    Observed,
    /// The check is inline or was not hooked: stages before it passed, stages after it
    /// were not reached or not visible, and its numbers fit.
    Deduced,
    /// Neither.
    Unknown,
}

impl Certainty {
    /// The word used in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Deduced => "deduced",
            Self::Unknown => "unknown",
        }
    }
}

/// Whose limit it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Scope {
    /// The whole host.
    Host,
    /// A control group.
    Cgroup {
        /// Path below the hierarchy's root; absent when the id could not be resolved.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// Inode number of the cgroup's directory.
        cgroup_id: u64,
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
    /// A user in a user namespace.
    User {
        /// Real uid in the initial user namespace; absent above the process's own user
        /// namespace, where whoever created the namespace below is counted.
        #[serde(skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
        /// Inode number of the user namespace whose count it is.
        userns_inum: u32,
        /// 0 is the process's own user namespace, 1 its parent, and so on.
        ancestor: usize,
    },
    /// A pid namespace.
    PidNamespace {
        /// Inode number.
        inum: u32,
        /// Depth; 0 is the host's.
        level: u32,
        /// 0 is the namespace for the process's children, 1 its parent, and so on.
        ancestor: usize,
    },
    /// The process itself: what was set on it, or how it was started.
    Process,
}

/// One failing return that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TrailEntry {
    /// Kernel function.
    pub function: &'static str,
    /// What it returned: `-ENOMEM`, `NULL`, `true`, `false`.
    pub returned: String,
}

/// The check that refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CheckSeen {
    /// Kernel function the check sits in.
    pub function: &'static str,
    /// Functions that lead to it, outermost first; the compiler may have inlined some.
    pub path: Vec<&'static str>,
    /// What it returned, when it was seen returning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returned: Option<String>,
}

/// A cause that was looked at and does not explain the refusal, or might.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Considered {
    /// The check's name.
    pub what: &'static str,
    /// Numbers that speak for or against it.
    pub why: String,
}

/// What refused one fork, how sure that is, and what to change.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Verdict {
    /// Id in the catalogue of causes.
    pub cause: Cause,
    /// How sure.
    pub certainty: Certainty,
    /// Why it is that sure: one sentence.
    pub because: String,
    /// Whose limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The check that refused, where one was identified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckSeen>,
    /// Failing returns seen, deepest first.
    pub trail: Vec<TrailEntry>,
    /// Last stage of the fork that was seen to be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'static str>,
    /// Numbers read at the refusal or right after it.
    pub evidence: Evidence,
    /// What to change; empty when no limit was proven.
    pub remedy: Vec<Remedy>,
    /// Other checks whose numbers also fit, in kernel order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_possible: Vec<Considered>,
    /// Limits behind it that are full as well: without this cause they would have refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_full: Vec<Considered>,
    /// Checks that do not explain it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ruled_out: Vec<Considered>,
    /// Checks that could not be watched and might matter here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_seen: Vec<String>,
}

/// The verdict on one refusal.
#[must_use]
pub fn judge(attempt: &Attempt, facts: &Facts, coverage: &Coverage) -> Verdict {
    let evidence = evidence::collect(attempt, facts);
    let decision = decide::decide(attempt, &evidence, coverage);
    let scope = remedy::scope(decision.cause, &evidence);
    let remedy = remedy::remedies(decision.cause, &evidence, facts);
    Verdict {
        cause: decision.cause,
        certainty: decision.certainty,
        because: decision.because,
        scope,
        check: decision.check.map(|check| check_seen(check, attempt)),
        trail: trail(attempt),
        stage: stage(attempt),
        evidence,
        remedy,
        also_possible: decision.also_possible,
        also_full: decision.also_full,
        ruled_out: decision.ruled_out,
        not_seen: decision.not_seen,
    }
}

/// Name of an errno given as a kernel result, for example `ENOMEM` for -12.
#[must_use]
pub fn errno_name(ret: i32) -> String {
    let name = match -ret {
        libc::EPERM => "EPERM",
        libc::EINTR => "EINTR",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::EMFILE => "EMFILE",
        libc::ENOSPC => "ENOSPC",
        libc::ENOSYS => "ENOSYS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EUSERS => "EUSERS",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}

/// The system call of an attempt, where that was seen.
#[must_use]
pub fn call_name(attempt: &Attempt) -> Option<&'static str> {
    if attempt.source != source::SYSCALL {
        return None;
    }
    match attempt.syscall & syscall::NUMBER {
        syscall::CLONE => Some("clone"),
        syscall::FORK => Some("fork"),
        syscall::VFORK => Some("vfork"),
        syscall::CLONE3 => Some("clone3"),
        _ => None,
    }
}

fn returned(check: Check, ret: i32) -> String {
    match (check, ret) {
        (_, ..0) => format!("-{}", errno_name(ret)),
        (Check::IsRlimitOverlimit, _) => "true".to_owned(),
        (Check::MemCgroupOutOfMemory, _) => "false".to_owned(),
        _ => "NULL".to_owned(),
    }
}

fn failed_checks(attempt: &Attempt) -> impl DoubleEndedIterator<Item = (Check, i32)> {
    attempt
        .trail
        .iter()
        .take(attempt.trail_len as usize)
        .filter_map(|failed| Some((Check::from_number(failed.check)?, failed.ret)))
}

fn trail(attempt: &Attempt) -> Vec<TrailEntry> {
    let mut trail: Vec<TrailEntry> = failed_checks(attempt)
        .map(|(check, ret)| TrailEntry {
            function: plan::row(check).function(),
            returned: returned(check, ret),
        })
        .collect();
    if attempt.source == source::KERNEL_CLONE && attempt.valid & valid::RET != 0 {
        trail.push(TrailEntry {
            function: plan::row(Check::KernelClone).function(),
            returned: returned(Check::KernelClone, attempt.ret),
        });
    }
    trail
}

fn check_seen(check: Check, attempt: &Attempt) -> CheckSeen {
    let row = plan::row(check);
    CheckSeen {
        function: row.function(),
        path: row.path.to_vec(),
        returned: failed_checks(attempt)
            .find(|(failed, _)| *failed == check)
            .map(|(check, ret)| returned(check, ret)),
    }
}

/// The last stage in kernel order whose function was reached. Functions that
/// return after a later stage was entered (`kernel_clone`, `copy_process`) do not count.
fn stage(attempt: &Attempt) -> Option<&'static str> {
    Check::ALL
        .into_iter()
        .skip(Check::ArchDupTaskStruct as usize)
        .take_while(|check| check.is_stage())
        .filter(|check| attempt.stages & check.bit() != 0)
        .last()
        .map(|check| plan::row(check).function())
}
