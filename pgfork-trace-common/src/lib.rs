//! The records and tables that the kernel side and the user side share.
//!
//! Everything here is plain data with a fixed layout. Sizes are asserted at
//! compile time, because the two sides are built by two compilers.
#![no_std]

mod offsets;

pub use offsets::{ABSENT, OFFSET_COUNT, OFFSET_FIELDS, Offsets};

/// Longest trail of failing checks kept for one attempt.
pub const MAX_TRAIL: usize = 8;
/// Deepest cgroup path whose pids limits are read, counted from the forking
/// cgroup upwards. Kubernetes nests seven deep.
pub const MAX_PIDS_LEVELS: usize = 16;
/// Deepest nesting of user namespaces whose process counts are read.
pub const MAX_NPROC_LEVELS: usize = 4;
/// Buckets of the fork time histogram: eight for each power of two nanoseconds.
pub const HISTOGRAM_BUCKETS: usize = 512;
/// Most processes that can be watched at once.
pub const MAX_WATCHED: u32 = 256;

/// A place in the kernel's fork path that is watched, named by the kernel
/// function it sits in. The discriminant is the bit in [`Attempt::stages`] and
/// the `check` of a [`Failed`] entry; it never leaves the process.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// `kernel_clone`, the whole attempt.
    KernelClone = 0,
    /// `copy_process`.
    CopyProcess,
    /// `arch_dup_task_struct`, reached once the task struct exists.
    ArchDupTaskStruct,
    /// `copy_creds`.
    CopyCreds,
    /// `is_rlimit_overlimit` (6.1 and later).
    IsRlimitOverlimit,
    /// `cgroup_fork`: past `RLIMIT_NPROC` and threads-max; cannot fail.
    CgroupFork,
    /// `sched_fork`.
    SchedFork,
    /// `perf_event_init_task`.
    PerfEventInitTask,
    /// `audit_alloc`.
    AuditAlloc,
    /// `security_task_alloc`.
    SecurityTaskAlloc,
    /// `dup_fd`.
    DupFd,
    /// `copy_fs_struct`.
    CopyFsStruct,
    /// `pgd_alloc`: `copy_mm` was entered; its own failure is a null return.
    PgdAlloc,
    /// `__vm_enough_memory`.
    VmEnoughMemory,
    /// `copy_namespaces`.
    CopyNamespaces,
    /// `copy_thread`.
    CopyThread,
    /// `alloc_pid`.
    AllocPid,
    /// `cgroup_can_fork`.
    CgroupCanFork,
    /// `pids_can_fork`.
    PidsCanFork,
    /// `sched_cgroup_fork` where it returns an error (6.12 and later).
    SchedCgroupFork,
    /// `cgroup_cancel_fork`: a check after `cgroup_can_fork` refused.
    CgroupCancelFork,
    /// `try_to_free_mem_cgroup_pages`: a memory cgroup was at its limit.
    TryToFreeMemCgroupPages,
    /// `mem_cgroup_out_of_memory` that found nobody to kill.
    MemCgroupOutOfMemory,
}

/// Number of [`Check`] values.
pub const CHECK_COUNT: usize = Check::MemCgroupOutOfMemory as usize + 1;

impl Check {
    /// Every check, in the order in which the kernel passes them.
    pub const ALL: [Self; CHECK_COUNT] = [
        Self::KernelClone,
        Self::CopyProcess,
        Self::ArchDupTaskStruct,
        Self::CopyCreds,
        Self::IsRlimitOverlimit,
        Self::CgroupFork,
        Self::SchedFork,
        Self::PerfEventInitTask,
        Self::AuditAlloc,
        Self::SecurityTaskAlloc,
        Self::DupFd,
        Self::CopyFsStruct,
        Self::PgdAlloc,
        Self::VmEnoughMemory,
        Self::CopyNamespaces,
        Self::CopyThread,
        Self::AllocPid,
        Self::CgroupCanFork,
        Self::PidsCanFork,
        Self::SchedCgroupFork,
        Self::CgroupCancelFork,
        Self::TryToFreeMemCgroupPages,
        Self::MemCgroupOutOfMemory,
    ];

    /// The check with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        if (number as usize) < CHECK_COUNT {
            Some(Self::ALL[number as usize])
        } else {
            None
        }
    }

    /// The bit of this check in [`Attempt::stages`].
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self as u32
    }
}

/// What saw the refusal.
pub mod source {
    /// The kernel's own `kernel_clone`, by fexit or kprobe.
    pub const KERNEL_CLONE: u32 = 1;
    /// The return of `fork` in the watched process's C library.
    pub const LIBC_FORK: u32 = 2;
}

/// Bits of [`Attempt::valid`]: which readings are present.
pub mod valid {
    /// [`super::Overcommit::pages`], `cap_sys_admin` and `total_vm_pages`: the arguments of `__vm_enough_memory`.
    pub const OVERCOMMIT_CALL: u32 = 1 << 0;
    /// [`super::Overcommit::committed_pages`].
    pub const COMMITTED: u32 = 1 << 1;
    /// [`super::Attempt::nproc`] has at least one level.
    pub const NPROC: u32 = 1 << 2;
    /// The counts in `nproc` include the refused task itself (read inside the check).
    pub const NPROC_COUNTS_SELF: u32 = 1 << 3;
    /// [`super::Attempt::pids`] was read; without a level the process is in the root, which has no limit.
    pub const PIDS: u32 = 1 << 4;
    /// `pids` was read inside `pids_can_fork`, not right after the attempt.
    pub const PIDS_AT_CHECK: u32 = 1 << 5;
    /// The pids path is deeper than [`super::MAX_PIDS_LEVELS`].
    pub const PIDS_TRUNCATED: u32 = 1 << 6;
    /// [`super::State::nr_threads`] and `max_threads`.
    pub const THREADS: u32 = 1 << 7;
    /// [`super::State::pid_allocated`], `pidns_level` and `pidns_inum`.
    pub const PIDNS: u32 = 1 << 8;
    /// [`super::State::pidns_pid_max`].
    pub const PIDNS_PID_MAX: u32 = 1 << 9;
    /// [`super::State::cap_effective`] and `uid`.
    pub const CRED: u32 = 1 << 10;
    /// [`super::State::total_vm_pages`], `data_vm_pages`, `stack_vm_pages`.
    pub const MM: u32 = 1 << 11;
    /// [`super::State::policy`].
    pub const POLICY: u32 = 1 << 12;
    /// [`super::Attempt::ret`] is the kernel's result (for `LIBC_FORK`: errno could be read).
    pub const RET: u32 = 1 << 13;
    /// The user namespace chain is deeper than [`super::MAX_NPROC_LEVELS`].
    pub const NPROC_TRUNCATED: u32 = 1 << 14;
    /// [`super::Overcommit::mode`] was read inside `__vm_enough_memory`.
    pub const OVERCOMMIT_MODE: u32 = 1 << 15;
    /// [`super::State::seccomp_mode`].
    pub const SECCOMP: u32 = 1 << 16;
}

/// One failing check seen during an attempt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    /// A [`Check`] by number.
    pub check: u32,
    /// The error as the function returned it: a negative errno for functions
    /// that return one (error pointers included), 0 for a null pointer or
    /// `false`, 1 for `true`.
    pub ret: i32,
}

/// What `__vm_enough_memory` was asked and what it compared.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overcommit {
    /// Pages asked for by the failing call: one VMA of the fork.
    pub pages: i64,
    /// `total_vm` of the mm that the call names, in pages: sets `user_reserve`'s share.
    pub total_vm_pages: u64,
    /// `vm_committed_as.count` right after the failing call, in pages; may be
    /// negative, and lags behind the exact sum by what the CPUs hold back.
    pub committed_pages: i64,
    /// The call's `cap_sys_admin` argument: nonzero spares `admin_reserve`.
    pub cap_sys_admin: i32,
    /// `sysctl_overcommit_memory` as the kernel had it in this call.
    pub mode: i32,
}

/// One level of the pids controller, from the forking cgroup upwards.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsLevel {
    /// Inode number of the cgroup's directory (`kernfs_node.id`).
    pub cgroup_id: u64,
    /// Tasks charged, without the refused one.
    pub count: i64,
    /// `pids.max`; [`PIDS_MAX`] or more means "max".
    pub limit: i64,
}

/// `pids.max` "max": `PIDS_MAX` = `PID_MAX_LIMIT + 1` on 64 bit
/// (kernel/cgroup/pids.c and include/linux/threads.h, 5.10 to 7.2).
pub const PIDS_MAX: i64 = 4 * 1024 * 1024 + 1;

/// The count of tasks of one user in one user namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NprocLevel {
    /// Tasks counted.
    pub count: i64,
    /// The limit at this level: `RLIMIT_NPROC` at the first, the value frozen
    /// at the creation of the namespace further up.
    pub limit: u64,
    /// Inode number of the user namespace, 0 when it could not be read.
    pub userns_inum: u32,
    /// Padding.
    pub pad: u32,
}

/// State of the refused task and of the host, read when the attempt ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `nr_threads`.
    pub nr_threads: i64,
    /// `max_threads` (kernel.threads-max).
    pub max_threads: i64,
    /// Effective capabilities, bit n = capability n.
    pub cap_effective: u64,
    /// `mm->total_vm` in pages.
    pub total_vm_pages: u64,
    /// `mm->data_vm` in pages.
    pub data_vm_pages: u64,
    /// `mm->stack_vm` in pages.
    pub stack_vm_pages: u64,
    /// Real uid in the initial user namespace (kuid).
    pub uid: u32,
    /// `pid_namespace.pid_allocated` of the namespace for children.
    pub pid_allocated: u32,
    /// `pid_namespace.level`, 0 is the host's.
    pub pidns_level: u32,
    /// Inode number of the pid namespace for children.
    pub pidns_inum: u32,
    /// `pid_namespace.pid_max` (6.18 and later).
    pub pidns_pid_max: i32,
    /// `task_struct.policy`.
    pub policy: u32,
    /// `task_struct.seccomp.mode`.
    pub seccomp_mode: u32,
    /// Padding.
    pub pad: u32,
}

/// One fork, clone, clone3 or vfork of a watched process, and, when it was
/// refused, the record sent to user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// [`record::REFUSAL`].
    pub kind: u32,
    /// One of [`source`].
    pub source: u32,
    /// `CLOCK_MONOTONIC` at entry, nanoseconds.
    pub start_ns: u64,
    /// `CLOCK_MONOTONIC` at exit, nanoseconds.
    pub end_ns: u64,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// `kernel_clone_args.flags`, 0 when not seen.
    pub clone_flags: u64,
    /// Checks that were reached, as [`Check::bit`]s.
    pub stages: u64,
    /// Result: a negative errno.
    pub ret: i32,
    /// Bits of [`valid`].
    pub valid: u32,
    /// Entries used in `trail`.
    pub trail_len: u32,
    /// Failing checks that did not fit in `trail`.
    pub trail_lost: u32,
    /// Failing checks in the order seen: deepest first.
    pub trail: [Failed; MAX_TRAIL],
    /// The failing call of `__vm_enough_memory`.
    pub overcommit: Overcommit,
    /// Entries used in `pids`.
    pub pids_levels: u32,
    /// Entries used in `nproc`.
    pub nproc_levels: u32,
    /// The pids controller's chain.
    pub pids: [PidsLevel; MAX_PIDS_LEVELS],
    /// The user's task counts.
    pub nproc: [NprocLevel; MAX_NPROC_LEVELS],
    /// State at the end.
    pub state: State,
    /// Records lost so far because the ring buffer was full.
    pub lost_before: u64,
    /// Arguments kept between the two halves of a kprobe pair.
    pub stash: [u64; 3],
    /// `task_struct.comm`.
    pub comm: [u8; 16],
}

/// Kinds of record in the ring buffer: the first `u32` of each.
pub mod record {
    /// An [`super::Attempt`].
    pub const REFUSAL: u32 = 1;
    /// A [`super::ProcessEvent`]: a program named like a postmaster was started.
    pub const EXEC: u32 = 2;
    /// A [`super::ProcessEvent`]: a watched process ended.
    pub const EXIT: u32 = 3;
}

/// A process of interest appeared or ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessEvent {
    /// [`record::EXEC`] or [`record::EXIT`].
    pub kind: u32,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
}

/// What is needed to read errno of a watched process, per process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Offset of `errno` from the thread pointer, 0 when unknown.
    pub errno_tp_offset: i64,
}

/// Exact totals of one watched process; never depend on the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Attempts that made a child.
    pub forks: u64,
    /// Attempts refused.
    pub refused: u64,
    /// Attempts ended by -ERESTARTNOINTR and its kin, which the kernel repeats.
    pub restarted: u64,
    /// Refusals whose record did not fit in the ring buffer.
    pub lost: u64,
    /// Attempts not followed because too many were open at once.
    pub untracked: u64,
    /// Attempts whose return was not reported (kretprobes in use).
    pub missed: u64,
    /// Duration of successful attempts: see [`bucket_of`].
    pub histogram: [u64; HISTOGRAM_BUCKETS],
}

/// Key of the exact refusal counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RefusalKey {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Negative errno.
    pub ret: i32,
    /// First failing check by number, or `u32::MAX` when none was seen.
    pub check: u32,
    /// Number of the highest stage reached.
    pub stage: u32,
}

/// Bucket of a duration in nanoseconds: eight per power of two.
#[must_use]
pub const fn bucket_of(ns: u64) -> u32 {
    if ns < 8 {
        return ns as u32;
    }
    // Shifts instead of leading_zeros: BPF has no such instruction before v4.
    let mut log = 3;
    let mut rest = ns >> 3;
    let mut step = 32;
    while step > 0 {
        if rest >> step > 0 {
            rest >>= step;
            log += step;
        }
        step >>= 1;
    }
    (log << 3) | ((ns >> (log - 3)) & 7) as u32
}

/// Lower bound in nanoseconds of a bucket of [`bucket_of`].
#[must_use]
pub const fn bucket_floor(bucket: u32) -> u64 {
    let log = bucket >> 3;
    if log < 3 {
        return bucket as u64;
    }
    (8 | (bucket & 7) as u64) << (log - 3)
}

const _: () = {
    assert!(size_of::<Failed>() == 8);
    assert!(size_of::<Overcommit>() == 32);
    assert!(size_of::<PidsLevel>() == 24);
    assert!(size_of::<NprocLevel>() == 24);
    assert!(size_of::<State>() == 80);
    assert!(size_of::<Attempt>() == 776);
    assert!(size_of::<ProcessEvent>() == 8);
    assert!(size_of::<Watched>() == 8);
    assert!(size_of::<Totals>() == 48 + 8 * HISTOGRAM_BUCKETS);
    assert!(size_of::<RefusalKey>() == 16);
    assert!(CHECK_COUNT < 64);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Attempt, RefusalKey, Totals, Watched};

    // SAFETY: repr(C), made of integers only, without padding bytes (asserted above).
    unsafe impl aya::Pod for Attempt {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RefusalKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Totals {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Watched {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_monotonic_and_contain_their_values() {
        let mut previous = 0;
        for exponent in 0..63 {
            for ns in [1u64 << exponent, (1 << exponent) + (1 << exponent) / 3] {
                let bucket = bucket_of(ns);
                assert!(bucket >= previous, "{ns}");
                assert!(
                    bucket_floor(bucket) <= ns && ns < bucket_floor(bucket + 1),
                    "{ns}"
                );
                previous = bucket;
            }
        }
        assert!((bucket_of(u64::MAX) as usize) < HISTOGRAM_BUCKETS);
    }

    #[test]
    fn checks_are_numbered_without_gaps() {
        for (number, check) in Check::ALL.iter().enumerate() {
            assert_eq!(*check as usize, number);
            assert_eq!(Check::from_number(number as u32), Some(*check));
        }
        assert_eq!(Check::from_number(CHECK_COUNT as u32), None);
    }
}
