//! Memory refused to a running process: one record for each check that said no.

use aya_ebpf::{
    Global,
    helpers::bpf_get_current_comm,
    macros::map,
    maps::{LruHashMap, ring_buf::RingBufEntry},
};
use pgfork_trace_common::{Check, MemoryRefusal, Overcommit, memory_valid, record};

use crate::{
    attempt::{self, RECORDS},
    kernel::{self, offset, read, read_at},
};

/// Nonzero when descendants of watched processes are followed as well.
#[unsafe(no_mangle)]
static ALL_CHILDREN: Global<u8> = Global::new(0);

/// Indices in `signal_struct.rlim` (include/uapi/asm-generic/resource.h).
const RLIMIT_DATA: u64 = 2;
const RLIMIT_STACK: u64 = 3;
const RLIMIT_MEMLOCK: u64 = 8;
const RLIMIT_AS: u64 = 9;
const RLIMIT_SIZE: u64 = 16;
const PAGE_SHIFT: u64 = 12;

/// What was asked of a check.
#[derive(Clone, Copy)]
pub struct Request {
    pub bytes: u64,
    pub flags: u64,
    pub known: bool,
}

impl Request {
    pub const NONE: Self = Self {
        bytes: 0,
        flags: 0,
        known: false,
    };

    #[inline(always)]
    pub fn bytes(bytes: u64) -> Self {
        Self {
            bytes,
            flags: 0,
            known: true,
        }
    }

    #[inline(always)]
    pub fn pages(pages: u64) -> Self {
        Self::bytes(pages << PAGE_SHIFT)
    }
}

/// Room for `bytes` in an open file; in place of flags, the device of its file system.
#[inline(always)]
pub fn in_file(file: u64, bytes: u64) -> Request {
    Request {
        flags: device(file).unwrap_or(0),
        ..Request::bytes(bytes)
    }
}

#[inline(always)]
fn device(file: u64) -> Option<u64> {
    let inode: u64 = read_at(file, offset!(file_inode))?;
    let super_block: u64 = read_at(inode, offset!(inode_sb))?;
    let device: u32 = read_at(super_block, offset!(sb_dev))?;
    Some(device as u64)
}

/// Arguments of calls in progress, by thread and check (kprobes in use). A
/// leftover is overwritten by the thread's next call, or makes room when the
/// map is full.
#[map]
static ARGUMENTS: LruHashMap<[u32; 2], [u64; 3]> = LruHashMap::with_max_entries(256, 0);

/// Keeps the arguments of a call until its kretprobe, if its process is followed.
#[inline(always)]
pub fn entered(check: Check, arguments: [u64; 3]) {
    if all_children() && attempt::related(kernel::current()) != 0 {
        let (_, tid) = attempt::ids();
        let _ = ARGUMENTS.insert(&[tid, check as u32], &arguments, 0);
    }
}

/// What [`entered`] kept.
#[inline(always)]
pub fn kept(check: Check) -> Option<[u64; 3]> {
    let (_, tid) = attempt::ids();
    // SAFETY: the entry is copied at once; only this thread writes it.
    unsafe { ARGUMENTS.get(&[tid, check as u32]) }.copied()
}

/// A kretprobe of a check whose kprobe kept bytes and flags.
#[inline(always)]
pub fn returned_kept(check: Check, ret: u64, failed: fn(u64) -> Option<i32>) {
    if let Some(ret) = failed(ret) {
        if let Some([bytes, flags, _]) = kept(check) {
            refused(check as u32, ret, bytes, flags, 1);
        } else {
            refused(check as u32, ret, 0, 0, 0);
        }
    }
}

/// Whether descendants are followed.
#[inline(always)]
pub fn all_children() -> bool {
    ALL_CHILDREN.load() != 0
}

/// A check returned; `failed` says whether, and with what, it refused.
#[inline(always)]
pub fn returned(check: Check, ret: u64, failed: fn(u64) -> Option<i32>, request: Request) {
    if let Some(ret) = failed(ret) {
        refused(
            check as u32,
            ret,
            request.bytes,
            request.flags,
            request.known as u32,
        );
    }
}

/// The arguments of a refusing `__vm_enough_memory` (mm, pages, `cap_sys_admin`).
#[inline(always)]
pub fn overcommit_refused(ret: i32, mm: u64, pages: u64, cap_sys_admin: i32) {
    if all_children() {
        overcommitted(ret, mm, pages, cap_sys_admin);
    }
}

// One copy of each for all programs: inlined, they would be most of the object.

#[inline(never)]
fn refused(check: u32, ret: i32, bytes: u64, flags: u64, known: u32) {
    let Some(watched) = concerned() else {
        return;
    };
    let Some(mut entry) = RECORDS.reserve::<MemoryRefusal>(0) else {
        attempt::lost_event();
        return;
    };
    let event = blank(&mut entry, watched);
    event.check = check;
    event.ret = ret;
    event.bytes = bytes;
    event.flags = flags;
    if known != 0 {
        event.valid |= memory_valid::BYTES;
    }
    state(event);
    entry.submit(0);
}

#[inline(never)]
fn overcommitted(ret: i32, mm: u64, pages: u64, cap_sys_admin: i32) {
    let Some(watched) = concerned() else {
        return;
    };
    let Some(mut entry) = RECORDS.reserve::<MemoryRefusal>(0) else {
        attempt::lost_event();
        return;
    };
    let event = blank(&mut entry, watched);
    event.check = Check::VmEnoughMemory as u32;
    event.ret = ret;
    event.bytes = pages << PAGE_SHIFT;
    event.valid |= memory_valid::BYTES;
    state(event);
    promises(event, mm, pages, cap_sys_admin);
    entry.submit(0);
}

/// The watched process that the current one is, or descends from; nothing inside
/// a fork, where the attempt's own record tells.
#[inline(always)]
fn concerned() -> Option<u32> {
    if attempt::open().is_some() {
        return None;
    }
    let watched = attempt::related(kernel::current());
    (watched != 0).then_some(watched)
}

#[inline(always)]
fn blank(entry: &mut RingBufEntry<MemoryRefusal>, watched: u32) -> &mut MemoryRefusal {
    let (tgid, tid) = attempt::ids();
    let event = entry.as_mut_ptr();
    // SAFETY: reserved, aligned and large enough; every field is written, and then read.
    unsafe {
        event.write(MemoryRefusal {
            kind: record::MEMORY,
            check: 0,
            tgid,
            tid,
            watched,
            ret: 0,
            time_ns: aya_ebpf::helpers::bpf_ktime_get_ns(),
            bytes: 0,
            flags: 0,
            total_vm_pages: 0,
            data_vm_pages: 0,
            stack_vm_pages: 0,
            locked_vm_pages: 0,
            rlimit_as: 0,
            rlimit_data: 0,
            rlimit_stack: 0,
            rlimit_memlock: 0,
            map_count: 0,
            valid: 0,
            overcommit: Overcommit {
                pages: 0,
                total_vm_pages: 0,
                committed_pages: 0,
                cap_sys_admin: 0,
                mode: 0,
            },
            comm: [0; 16],
        });
        &mut *event
    }
}

#[inline(always)]
fn state(event: &mut MemoryRefusal) {
    if let Ok(comm) = bpf_get_current_comm() {
        event.comm = comm;
    }
    address_space(event);
    limits(event);
}

#[inline(always)]
fn address_space(event: &mut MemoryRefusal) {
    let Some(mm) = read_at::<u64>(kernel::current(), offset!(task_mm)) else {
        return;
    };
    if let Some(pages) = read_at(mm, offset!(mm_total_vm)) {
        event.total_vm_pages = pages;
        event.valid |= memory_valid::MM;
    }
    if let Some(pages) = read_at(mm, offset!(mm_data_vm)) {
        event.data_vm_pages = pages;
    }
    if let Some(pages) = read_at(mm, offset!(mm_stack_vm)) {
        event.stack_vm_pages = pages;
    }
    if let Some(pages) = read_at(mm, offset!(mm_locked_vm)) {
        event.locked_vm_pages = pages;
        event.valid |= memory_valid::LOCKED_VM;
    }
    if let Some(count) = read_at(mm, offset!(mm_map_count)) {
        event.map_count = count;
        event.valid |= memory_valid::MAP_COUNT;
    }
}

#[inline(always)]
fn limits(event: &mut MemoryRefusal) {
    let Some(signal) = read_at::<u64>(kernel::current(), offset!(task_signal)) else {
        return;
    };
    let Some(at) = offset!(signal_rlim) else {
        return;
    };
    let base = signal + at;
    if let Some(limit) = read(base + RLIMIT_AS * RLIMIT_SIZE) {
        event.rlimit_as = limit;
        event.valid |= memory_valid::RLIMITS;
    }
    if let Some(limit) = read(base + RLIMIT_DATA * RLIMIT_SIZE) {
        event.rlimit_data = limit;
    }
    if let Some(limit) = read(base + RLIMIT_STACK * RLIMIT_SIZE) {
        event.rlimit_stack = limit;
    }
    if let Some(limit) = read(base + RLIMIT_MEMLOCK * RLIMIT_SIZE) {
        event.rlimit_memlock = limit;
    }
}

#[inline(always)]
fn promises(event: &mut MemoryRefusal, mm: u64, pages: u64, cap_sys_admin: i32) {
    event.overcommit.pages = pages as i64;
    event.overcommit.cap_sys_admin = cap_sys_admin;
    event.valid |= memory_valid::OVERCOMMIT;
    if let Some(total) = read_at(mm, offset!(mm_total_vm)) {
        event.overcommit.total_vm_pages = total;
    }
    if let Some(committed) = kernel::committed_pages() {
        event.overcommit.committed_pages = committed;
        event.valid |= memory_valid::COMMITTED;
    }
    if let Some(mode) = kernel::overcommit_mode() {
        event.overcommit.mode = mode;
        event.valid |= memory_valid::OVERCOMMIT_MODE;
    }
}
