//! The attempt itself: `kernel_clone`, or `fork` of the process's C library.

use pgfork_trace_common::{Attempt, source, valid};

use crate::{
    attempt,
    checks::{pids, rlimit},
    kernel::{self, offset, read_at},
};

/// `kernel_clone` was entered with its `struct kernel_clone_args`.
#[inline(always)]
pub fn entered(arguments: u64) {
    let (tgid, _) = attempt::ids();
    if attempt::watched(tgid).is_none() {
        return;
    }
    let flags = read_at(arguments, offset!(clone_args_flags)).unwrap_or(0);
    attempt::begin(source::KERNEL_CLONE, flags);
}

/// `kernel_clone` returned a pid or a negative errno.
#[inline(always)]
pub fn returned(ret: i32) {
    attempt::end(Some(ret), ret < 0, |attempt| snapshot(attempt));
}

/// The C library's `fork` was entered.
#[inline(always)]
pub fn libc_entered() {
    attempt::begin(source::LIBC_FORK, 0);
}

/// The C library's `fork` returned: 0 in the child, which has no attempt.
#[inline(always)]
pub fn libc_returned(ret: i32) {
    let (tgid, _) = attempt::ids();
    let Some(watched) = attempt::watched(tgid) else {
        return;
    };
    let errno = if ret < 0 {
        errno_of_current(watched.errno_tp_offset)
    } else {
        None
    };
    attempt::end(errno, ret < 0, |attempt| snapshot(attempt));
}

/// `-errno` of the current thread: the C library keeps it at a fixed offset
/// from the thread pointer (x86: the FS base, saved in `thread_struct` when the
/// task last slept; arch/x86/kernel/process_64.c `save_fsgs`).
#[inline(always)]
fn errno_of_current(tp_offset: i64) -> Option<i32> {
    if tp_offset == 0 {
        return None;
    }
    let thread_pointer: u64 = read_at(kernel::current(), offset!(task_fsbase))?;
    let errno: i32 = kernel::read_user(thread_pointer.wrapping_add(tp_offset as u64))?;
    (1..=4095).contains(&errno).then_some(-errno)
}

/// Reads the state that the checks have just judged.
#[inline(always)]
fn snapshot(attempt: &mut Attempt) {
    pids::snapshot(attempt);
    rlimit::snapshot(attempt);
    let task = kernel::current();
    task_state(attempt, task);
    memory(attempt, task);
    pid_namespace(attempt, task);
    if let Some((nr_threads, max_threads)) = kernel::threads() {
        attempt.state.nr_threads = nr_threads as i64;
        attempt.state.max_threads = max_threads as i64;
        attempt.valid |= valid::THREADS;
    }
    // The tracepoint method has no other reading; the other methods keep the check's own.
    if attempt.valid & valid::COMMITTED == 0
        && let Some(committed) = kernel::committed_pages()
    {
        attempt.overcommit.committed_pages = committed;
        attempt.valid |= valid::COMMITTED;
    }
}

#[inline(always)]
fn task_state(attempt: &mut Attempt, task: u64) {
    if let Some(cred) = read_at::<u64>(task, offset!(task_real_cred))
        && let Some(uid) = read_at(cred, offset!(cred_uid))
        && let Some(capabilities) = read_at(cred, offset!(cred_cap_effective))
    {
        attempt.state.uid = uid;
        attempt.state.cap_effective = capabilities;
        attempt.valid |= valid::CRED;
    }
    if let Some(policy) = read_at(task, offset!(task_policy)) {
        attempt.state.policy = policy;
        attempt.valid |= valid::POLICY;
    }
    if let Some(mode) = read_at(task, offset!(task_seccomp_mode)) {
        attempt.state.seccomp_mode = mode;
        attempt.valid |= valid::SECCOMP;
    }
}

#[inline(always)]
fn memory(attempt: &mut Attempt, task: u64) {
    if let Some(mm) = read_at::<u64>(task, offset!(task_mm))
        && let Some(total) = read_at(mm, offset!(mm_total_vm))
        && let Some(data) = read_at(mm, offset!(mm_data_vm))
        && let Some(stack) = read_at(mm, offset!(mm_stack_vm))
    {
        attempt.state.total_vm_pages = total;
        attempt.state.data_vm_pages = data;
        attempt.state.stack_vm_pages = stack;
        attempt.valid |= valid::MM;
    }
}

#[inline(always)]
fn pid_namespace(attempt: &mut Attempt, task: u64) {
    let Some(nsproxy) = read_at::<u64>(task, offset!(task_nsproxy)) else {
        return;
    };
    let Some(namespace) = read_at::<u64>(nsproxy, offset!(nsproxy_pid_ns)) else {
        return;
    };
    if let Some(allocated) = read_at(namespace, offset!(pidns_allocated))
        && let Some(level) = read_at(namespace, offset!(pidns_level))
        && let Some(inum) = read_at(namespace, offset!(pidns_inum))
    {
        attempt.state.pid_allocated = allocated;
        attempt.state.pidns_level = level;
        attempt.state.pidns_inum = inum;
        attempt.valid |= valid::PIDNS;
    }
    if let Some(pid_max) = read_at(namespace, offset!(pidns_pid_max)) {
        attempt.state.pidns_pid_max = pid_max;
        attempt.valid |= valid::PIDNS_PID_MAX;
    }
}
