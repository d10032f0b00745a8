//! Checks known by their result, and marks of how far an attempt came.

use pgfork_trace_common::{Attempt, Check};

use crate::attempt;

/// Largest errno: results from -4095 to -1 are errors (include/linux/err.h `MAX_ERRNO`).
const MAX_ERRNO: i64 = 4095;

/// A function was entered.
#[inline(always)]
pub fn reached(check: Check) {
    if let Some(attempt) = attempt::open() {
        attempt.stages |= check.bit();
    }
}

/// A function returned; `failed` says whether, and with what, it refused.
#[inline(always)]
pub fn returned(check: Check, ret: u64, failed: fn(u64) -> Option<i32>) {
    if let Some(attempt) = attempt::open() {
        note_result(attempt, check, failed(ret));
    }
}

/// Marks the check as reached and appends it to the trail when it failed.
#[inline(always)]
pub fn note_result(attempt: &mut Attempt, check: Check, failed: Option<i32>) {
    attempt.stages |= check.bit();
    if let Some(ret) = failed {
        attempt::note(attempt, check, ret);
    }
}

/// `int`: negative is an error. Only the low half of the register counts.
#[inline(always)]
pub fn error(ret: u64) -> Option<i32> {
    let ret = ret as i32;
    (ret < 0).then_some(ret)
}

/// Pointer: an error pointer is an error.
#[inline(always)]
pub fn error_pointer(ret: u64) -> Option<i32> {
    let ret = ret as i64;
    (-MAX_ERRNO..0).contains(&ret).then_some(ret as i32)
}

/// Pointer: null or an error pointer is an error; null is given as 0.
#[inline(always)]
pub fn null_or_error_pointer(ret: u64) -> Option<i32> {
    if ret == 0 {
        Some(0)
    } else {
        error_pointer(ret)
    }
}

/// `bool`: false means that it could not help. Only the low byte counts.
#[inline(always)]
pub fn false_result(ret: u64) -> Option<i32> {
    (ret as u8 == 0).then_some(0)
}
