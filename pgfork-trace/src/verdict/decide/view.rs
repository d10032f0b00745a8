//! One refusal with what is known of it, as the phases of the decision ask it.

use pgfork_trace_common::{Attempt, Check, source, syscall, valid};

use super::super::{
    Cause, Coverage, Evidence, LogFact,
    candidates::{Candidate, ENOMEM},
    failed_checks,
};
use crate::kernel::plan;

pub(super) struct View<'a> {
    pub(super) attempt: &'a Attempt,
    pub(super) evidence: &'a Evidence,
    pub(super) coverage: &'a Coverage,
    /// The result, where it could be read.
    pub(super) ret: Option<i32>,
}

/// The kernel function of a check.
pub(super) fn name(check: Check) -> &'static str {
    plan::row(check).function()
}

impl<'a> View<'a> {
    pub(super) fn new(
        attempt: &'a Attempt,
        evidence: &'a Evidence,
        coverage: &'a Coverage,
    ) -> Self {
        Self {
            attempt,
            evidence,
            coverage,
            ret: (attempt.valid & valid::RET != 0).then_some(attempt.ret),
        }
    }

    /// Whether the kernel's fork path is hooked.
    pub(super) fn hooked(&self) -> bool {
        self.coverage.sees(Check::KernelClone)
    }

    pub(super) fn sees(&self, check: Check) -> bool {
        self.coverage.sees(check)
    }

    pub(super) fn reached(&self, check: Check) -> bool {
        self.attempt.stages & check.bit() != 0
    }

    pub(super) fn read(&self, bit: u32) -> bool {
        self.attempt.valid & bit != 0
    }

    /// Whether the fork may have ended with this error.
    pub(super) fn gives(&self, errno: i32) -> bool {
        self.ret.is_none_or(|ret| ret == errno)
    }

    /// Whether these flags were given; `None` where flags were not seen.
    pub(super) fn flags(&self, any_of: u64) -> Option<bool> {
        // All calls but clone3 have them in a register, and there none are none.
        let read = self.attempt.clone_flags != 0
            || self.attempt.source == source::SYSCALL && !self.is_call(syscall::CLONE3);
        read.then_some(self.attempt.clone_flags & any_of != 0)
    }

    /// Whether this was seen of the system call: a part of [`syscall`].
    pub(super) fn seen(&self, part: u32) -> bool {
        self.attempt.source == source::SYSCALL && self.attempt.syscall & part != 0
    }

    /// Whether the system call is this one.
    pub(super) fn is_call(&self, number: u32) -> bool {
        self.attempt.source == source::SYSCALL && self.attempt.syscall & syscall::NUMBER == number
    }

    /// What this check returned when it failed.
    pub(super) fn failing(&self, wanted: Check) -> Option<i32> {
        failed_checks(self.attempt)
            .find(|(check, _)| *check == wanted)
            .map(|(_, ret)| ret)
    }

    /// Whether this check ended the fork: with its error, or with a null pointer, whose error
    /// the caller chooses.
    pub(super) fn ended(&self, check: Check) -> bool {
        self.failing(check)
            .is_some_and(|ret| ret == 0 || ret == self.attempt.ret)
    }

    /// A stage after `check` that this fork reached.
    pub(super) fn got_past(&self, check: Check) -> Option<Check> {
        Check::ALL
            .into_iter()
            .filter(|later| *later > check && later.is_stage())
            .find(|later| self.reached(*later))
    }

    /// The last stage that was reached, where one is told from another.
    pub(super) fn last_stage(&self) -> Option<Check> {
        Check::ALL
            .into_iter()
            .skip(Check::ArchDupTaskStruct as usize)
            .take_while(|check| check.is_stage())
            .filter(|check| self.reached(*check))
            .last()
    }

    /// How far the fork came, in words.
    pub(super) fn how_far(&self) -> String {
        match self.last_stage() {
            Some(check) => format!("the fork came as far as {}", name(check)),
            None => "the fork came to none of the stages that are watched".to_owned(),
        }
    }

    /// Why hooks speak against a candidate: the fork got past its check, or its
    /// check was watched and not seen refusing.
    pub(super) fn passed(&self, candidate: &Candidate) -> Option<String> {
        if self.attempt.source != source::KERNEL_CLONE {
            return None;
        }
        // kernel.threads-max is tested right before cgroup_fork; memory cgroups are nowhere.
        let place = match candidate.check {
            Some(check) => check.is_stage().then_some(check),
            None if candidate.errno == ENOMEM => None,
            None => Some(Check::IsRlimitOverlimit),
        };
        if candidate.cause == Cause::RlimitNproc && self.is_past_nproc() {
            return Some("the fork got past it, as far as copy_creds".to_owned());
        }
        if let Some(later) = place.and_then(|place| self.got_past(place)) {
            return Some(format!("the fork got past it, as far as {}", name(later)));
        }
        let check = candidate.check?;
        if check == Check::VmEnoughMemory && self.ended_before_dup_mmap() {
            return Some("the fork ended before memory was copied".to_owned());
        }
        let watched = self.sees(check) && self.failing(check).is_none();
        watched.then(|| format!("{} was watched and did not refuse", name(check)))
    }

    /// Whether the fork ended before the place of a candidate: kernel.threads-max is tested right
    /// behind `copy_creds` (kernel/fork.c `copy_process`, 5.10 to 7.2).
    pub(super) fn ended_before(&self, candidate: &Candidate) -> bool {
        candidate.cause == Cause::ThreadsMax
            && self.attempt.source == source::KERNEL_CLONE
            && self.sees(Check::CopyCreds)
            && !self.reached(Check::CopyCreds)
    }

    /// Whether the fork ended before `dup_mmap`, which asks overcommit for each mapping: it comes right
    /// behind `pgd_alloc` (kernel/fork.c `dup_mm`, 5.10 to 7.2).
    pub(super) fn ended_before_dup_mmap(&self) -> bool {
        self.attempt.source == source::KERNEL_CLONE
            && self.sees(Check::PgdAlloc)
            && !self.reached(Check::PgdAlloc)
    }

    /// Whether the kernel log says that overcommit refused this process.
    pub(super) fn refused_by_overcommit_in_log(&self) -> bool {
        let pids = [self.attempt.tid, self.attempt.tgid];
        self.evidence
            .kernel_log
            .iter()
            .any(|line| matches!(line, LogFact::CommitRefused { pid } if pids.contains(pid)))
    }

    /// Whether `copy_creds` was reached where `RLIMIT_NPROC` stands before it: while the tasks are
    /// counted in `user_struct` (kernel/fork.c `copy_process`, 5.10).
    pub(super) fn is_past_nproc(&self) -> bool {
        self.read(valid::NPROC)
            && self.attempt.nproc[0].of_user != 0
            && self.reached(Check::CopyCreds)
    }

    /// Whether the kernel log says that the OOM killer of a memory cgroup chose this process.
    pub(super) fn killed_in_log(&self) -> bool {
        let pid = self.attempt.tgid;
        let mut log = self.evidence.kernel_log.iter();
        log.any(|line| *line == LogFact::CgroupKilled { pid })
    }

    /// What says that the OOM killer of a memory cgroup chose this process, if anything does.
    pub(super) fn was_killed(&self) -> Option<&'static str> {
        if self.killed_in_log() {
            return Some(
                "the kernel log says that the OOM killer of a memory cgroup killed this process",
            );
        }
        // The host's OOM killer marks its victims in the same way; and one that is dying beside
        // the victim is marked when it finds no memory (mm/oom_kill.c `out_of_memory`, 5.10 to 7.2).
        let elsewhere = self.evidence.kernel_log.iter().any(|line| {
            matches!(
                line,
                LogFact::CgroupKilled { .. } | LogFact::HostKilled { .. }
            )
        });
        let marked = self.read(valid::OOM_VICTIM) && self.attempt.state.oom_victim != 0;
        (marked && !elsewhere && self.reached(Check::TryToFreeMemCgroupPages)).then_some(
            "a memory cgroup was at its limit in this fork, and this process was marked as a victim of an OOM killer when it ended",
        )
    }

    /// Whether the process was being killed when the fork ended; `None` where that was not read.
    pub(super) fn is_dying(&self) -> Option<bool> {
        let sigkill = 1 << (libc::SIGKILL - 1);
        self.read(valid::PENDING_SIGNALS)
            .then_some(self.attempt.state.pending_signals & sigkill != 0)
    }

    /// Whether the fork ended where memory is copied, or right before or behind that.
    pub(super) fn in_copy_mm(&self) -> bool {
        self.reached(Check::PgdAlloc) && self.got_past(Check::CopyPageRange).is_none()
    }

    /// Whether a check that ends every fork it refuses was seen refusing: the error is then its,
    /// or what was seen does not belong together.
    pub(super) fn contradicts(&self) -> bool {
        failed_checks(self.attempt).any(|(check, ret)| match check {
            Check::CopyProcess => ret != self.attempt.ret,
            Check::IsRlimitOverlimit => false,
            other => other.is_stage(),
        })
    }

    /// The deepest check that was seen ending the fork.
    pub(super) fn deepest(&self) -> Option<(Check, i32)> {
        let ended = |check: Check, ret: i32| match check {
            Check::CopyProcess | Check::KernelClone => false,
            // These may fail and the fork go on.
            Check::IsRlimitOverlimit
            | Check::MemCgroupOutOfMemory
            | Check::TryCharge
            | Check::MemcgKmemCharge
            | Check::MemcgKmemChargePage => false,
            // A null pointer ends it with an errno of the caller's choice.
            _ => ret == self.attempt.ret || ret == 0,
        };
        failed_checks(self.attempt)
            .find(|(check, ret)| ended(*check, *ret))
            .or_else(|| {
                // Nobody could be killed for memory: the next best witness of an ENOMEM.
                let out_of_memory = Check::MemCgroupOutOfMemory;
                (self.attempt.ret == ENOMEM)
                    .then(|| self.failing(out_of_memory))
                    .flatten()
                    .map(|ret| (out_of_memory, ret))
            })
    }
}
