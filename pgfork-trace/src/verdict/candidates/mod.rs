//! The checks that one refusal is held against, in the kernel's order, and how their numbers stand.

mod memory;
mod tasks;

use pgfork_trace_common::{Attempt, Check};

pub(super) use tasks::{RESERVED_PIDS, numbers_left};

use super::{Cause, Evidence};

pub(super) const EAGAIN: i32 = -libc::EAGAIN;
pub(super) const ENOMEM: i32 = -libc::ENOMEM;
pub(super) const EMFILE: i32 = -libc::EMFILE;

/// How the numbers of one check stand.
pub(super) enum Numbers {
    /// They would refuse.
    Fit(String),
    /// As far as they could be read, they would refuse: good if nothing else can have.
    Near(String),
    /// They might refuse: what was read is not exact enough to tell.
    Unclear(String),
    /// They would not refuse now, but are so close that they may have a moment ago.
    Close(String),
    /// They would not refuse.
    DoNotFit(String),
    /// They could not be read.
    Absent,
}

/// A check as a candidate, with the errno that it gives.
pub(super) struct Candidate {
    pub(super) cause: Cause,
    pub(super) what: &'static str,
    pub(super) check: Option<Check>,
    pub(super) errno: i32,
    pub(super) numbers: Numbers,
}

/// Cause, what it is called, its check, its errno.
type Row = (Cause, &'static str, Option<Check>, i32);

/// Where the kernel tests for it: kernel/fork.c `copy_process`, 5.10 to 7.2. Memory cgroups may
/// refuse at any stage; the first allocations come before all limits that give ENOMEM.
#[rustfmt::skip]
const ROWS: [Row; 13] = {
    use Cause as C;
    use Check as K;
    [
        (C::MemcgNoVictim, "memory cgroup without a victim", Some(K::MemCgroupOutOfMemory), ENOMEM),
        (C::MemcgOomKillDisabled, "memory cgroup without an OOM killer", Some(K::TryCharge), ENOMEM),
        (C::MemcgKmemLimitV1, "kernel memory of a cgroup", Some(K::MemcgKmemCharge), ENOMEM),
        (C::RlimitNproc, "RLIMIT_NPROC", Some(K::IsRlimitOverlimit), EAGAIN),
        (C::ThreadsMax, "kernel.threads-max", None, EAGAIN),
        (C::SchedDeadlineFork, "deadline scheduling", Some(K::SchedFork), EAGAIN),
        (C::AuditAllocFailed, "system call auditing", Some(K::AuditAlloc), ENOMEM),
        (C::NrOpenLowered, "fs.nr_open", Some(K::DupFd), EMFILE),
        (C::CommitLimit, "strict overcommit", Some(K::VmEnoughMemory), ENOMEM),
        (C::OvercommitHeuristic, "heuristic overcommit", Some(K::VmEnoughMemory), ENOMEM),
        (C::PidNamespaceDying, "pid namespace without init", Some(K::AllocPid), ENOMEM),
        (C::PidSpaceExhausted, "kernel.pid_max", Some(K::AllocPid), EAGAIN),
        (C::PidsCgroupMax, "pids cgroup", Some(K::PidsCanFork), EAGAIN),
    ]
};

pub(super) fn candidates(attempt: &Attempt, evidence: &Evidence) -> Vec<Candidate> {
    ROWS.into_iter()
        .map(|(cause, what, check, errno)| Candidate {
            cause,
            what,
            check,
            errno,
            numbers: numbers(cause, attempt, evidence),
        })
        .collect()
}

fn numbers(cause: Cause, attempt: &Attempt, evidence: &Evidence) -> Numbers {
    match cause {
        Cause::MemcgNoVictim => memory::no_victim(attempt, evidence),
        Cause::MemcgOomKillDisabled => memory::oom_kill_disabled(attempt, evidence),
        Cause::MemcgKmemLimitV1 => memory::kernel_memory(evidence),
        Cause::RlimitNproc => tasks::nproc(evidence),
        Cause::ThreadsMax => tasks::threads(evidence),
        Cause::SchedDeadlineFork => tasks::scheduling(evidence),
        Cause::AuditAllocFailed => memory::audit(evidence),
        Cause::NrOpenLowered => memory::open_files(evidence),
        Cause::CommitLimit => memory::strict(attempt, evidence),
        Cause::OvercommitHeuristic => memory::heuristic(attempt, evidence),
        Cause::PidNamespaceDying => tasks::namespace(evidence),
        Cause::PidSpaceExhausted => tasks::pid_numbers(evidence),
        Cause::PidsCgroupMax => tasks::pids(evidence),
        _ => Numbers::Absent,
    }
}
