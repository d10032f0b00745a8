//! Reading kernel structs at offsets given at load.

use aya_ebpf::{
    Global,
    bindings::task_struct,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user},
};
use pgfork_trace_common::{ABSENT, Offsets};

/// Field offsets of the running kernel.
#[unsafe(no_mangle)]
static OFFSETS: Global<Offsets> = Global::new(Offsets::NONE);

/// Address of `vm_committed_as`, 0 when unknown.
#[unsafe(no_mangle)]
static VM_COMMITTED_AS: Global<u64> = Global::new(0);
/// Address of `sysctl_overcommit_memory`, 0 when unknown.
#[unsafe(no_mangle)]
static SYSCTL_OVERCOMMIT_MEMORY: Global<u64> = Global::new(0);
/// Address of `nr_threads`, 0 when unknown.
#[unsafe(no_mangle)]
static NR_THREADS: Global<u64> = Global::new(0);
/// Address of `max_threads`, 0 when unknown.
#[unsafe(no_mangle)]
static MAX_THREADS: Global<u64> = Global::new(0);
/// `pids_cgrp_id` of this kernel, or [`ABSENT`].
#[unsafe(no_mangle)]
static PIDS_CGRP_ID: Global<u32> = Global::new(ABSENT);

/// Offset of one field, or nothing where this kernel lacks it. The read is
/// volatile: the value is known only at load, and the verifier then drops the
/// branches that it rules out.
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::field(core::mem::offset_of!(pgfork_trace_common::Offsets, $field))
    };
}
pub(crate) use offset;

/// The offset stored at byte `at` of [`OFFSETS`]: use [`offset!`].
#[inline(always)]
pub fn field(at: usize) -> Option<u64> {
    // SAFETY: `at` is a u32 field of the static, which is never written while programs run.
    let offset =
        unsafe { core::ptr::read_volatile((&raw const OFFSETS).byte_add(at).cast::<u32>()) };
    if offset == ABSENT {
        None
    } else {
        Some(offset as u64)
    }
}

/// Reads a value at a kernel address; nothing when the address is null or bad.
#[inline(always)]
pub fn read<T>(address: u64) -> Option<T> {
    if address == 0 {
        return None;
    }
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Reads a value at an address of the current process.
#[inline(always)]
pub fn read_user<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Reads a field of the struct at `base`.
#[inline(always)]
pub fn read_at<T>(base: u64, offset: Option<u64>) -> Option<T> {
    if base == 0 {
        return None;
    }
    read(base + offset?)
}

/// Address of the current task's `task_struct`.
#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() } as *const task_struct;
    task as u64
}

/// `vm_committed_as.count` in pages: what `__vm_enough_memory` compares
/// (`percpu_counter_read_positive`, mm/util.c 5.10 to 7.2).
#[inline(always)]
pub fn committed_pages() -> Option<i64> {
    read_at(VM_COMMITTED_AS.load(), offset!(percpu_count))
}

/// `sysctl_overcommit_memory` now.
#[inline(always)]
pub fn overcommit_mode() -> Option<i32> {
    read(SYSCTL_OVERCOMMIT_MEMORY.load())
}

/// `nr_threads` and `max_threads` (kernel/fork.c) now.
#[inline(always)]
pub fn threads() -> Option<(i32, i32)> {
    Some((read(NR_THREADS.load())?, read(MAX_THREADS.load())?))
}

/// The pids controller's state in a `css_set`.
#[inline(always)]
pub fn pids_css(css_set: u64) -> Option<u64> {
    let id = PIDS_CGRP_ID.load();
    if id == ABSENT {
        return None;
    }
    read_at(css_set, Some(offset!(cset_subsys)? + 8 * id as u64))
}

/// Inode number of a memory cgroup's directory.
#[inline(always)]
pub fn cgroup_id_of_memcg(memcg: u64) -> Option<u64> {
    if memcg == 0 {
        return None;
    }
    let cgroup = read_at::<u64>(memcg + offset!(memcg_css)?, offset!(css_cgroup))?;
    let kernfs_node = read_at::<u64>(cgroup, offset!(cgroup_kn))?;
    read_at(kernfs_node, offset!(kn_id))
}
