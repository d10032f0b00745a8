//! `pids_can_fork` refused, and the pids limits along the cgroup path.

use pgfork_trace_common::{Attempt, Check, MAX_PIDS_LEVELS, PidsLevel, valid};

use crate::{
    attempt,
    checks::stages::note_result,
    kernel::{self, offset, read_at},
};

/// Notes the refusal with the css_set that was to be charged.
///
/// `pids_can_fork` walks from the forking css up to, but not into, the root;
/// the first level with `counter + 1 > limit` refuses, and the charges are
/// reverted before it returns (kernel/cgroup/pids.c `pids_try_charge`, 5.10 to 7.2).
#[inline(always)]
pub fn refused(ret: i32, css_set: u64) {
    if let Some(attempt) = attempt::open() {
        record(attempt, ret, css_set);
    }
}

/// The same with the argument that the kprobe kept.
#[inline(always)]
pub fn refused_stashed(ret: i32) {
    if let Some(attempt) = attempt::open() {
        let css_set = attempt.stash[1];
        record(attempt, ret, css_set);
    }
}

#[inline(always)]
fn record(attempt: &mut Attempt, ret: i32, css_set: u64) {
    walk(attempt, css_set);
    if attempt.pids_levels > 0 {
        attempt.valid |= valid::PIDS_AT_CHECK;
    }
    note_result(attempt, Check::PidsCanFork, Some(ret));
}

/// Reads the limits of the current task's own path, unless the check already did.
#[inline(always)]
pub fn snapshot(attempt: &mut Attempt) {
    if attempt.valid & valid::PIDS_AT_CHECK == 0
        && let Some(css_set) = read_at(kernel::current(), offset!(task_cgroups))
    {
        walk(attempt, css_set);
    }
}

#[inline(never)]
fn walk(attempt: &mut Attempt, css_set: u64) {
    let Some(mut css) = kernel::pids_css(css_set) else {
        return;
    };
    attempt.pids_levels = 0;
    attempt.valid |= valid::PIDS;
    for number in 0..MAX_PIDS_LEVELS {
        let parent: u64 = read_at(css, offset!(css_parent)).unwrap_or(0);
        if parent == 0 {
            // The root has no limit.
            break;
        }
        let Some(level) = level(css) else {
            // What cannot be read cannot be ruled out.
            attempt.valid &= !valid::PIDS;
            break;
        };
        attempt.pids[number] = level;
        attempt.pids_levels = number as u32 + 1;
        css = parent;
    }
    if attempt.pids_levels as usize == MAX_PIDS_LEVELS
        && read_at::<u64>(css, offset!(css_parent)).unwrap_or(0) != 0
    {
        attempt.valid |= valid::PIDS_TRUNCATED;
    }
}

#[inline(always)]
fn level(css: u64) -> Option<PidsLevel> {
    let pids = css - offset!(pids_css)?;
    let cgroup = read_at(css, offset!(css_cgroup))?;
    let kernfs_node = read_at(cgroup, offset!(cgroup_kn))?;
    Some(PidsLevel {
        cgroup_id: read_at(kernfs_node, offset!(kn_id))?,
        count: read_at(pids, offset!(pids_counter))?,
        limit: read_at(pids, offset!(pids_limit))?,
    })
}
