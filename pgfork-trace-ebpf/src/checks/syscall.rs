//! The attempt as a system call: clone, clone3, fork and vfork, of whatever program.
//!
//! Attached only when asked for: every system call of the host then passes here. A call that is
//! none of the four costs a comparison at its entry, and at its end nothing when it succeeded.

use pgfork_trace_common::{
    source,
    syscall::{ANSWERED_BEFORE, CLONE, CLONE3, ENTERED, FORK, VFORK},
};

use super::clone;
use crate::{
    attempt,
    kernel::{self, offset, read_at, read_user},
};

/// `CLONE_VM`, `CLONE_VFORK` (include/uapi/linux/sched.h).
const VFORK_FLAGS: u64 = 0x100 | 0x4000;
/// `CSIGNAL`: not part of the flags but the signal at the child's end.
const SIGNAL: u64 = 0xff;
/// `CLONE_ARGS_SIZE_VER1`, and where `struct clone_args` has `set_tid_size`.
const WITH_SET_TID: u64 = 80;
const SET_TID_SIZE: u64 = 72;
/// `TS_COMPAT` (arch/x86/include/asm/thread_info.h): a 32 bit call, whose numbers are others.
const COMPAT: u32 = 2;

/// `sys_enter`: a filter or a tracer has let the call through.
#[inline(always)]
pub fn entered(regs: u64, number: u64) {
    let Some(number) = makes_process(number) else {
        return;
    };
    attempt::begin(source::SYSCALL, || flags(number, regs));
    if let Some(attempt) = attempt::open() {
        attempt.syscall = number | ENTERED;
        if number == CLONE3 {
            attempt.set_tid_size = set_tid_size(regs);
        }
    }
}

/// `sys_exit`, with what the call returns; before a tracer may change that
/// (`syscall_exit_work`, kernel/entry/common.c 5.10 to 6.12, include/linux/entry-common.h 6.18 and 7.2).
#[inline(always)]
pub fn returned(regs: u64, ret: i64) {
    if ret >= 0 && attempt::open().is_none() {
        return;
    }
    let Some(number) = read_at(regs, offset!(regs_orig_ax)).and_then(makes_process) else {
        return;
    };
    if attempt::open().is_none() {
        attempt::begin(source::SYSCALL, || flags(number, regs));
        let Some(attempt) = attempt::open() else {
            return;
        };
        attempt.syscall = number;
        if answered_before(attempt.watched, attempt.tgid) {
            attempt.syscall |= ANSWERED_BEFORE;
        }
    }
    attempt::end(ret as i32, ret < 0, |attempt| clone::snapshot(attempt));
}

/// A call may have been entered before its process was watched. With one thread that is at most
/// the first of its calls that is seen to end.
#[inline(always)]
fn answered_before(account: u32, tgid: u32) -> bool {
    let threads = read_at::<u64>(kernel::current(), offset!(task_signal))
        .and_then(|signal| read_at::<i32>(signal, offset!(signal_nr_threads)));
    account == tgid
        && threads == Some(1)
        && attempt::totals(account).is_some_and(|it| it.forks + it.refused + it.restarted > 0)
}

#[inline(always)]
fn makes_process(number: u64) -> Option<u32> {
    let number = number as u32;
    let wanted = matches!(number, CLONE | FORK | VFORK | CLONE3);
    (wanted && !is_compat()).then_some(number)
}

#[inline(always)]
fn is_compat() -> bool {
    read_at::<u32>(kernel::current(), offset!(task_status)).is_none_or(|it| it & COMPAT != 0)
}

/// As `kernel_clone_args.flags` has them (kernel/fork.c, 5.10 to 7.2).
#[inline(always)]
fn flags(number: u32, regs: u64) -> u64 {
    let first = || read_at::<u64>(regs, offset!(regs_di));
    match number {
        CLONE => first().unwrap_or(0) & 0xffff_ffff & !SIGNAL,
        CLONE3 => first().and_then(read_user).unwrap_or(0),
        VFORK => VFORK_FLAGS,
        _ => 0,
    }
}

#[inline(always)]
fn set_tid_size(regs: u64) -> u32 {
    let size = read_at::<u64>(regs, offset!(regs_si)).unwrap_or(0);
    let arguments = read_at::<u64>(regs, offset!(regs_di)).unwrap_or(0);
    if size < WITH_SET_TID {
        return 0;
    }
    read_user::<u64>(arguments.wrapping_add(SET_TID_SIZE)).unwrap_or(0) as u32
}
