//! The life of an attempt: begin, note a failing check, end, emit.

use core::{
    cell::UnsafeCell,
    intrinsics::{AtomicOrdering, atomic_xadd},
};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_RB_FORCE_WAKEUP},
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use pgfork_trace_common::{
    Attempt, Check, Failed, HISTOGRAM_BUCKETS, MAX_GENERATIONS, MAX_TRAIL, MAX_WATCHED, RefusalKey,
    Totals, Watched, bucket_of, record, source, valid,
};

use crate::{
    checks::{client, memory},
    kernel::{self, offset, read_at},
};

/// Processes to follow, by process id in the initial pid namespace.
#[map]
static WATCHED: HashMap<u32, Watched> = HashMap::with_max_entries(MAX_WATCHED, 0);
/// Open attempts by thread id.
#[map]
static ATTEMPTS: HashMap<u32, Attempt> = HashMap::with_max_entries(128, 0);
/// Exact totals by process id. Only user space adds entries: they need not be there from
/// the start, and a small memory cgroup pays for each.
#[map]
static TOTALS: HashMap<u32, Totals> = HashMap::with_max_entries(MAX_WATCHED, BPF_F_NO_PREALLOC);
/// Exact counts of refusals by what was seen.
#[map]
static REFUSALS: HashMap<RefusalKey, u64> = HashMap::with_max_entries(1024, 0);
/// A zeroed attempt to begin from: it would not fit on the stack.
#[map]
static BLANK: Array<Attempt> = Array::with_max_entries(1, 0);
/// Records other than refusals that did not fit in the ring buffer.
#[map]
static LOST_EVENTS: Array<u64> = Array::with_max_entries(1, 0);
/// Records to user space.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Number of open attempts on the host. Almost always 0: probes on shared
/// paths then return after one load.
static OPEN: OpenCount = OpenCount(UnsafeCell::new(0));

struct OpenCount(UnsafeCell<u64>);

// SAFETY: changed by atomic additions and read by volatile loads only.
unsafe impl Sync for OpenCount {}

impl OpenCount {
    #[inline(always)]
    fn add(&self, amount: u64) {
        // SAFETY: a valid, aligned u64 that lives as long as the program.
        unsafe { atomic_add(self.0.get(), amount) };
    }

    #[inline(always)]
    fn is_zero(&self) -> bool {
        // SAFETY: as above; a stale value costs one look-up or finds no attempt of ours,
        // because a thread always sees its own addition.
        unsafe { core::ptr::read_volatile(self.0.get()) == 0 }
    }
}

/// One locked addition whose old value is not asked for: the only atomic that
/// BPF has on kernels before 5.12. (`AtomicU64::fetch_add` does not exist on a
/// target without compare-and-swap.)
///
/// # Safety
/// `target` is valid and aligned.
#[inline(always)]
unsafe fn atomic_add(target: *mut u64, amount: u64) {
    // SAFETY: by the caller.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(target, amount) };
}

/// Process and thread id of the current task in the initial pid namespace.
#[inline(always)]
pub fn ids() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

/// What is known of the current process, if it is watched.
#[inline(always)]
pub fn watched(tgid: u32) -> Option<Watched> {
    // SAFETY: the entry is copied at once; it is written only by user space, whole.
    unsafe { WATCHED.get(&tgid) }.copied()
}

#[inline(always)]
pub fn totals(tgid: u32) -> Option<&'static mut Totals> {
    // SAFETY: map values outlive the program; concurrent threads of one process
    // may race on plain counters, so they are changed by atomic additions only.
    TOTALS
        .get_ptr_mut(&tgid)
        .map(|totals| unsafe { &mut *totals })
}

/// The watched process that `task` is, or descends from; 0 for none.
#[inline(never)]
pub fn related(task: u64) -> u32 {
    let mut task = task;
    for _ in 0..=MAX_GENERATIONS {
        let Some(tgid) = read_at::<u32>(task, offset!(task_tgid)) else {
            return 0;
        };
        if watched(tgid).is_some() {
            return tgid;
        }
        task = read_at(task, offset!(task_real_parent)).unwrap_or(0);
        if task == 0 {
            return 0;
        }
    }
    0
}

/// Counts a record that is lost.
#[inline(always)]
pub fn lost_event() {
    if let Some(count) = LOST_EVENTS.get_ptr_mut(0) {
        // SAFETY: map values outlive the program; changed atomically.
        add(unsafe { &mut *count });
    }
}

/// Adds one to a counter in a map value.
#[inline(always)]
pub fn add(counter: &mut u64) {
    // SAFETY: a valid, aligned u64 in a map value.
    unsafe { atomic_add(counter, 1) };
}

/// The open attempt of the current thread.
#[inline(always)]
pub fn open() -> Option<&'static mut Attempt> {
    if OPEN.is_zero() {
        return None;
    }
    let (_, tid) = ids();
    // SAFETY: only the thread that owns the attempt reaches its entry.
    ATTEMPTS
        .get_ptr_mut(&tid)
        .map(|attempt| unsafe { &mut *attempt })
}

/// The watched process on whose account the current one forks; 0 for none.
#[inline(always)]
fn account(tgid: u32) -> u32 {
    if watched(tgid).is_some() {
        tgid
    } else if memory::all_children() {
        related(kernel::current())
    } else {
        0
    }
}

/// Opens an attempt for the current thread, if its process is followed.
#[inline(always)]
pub fn begin(source: u32, clone_flags: impl FnOnce() -> u64) {
    let (tgid, tid) = ids();
    let account = account(tgid);
    if account == 0 {
        return;
    }
    let clone_flags = clone_flags();
    if let Some(attempt) = open()
        && source == source::KERNEL_CLONE
        && attempt.source == source::LIBC_FORK
    {
        // The C library's fork has come as far as the kernel's.
        attempt.source = source;
        attempt.clone_flags = clone_flags;
        return;
    }
    let Some(blank) = BLANK.get(0) else { return };
    if ATTEMPTS.insert(&tid, blank, BPF_NOEXIST as u64).is_ok() {
        OPEN.add(1);
    } else {
        // Either a leftover of this thread, whose return was missed, or no room.
        let replaced = ATTEMPTS.insert(&tid, blank, 0).is_ok();
        if let Some(totals) = totals(account) {
            add(if replaced {
                &mut totals.missed
            } else {
                &mut totals.untracked
            });
        }
        if !replaced {
            return;
        }
    }
    let Some(attempt) = open() else { return };
    attempt.kind = record::REFUSAL;
    attempt.source = source;
    attempt.tgid = tgid;
    attempt.tid = tid;
    attempt.watched = account;
    attempt.clone_flags = clone_flags;
    attempt.stages = Check::KernelClone.bit();
    // SAFETY: the helper has no preconditions.
    attempt.start_ns = unsafe { bpf_ktime_get_ns() };
}

/// Keeps the arguments of a call until its kretprobe.
#[inline(always)]
pub fn stash(arguments: [u64; 3]) {
    if let Some(attempt) = open() {
        attempt.stash = arguments;
    }
}

/// Appends a failing check to the trail.
#[inline(always)]
pub fn note(attempt: &mut Attempt, check: Check, ret: i32) {
    let length = attempt.trail_len as usize;
    if length < MAX_TRAIL {
        attempt.trail[length] = Failed {
            check: check as u32,
            ret,
        };
        attempt.trail_len += 1;
    } else {
        attempt.trail_lost += 1;
    }
}

/// Closes the attempt of the current thread. A refusal is counted and sent;
/// `evidence` reads the state at its end. A `ret` of 0 for a failed one is not known.
///
/// Of a postmaster it is also noted whose connection it was, refused or not.
///
/// -512 to -516 are the kernel's own "restart the system call" results
/// (include/linux/errno.h); `copy_process` returns -513 when a signal is
/// pending, and user space never sees it.
#[inline(always)]
pub fn end(ret: i32, failed: bool, evidence: impl FnOnce(&mut Attempt)) {
    let Some(attempt) = open() else { return };
    let tid = attempt.tid;
    if let Some(totals) = totals(attempt.watched) {
        // SAFETY: the helper has no preconditions.
        attempt.end_ns = unsafe { bpf_ktime_get_ns() };
        let descendant = attempt.watched != attempt.tgid;
        if !matches!(ret, -516..=-512) && is_postmaster(attempt.tgid) {
            client::find(attempt);
            client::count(attempt);
        }
        if !failed && descendant {
            add(&mut totals.child_forks);
        } else if !failed {
            add(&mut totals.forks);
            let bucket = bucket_of(attempt.end_ns - attempt.start_ns) as usize;
            if bucket < HISTOGRAM_BUCKETS {
                add(&mut totals.histogram[bucket]);
            }
        } else if matches!(ret, -516..=-512) {
            add(&mut totals.restarted);
        } else {
            add(if descendant {
                &mut totals.child_refused
            } else {
                &mut totals.refused
            });
            if ret != 0 {
                attempt.ret = ret;
                attempt.valid |= valid::RET;
            }
            evidence(attempt);
            emit(attempt, totals);
        }
    }
    let _ = ATTEMPTS.remove(&tid);
    OPEN.add(u64::MAX);
}

/// The current thread ends, and takes along the attempt that it is in: its return was missed, or
/// it was killed in the C library's `fork`.
#[inline(always)]
pub fn abandon() {
    let Some(attempt) = open() else { return };
    let tid = attempt.tid;
    if let Some(totals) = totals(attempt.watched) {
        add(&mut totals.missed);
    }
    let _ = ATTEMPTS.remove(&tid);
    OPEN.add(u64::MAX);
}

#[inline(always)]
fn is_postmaster(tgid: u32) -> bool {
    watched(tgid).is_some_and(|watched| watched.postmaster != 0)
}

#[inline(always)]
fn emit(attempt: &mut Attempt, totals: &mut Totals) {
    if let Ok(comm) = bpf_get_current_comm() {
        attempt.comm = comm;
    }
    attempt.lost_before = totals.lost;
    count(attempt);
    if RECORDS
        .output::<Attempt>(&*attempt, BPF_RB_FORCE_WAKEUP as u64)
        .is_err()
    {
        add(&mut totals.lost);
    }
}

/// Counts the refusal by what was seen of it, whether or not its record gets through.
#[inline(always)]
fn count(attempt: &Attempt) {
    let key = RefusalKey {
        tgid: attempt.watched,
        ret: attempt.ret,
        check: if attempt.trail_len > 0 {
            attempt.trail[0].check
        } else {
            u32::MAX
        },
        pad: 0,
        stages: attempt.stages,
    };
    if let Some(count) = REFUSALS.get_ptr_mut(&key) {
        // SAFETY: map values outlive the program; changed atomically.
        add(unsafe { &mut *count });
    } else if REFUSALS.insert(&key, &1, BPF_NOEXIST as u64).is_err()
        && let Some(count) = REFUSALS.get_ptr_mut(&key)
    {
        // Another thread was first.
        // SAFETY: as above.
        add(unsafe { &mut *count });
    }
}
