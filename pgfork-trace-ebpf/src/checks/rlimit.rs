//! `RLIMIT_NPROC`: the task counts of the user, at every level of user namespaces.

use pgfork_trace_common::{Attempt, Check, MAX_NPROC_LEVELS, NprocLevel, valid};

use crate::{
    attempt,
    checks::stages::note_result,
    kernel::{self, offset, read_at},
};

/// Index in `signal_struct.rlim` (include/uapi/asm-generic/resource.h).
const RLIMIT_NPROC: u64 = 6;
/// Size of `struct rlimit`: two unsigned longs.
const RLIMIT_SIZE: u64 = 16;

/// `is_rlimit_overlimit` (`is_ucounts_overlimit` in 5.14 to 5.18) returned; true is necessary for a refusal, not
/// sufficient: privileged tasks pass all the same (kernel/fork.c `copy_process`).
#[inline(always)]
pub fn over_limit(ret: u64) {
    if ret as u8 == 0 {
        return;
    }
    if let Some(attempt) = attempt::open() {
        walk(attempt);
        if attempt.nproc_levels > 0 {
            attempt.valid |= valid::NPROC_COUNTS_SELF;
        }
        note_result(attempt, Check::IsRlimitOverlimit, Some(1));
    }
}

/// Reads the counts at the end of an attempt, unless the check already did.
#[inline(always)]
pub fn snapshot(attempt: &mut Attempt) {
    if attempt.valid & valid::NPROC_COUNTS_SELF == 0 {
        walk(attempt);
    }
}

#[inline(never)]
fn walk(attempt: &mut Attempt) {
    let task = kernel::current();
    let Some(signal) = read_at::<u64>(task, offset!(task_signal)) else {
        return;
    };
    let Some(rlim) = offset!(signal_rlim) else {
        return;
    };
    let Some(mut limit) = read_at::<u64>(signal, Some(rlim + RLIMIT_NPROC * RLIMIT_SIZE)) else {
        return;
    };
    let Some(cred) = read_at::<u64>(task, offset!(task_real_cred)) else {
        return;
    };
    let Some(mut ucounts) = read_at::<u64>(cred, offset!(cred_ucounts)) else {
        by_user(attempt, cred, limit);
        return;
    };
    attempt.nproc_levels = 0;
    for number in 0..MAX_NPROC_LEVELS {
        // User space adds the place of RLIMIT_NPROC to the offsets of the arrays.
        let Some(count) = read_at::<i64>(ucounts, offset!(ucounts_rlimit)) else {
            break;
        };
        let Some(userns) = read_at::<u64>(ucounts, offset!(ucounts_ns)) else {
            break;
        };
        attempt.nproc[number] = NprocLevel {
            count,
            limit,
            userns_inum: read_at(userns, offset!(userns_inum)).unwrap_or(0),
            of_user: 0,
        };
        attempt.nproc_levels = number as u32 + 1;
        // Upper levels: kernel/ucount.c `is_rlimit_overlimit`, 6.1 to 7.2, and
        // `is_ucounts_overlimit`, 5.14 to 5.18.
        limit = read_at::<i64>(userns, offset!(userns_rlimit_max)).unwrap_or(i64::MAX) as u64;
        ucounts = read_at(userns, offset!(userns_ucounts)).unwrap_or(0);
        if ucounts == 0 {
            break;
        }
    }
    if ucounts != 0 {
        attempt.valid |= valid::NPROC_TRUNCATED;
    }
    if attempt.nproc_levels > 0 {
        attempt.valid |= valid::NPROC;
    }
}

/// Before 5.14: one count per user, in `user_struct`.
#[inline(always)]
fn by_user(attempt: &mut Attempt, cred: u64, limit: u64) {
    let Some(user) = read_at::<u64>(cred, offset!(cred_user)) else {
        return;
    };
    let Some(count) = read_at::<i32>(user, offset!(user_processes)) else {
        return;
    };
    let userns = read_at::<u64>(cred, offset!(cred_user_ns)).unwrap_or(0);
    attempt.nproc[0] = NprocLevel {
        count: count as i64,
        limit,
        userns_inum: read_at(userns, offset!(userns_inum)).unwrap_or(0),
        of_user: 1,
    };
    attempt.nproc_levels = 1;
    attempt.valid |= valid::NPROC;
}
