//! `alloc_pid` refused, and the chain of pid namespaces.

use pgfork_trace_common::{Attempt, Check, MAX_PIDNS_LEVELS, PidnsLevel, valid};

use crate::{
    attempt,
    checks::stages::{error_pointer, note_result},
    kernel::{self, offset, read_at},
};

/// `alloc_pid` returned; `namespace` is the one that the child would be in, and `set_tid_size`
/// says how many numbers were asked for.
#[inline(always)]
pub fn allocated(ret: u64, namespace: u64, set_tid_size: u64) {
    if let Some(attempt) = attempt::open() {
        record(attempt, ret, namespace, set_tid_size);
    }
}

/// The same with the arguments that the kprobe kept.
#[inline(always)]
pub fn allocated_stashed(ret: u64) {
    if let Some(attempt) = attempt::open() {
        let [namespace, set_tid_size, _] = attempt.stash;
        record(attempt, ret, namespace, set_tid_size);
    }
}

#[inline(always)]
fn record(attempt: &mut Attempt, ret: u64, namespace: u64, set_tid_size: u64) {
    let failed = error_pointer(ret);
    if failed.is_some() {
        walk(attempt, namespace);
        attempt.set_tid_size = set_tid_size as u32;
        attempt.valid |= valid::PIDNS_AT_CHECK;
    }
    note_result(attempt, Check::AllocPid, failed);
}

/// Reads the namespaces for children of the current task, unless the check already did.
#[inline(always)]
pub fn snapshot(attempt: &mut Attempt) {
    if attempt.valid & valid::PIDNS_AT_CHECK != 0 {
        return;
    }
    if let Some(nsproxy) = read_at::<u64>(kernel::current(), offset!(task_nsproxy))
        && let Some(namespace) = read_at::<u64>(nsproxy, offset!(nsproxy_pid_ns))
    {
        walk(attempt, namespace);
    }
}

/// `alloc_pid` takes a number at every level up to the host's (kernel/pid.c, 5.10 to 7.2).
#[inline(never)]
fn walk(attempt: &mut Attempt, own: u64) {
    let mut namespace = own;
    attempt.pidns_levels = 0;
    for number in 0..MAX_PIDNS_LEVELS {
        let Some(allocated) = read_at::<u32>(namespace, offset!(pidns_allocated)) else {
            break;
        };
        let Some(inum) = read_at::<u32>(namespace, offset!(pidns_inum)) else {
            break;
        };
        let Some(level) = read_at::<u32>(namespace, offset!(pidns_level)) else {
            break;
        };
        attempt.pidns[number] = PidnsLevel {
            inum,
            allocated,
            pid_max: 0,
            level,
        };
        if let Some(pid_max) = read_at::<i32>(namespace, offset!(pidns_pid_max)) {
            attempt.pidns[number].pid_max = pid_max;
            attempt.valid |= valid::PIDNS_PID_MAX;
        }
        attempt.pidns_levels = number as u32 + 1;
        attempt.valid |= valid::PIDNS;
        namespace = read_at(namespace, offset!(pidns_parent)).unwrap_or(0);
        if namespace == 0 {
            break;
        }
    }
    if namespace != 0 {
        attempt.valid |= valid::PIDNS_TRUNCATED;
    }
}
