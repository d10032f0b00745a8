//! The life of an attempt: begin, note a failing check, end, emit.

use core::{
    cell::UnsafeCell,
    intrinsics::{AtomicOrdering, atomic_xadd},
};

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_RB_FORCE_WAKEUP},
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
/// Attempts in progress. A thread's place follows from its id: finding it takes no hashing.
#[map]
static ATTEMPTS: Array<Attempt> = Array::with_max_entries(PLACES, 0);
/// Places in use, by number. Taking one is atomic this way: BPF has no compare-and-swap before 5.12.
#[map]
static TAKEN: HashMap<u32, u32> = HashMap::with_max_entries(PLACES, 0);
/// Exact totals by process id. Only user space adds entries. There from the start, like all maps
/// here: of maps that are not, kernels before 6.1 warn, with a stack trace, when a program uses them
/// (kernel/bpf/verifier.c `check_map_prog_compatibility`, 5.10).
#[map]
static TOTALS: HashMap<u32, Totals> = HashMap::with_max_entries(MAX_WATCHED, 0);
/// Exact counts of refusals by what was seen.
#[map]
static REFUSALS: HashMap<RefusalKey, u64> = HashMap::with_max_entries(1024, 0);
/// Records other than refusals that did not fit in the ring buffer.
#[map]
static LOST_EVENTS: Array<u64> = Array::with_max_entries(1, 0);
/// Records to user space.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Most attempts in progress at once; a power of two.
const PLACES: u32 = 128;
/// Places that a thread may have: another one's attempt may be in the first.
const CHOICES: u32 = 2;
/// Where the second choice lies.
const STRIDE: u32 = 61;

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
    let (tgid, tid) = ids();
    find(tgid, tid)
}

/// The open attempt of a thread. Its process is compared as well: a thread id comes again.
#[inline(always)]
fn find(tgid: u32, tid: u32) -> Option<&'static mut Attempt> {
    for choice in 0..CHOICES {
        let attempt = at(place_of(tid, choice))?;
        if attempt.tid == tid && attempt.tgid == tgid && attempt.watched != 0 {
            return Some(attempt);
        }
    }
    None
}

#[inline(always)]
const fn place_of(tid: u32, choice: u32) -> u32 {
    (tid + choice * STRIDE) & (PLACES - 1)
}

#[inline(always)]
fn at(place: u32) -> Option<&'static mut Attempt> {
    // SAFETY: map values outlive the program; only the thread that took the place changes
    // it, others compare its two ids.
    ATTEMPTS
        .get_ptr_mut(place)
        .map(|attempt| unsafe { &mut *attempt })
}

/// Takes a place for the current thread, with nothing in it yet.
#[inline(always)]
fn take(tgid: u32, tid: u32) -> Option<&'static mut Attempt> {
    for choice in 0..CHOICES {
        let place = place_of(tid, choice);
        if TAKEN.insert(&place, &tid, BPF_NOEXIST as u64).is_ok() {
            let attempt = at(place)?;
            attempt.tgid = tgid;
            attempt.tid = tid;
            attempt.place = place;
            OPEN.add(1);
            return Some(attempt);
        }
    }
    None
}

/// Gives the place of an attempt back; a place without a watched process is not in use.
#[inline(always)]
fn close(attempt: &mut Attempt) {
    attempt.watched = 0;
    let place = attempt.place;
    if TAKEN.remove(&place).is_ok() {
        OPEN.add(u64::MAX);
    }
}

/// Empties an attempt. Lists (`pids`, `nproc`, `pidns`, `trail`) are as long as is said beside
/// them: what an earlier attempt left in them is not cleared.
#[inline(always)]
fn clear(attempt: &mut Attempt) {
    attempt.end_ns = 0;
    attempt.ret = 0;
    attempt.valid = 0;
    attempt.trail_len = 0;
    attempt.trail_lost = 0;
    zero(&mut attempt.overcommit);
    attempt.pids_levels = 0;
    attempt.nproc_levels = 0;
    attempt.pidns_levels = 0;
    attempt.set_tid_size = 0;
    attempt.syscall = 0;
    zero(&mut attempt.memcg);
    zero(&mut attempt.client);
    zero(&mut attempt.state);
}

/// Zeroes plain numbers word by word. (An assignment becomes a call that does it byte by byte.)
#[inline(always)]
fn zero<T>(target: &mut T) {
    const { assert!(size_of::<T>() % 4 == 0 && align_of::<T>() >= 4) };
    let words = (&raw mut *target).cast::<u32>();
    for word in 0..size_of::<T>() / 4 {
        // SAFETY: inside the target, and aligned; all its fields may be zero.
        unsafe { words.add(word).write_volatile(0) };
    }
}

/// The watched process on whose account the current one forks (0 for none), and whether it
/// is a postmaster itself.
#[inline(always)]
fn account(tgid: u32) -> (u32, u32) {
    if let Some(watched) = watched(tgid) {
        (tgid, watched.postmaster as u32)
    } else if memory::all_children() {
        (related(kernel::current()), 0)
    } else {
        (0, 0)
    }
}

/// Opens an attempt for the current thread, if its process is followed.
#[inline(always)]
pub fn begin(by: u32, clone_flags: impl FnOnce() -> u64) {
    let (tgid, tid) = ids();
    let (account, postmaster) = account(tgid);
    if account == 0 {
        return;
    }
    let clone_flags = clone_flags();
    let attempt = if let Some(left) = open() {
        // The C library's fork has come as far as the kernel's; else the return of this
        // thread's last attempt was missed.
        if (left.source != source::LIBC_FORK || by == source::LIBC_FORK)
            && let Some(totals) = totals(left.watched)
        {
            add(&mut totals.missed);
        }
        left
    } else if let Some(attempt) = take(tgid, tid) {
        attempt
    } else {
        if let Some(totals) = totals(account) {
            add(&mut totals.untracked);
        }
        return;
    };
    clear(attempt);
    attempt.kind = record::REFUSAL;
    attempt.source = by;
    attempt.watched = account;
    attempt.postmaster = postmaster;
    attempt.clone_flags = clone_flags;
    attempt.stages = Check::KernelClone.bit();
    // SAFETY: the helper has no preconditions.
    attempt.start_ns = unsafe { bpf_ktime_get_ns() };
}

/// The current thread ends: nobody will see the return of its attempt.
#[inline(always)]
pub fn abandon() {
    let Some(attempt) = open() else { return };
    if let Some(totals) = totals(attempt.watched) {
        add(&mut totals.missed);
    }
    close(attempt);
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
    if let Some(totals) = totals(attempt.watched) {
        // SAFETY: the helper has no preconditions.
        attempt.end_ns = unsafe { bpf_ktime_get_ns() };
        let descendant = attempt.watched != attempt.tgid;
        if !matches!(ret, -516..=-512) && attempt.postmaster != 0 {
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
    close(attempt);
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
