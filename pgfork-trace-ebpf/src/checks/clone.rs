//! The attempt itself: `kernel_clone`, or `fork` of the process's C library; and `execve`.

use pgfork_trace_common::{Attempt, Check, MAX_PERF_EVENTS, source, valid};

use crate::{
    attempt,
    checks::{pid, pids, rlimit, stages},
    kernel::{self, offset, read, read_at},
};

/// `kernel_clone` was entered with its `struct kernel_clone_args`.
#[inline(always)]
pub fn entered(arguments: u64) {
    attempt::begin(source::KERNEL_CLONE, || {
        read_at(arguments, offset!(clone_args_flags)).unwrap_or(0)
    });
}

/// `kernel_clone` returned a pid or a negative errno.
#[inline(always)]
pub fn returned(ret: i32) {
    attempt::end(ret, ret < 0, |attempt| snapshot(attempt));
}

/// The C library's `fork` was entered.
#[inline(always)]
pub fn libc_entered() {
    attempt::begin(source::LIBC_FORK, || 0);
}

/// The C library's `fork` returned: 0 in the child, which has no attempt.
#[inline(always)]
pub fn libc_returned(ret: i32) {
    let (tgid, _) = attempt::ids();
    let Some(watched) = attempt::watched(tgid) else {
        return;
    };
    // With hooks in the fork path, what got as far as there has ended there.
    if attempt::open().is_none_or(|attempt| attempt.source != source::LIBC_FORK) {
        return;
    }
    let errno = if ret < 0 {
        errno_of_current(watched.errno_tp_offset)
    } else {
        0
    };
    attempt::end(errno, ret < 0, |attempt| snapshot(attempt));
}

/// `execve` returned; of all its errors EAGAIN alone speaks of a limit (fs/exec.c
/// `do_execveat_common`, 5.10 to 7.2).
#[inline(always)]
pub fn exec_returned(ret: i32) {
    const EAGAIN: i32 = 11;
    if ret != -EAGAIN {
        return;
    }
    attempt::begin(source::EXECVE, || 0);
    if let Some(attempt) = attempt::open() {
        attempt.stages = 0;
        stages::note_result(attempt, Check::Execve, Some(ret));
    }
    attempt::end(ret, true, |attempt| snapshot(attempt));
}

/// `-errno` of the current thread, 0 when not known: the C library keeps it at a fixed
/// offset from the thread pointer (x86: the FS base, saved in `thread_struct` when the
/// task last slept; arch/x86/kernel/process_64.c `save_fsgs`).
#[inline(always)]
fn errno_of_current(tp_offset: i64) -> i32 {
    if tp_offset == 0 {
        return 0;
    }
    let Some(thread_pointer) = read_at::<u64>(kernel::current(), offset!(task_fsbase)) else {
        return 0;
    };
    let Some(errno) = kernel::read_user::<i32>(thread_pointer.wrapping_add(tp_offset as u64))
    else {
        return 0;
    };
    if (1..=4095).contains(&errno) {
        -errno
    } else {
        0
    }
}

/// Reads the state that the checks have just judged.
#[inline(never)]
pub fn snapshot(attempt: &mut Attempt) {
    pids::snapshot(attempt);
    rlimit::snapshot(attempt);
    let task = kernel::current();
    task_state(attempt, task);
    memory(attempt, task);
    pid::snapshot(attempt);
    open_files(attempt, task);
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
    // Nor where the check itself is not hooked.
    if attempt.valid & valid::OVERCOMMIT_MODE == 0
        && let Some(mode) = kernel::overcommit_mode()
    {
        attempt.overcommit.mode = mode;
        attempt.valid |= valid::OVERCOMMIT_MODE;
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
    if let Some(ptrace) = read_at(task, offset!(task_ptrace)) {
        attempt.state.ptrace = ptrace;
        attempt.valid |= valid::PTRACE;
    }
    if let Some(selector) = read_at::<u64>(task, offset!(task_dispatch_selector))
        && let Some(length) = read_at::<u64>(task, offset!(task_dispatch_len))
    {
        attempt.state.user_dispatch = (selector | length != 0) as u32;
    }
    attempt.state.perf_events = inherited_events(task);
    signals(attempt, task);
}

/// What the process is about to die of, and its standing with the OOM killer.
#[inline(always)]
fn signals(attempt: &mut Attempt, task: u64) {
    if let Some(pending) = read_at(task, offset!(task_pending)) {
        attempt.state.pending_signals = pending;
        attempt.valid |= valid::PENDING_SIGNALS;
    }
    let Some(signal) = read_at::<u64>(task, offset!(task_signal)) else {
        return;
    };
    if let Some(adjustment) = read_at::<i16>(signal, offset!(signal_oom_score_adj)) {
        attempt.state.oom_score_adj = adjustment as i32;
        attempt.valid |= valid::OOM_SCORE_ADJ;
    }
    if let Some(oom_mm) = read_at::<u64>(signal, offset!(signal_oom_mm)) {
        attempt.state.oom_victim = (oom_mm != 0) as u32;
        attempt.valid |= valid::OOM_VICTIM;
    }
}

/// Events on the task itself that its children inherit (kernel/events/core.c
/// `inherit_task_group`, 5.10 to 7.2). The probes of this program are events too; they are not.
#[inline(never)]
fn inherited_events(task: u64) -> u32 {
    let (Some(first), Some(end)) = (offset!(task_perf_contexts), offset!(task_perf_mutex)) else {
        return 0;
    };
    let mut count = 0;
    for slot in 0..2 {
        let place = first + 8 * slot;
        if place < end
            && let Some(context) = read_at::<u64>(task, Some(place))
        {
            count += inherited_in(context);
        }
    }
    count
}

#[inline(always)]
fn inherited_in(context: u64) -> u32 {
    /// `perf_event_attr.inherit` and the 64 bits that it is in (include/uapi/linux/perf_event.h).
    const INHERIT: u64 = 1 << 1;
    const FLAGS: u64 = 40;
    let (Some(list), Some(link), Some(attributes)) = (
        offset!(perf_event_list),
        offset!(perf_event_entry),
        offset!(perf_event_attr),
    ) else {
        return 0;
    };
    if context == 0 {
        return 0;
    }
    let head = context + list;
    let mut entry = read::<u64>(head).unwrap_or(0);
    let mut count = 0;
    for _ in 0..MAX_PERF_EVENTS {
        if entry == 0 || entry == head {
            break;
        }
        let event = entry - link;
        let flags = read::<u64>(event + attributes + FLAGS).unwrap_or(0);
        count += (flags & INHERIT != 0) as u32;
        entry = read(entry).unwrap_or(0);
    }
    count
}

#[inline(always)]
fn open_files(attempt: &mut Attempt, task: u64) {
    if let Some(files) = read_at::<u64>(task, offset!(task_files))
        && let Some(table) = read_at::<u64>(files, offset!(files_fdt))
        && let Some(room) = read_at(table, offset!(fdt_max_fds))
    {
        attempt.state.max_fds = room;
        attempt.valid |= valid::MAX_FDS;
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
