//! `__vm_enough_memory` refused.

use pgfork_trace_common::{Attempt, Check, Overcommit, valid};

use crate::{
    attempt,
    checks::{memory, stages::note_result},
    kernel::{self, offset, read_at},
};

/// Notes a refusing call with its arguments (mm, pages, `cap_sys_admin`). A function of its own,
/// so that the programs save no registers for it where nothing is refused: they run for
/// every private mapping on the host.
#[inline(never)]
pub fn refused(ret: i32, mm: u64, pages: u64, cap_sys_admin: i32) {
    if let Some(attempt) = attempt::open() {
        record(attempt, ret, mm, pages, cap_sys_admin);
    } else {
        memory::overcommit_refused(ret, mm, pages, cap_sys_admin);
    }
}

/// Keeps the arguments until the kretprobe.
#[inline(always)]
pub fn entered(mm: u64, pages: u64, cap_sys_admin: u64) {
    if attempt::open().is_some() {
        attempt::stash([mm, pages, cap_sys_admin]);
    } else {
        memory::entered(Check::VmEnoughMemory, [mm, pages, cap_sys_admin]);
    }
}

/// The same with the arguments that the kprobe kept.
#[inline(never)]
pub fn refused_stashed(ret: i32) {
    if let Some(attempt) = attempt::open() {
        let [mm, pages, cap_sys_admin] = attempt.stash;
        record(attempt, ret, mm, pages, cap_sys_admin as i32);
    } else if let Some([mm, pages, cap_sys_admin]) = memory::kept(Check::VmEnoughMemory) {
        memory::overcommit_refused(ret, mm, pages, cap_sys_admin as i32);
    }
}

#[inline(always)]
fn record(attempt: &mut Attempt, ret: i32, mm: u64, pages: u64, cap_sys_admin: i32) {
    // One reading after the other: an Option that outlives its test is copied
    // with its unset half, and the verifier refuses to read what was never written.
    attempt.overcommit = Overcommit {
        pages: pages as i64,
        total_vm_pages: 0,
        committed_pages: 0,
        cap_sys_admin,
        mode: 0,
    };
    attempt.valid |= valid::OVERCOMMIT_CALL;
    if let Some(total_vm_pages) = read_at(mm, offset!(mm_total_vm)) {
        attempt.overcommit.total_vm_pages = total_vm_pages;
    }
    if let Some(committed_pages) = kernel::committed_pages() {
        attempt.overcommit.committed_pages = committed_pages;
        attempt.valid |= valid::COMMITTED;
    }
    if let Some(mode) = kernel::overcommit_mode() {
        attempt.overcommit.mode = mode;
        attempt.valid |= valid::OVERCOMMIT_MODE;
    }
    note_result(attempt, Check::VmEnoughMemory, Some(ret));
}
