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
/// Deepest nesting of pid namespaces that is read.
pub const MAX_PIDNS_LEVELS: usize = 4;
/// Generations between a watched process and a descendant of it that is found.
pub const MAX_GENERATIONS: usize = 4;
/// Most perf events of a context that are looked at.
pub const MAX_PERF_EVENTS: usize = 16;
/// Deepest nesting of user namespaces whose process counts are read.
pub const MAX_NPROC_LEVELS: usize = 4;
/// Buckets of the fork time histogram: eight for each power of two nanoseconds.
pub const HISTOGRAM_BUCKETS: usize = 512;
/// Most processes that can be watched at once.
pub const MAX_WATCHED: u32 = 256;

/// A place in the kernel that is watched, named by the kernel function it sits in: first the
/// fork path in the kernel's order, then memory cgroups, which may refuse at any stage, then
/// what a running process asks for. The discriminant is the bit in [`Attempt::stages`] and
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
    /// `task_exec_state_copy` (7.2).
    TaskExecStateCopy,
    /// `copy_creds`.
    CopyCreds,
    /// `is_rlimit_overlimit` (6.1 and later).
    IsRlimitOverlimit,
    /// `__io_uring_fork` (7.2).
    IoUringFork,
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
    /// `copy_semundo` (`CLONE_SYSVSEM` only).
    CopySemundo,
    /// `dup_fd`.
    DupFd,
    /// `copy_fs_struct`.
    CopyFsStruct,
    /// `pgd_alloc`: `copy_mm` was entered; its own failure is a null return.
    PgdAlloc,
    /// `dup_mmap` (armed; where it is a function of its own).
    DupMmap,
    /// `__vm_enough_memory`.
    VmEnoughMemory,
    /// `vm_area_dup` (armed).
    VmAreaDup,
    /// `anon_vma_fork` (armed).
    AnonVmaFork,
    /// `copy_page_range` (armed).
    CopyPageRange,
    /// `copy_namespaces`.
    CopyNamespaces,
    /// `__copy_io` (6.1 and later).
    CopyIo,
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
    /// `futex_hash_allocate_default` (6.18 and later, `CLONE_VM` only).
    FutexHashAllocate,
    /// `cgroup_cancel_fork`: a check after `cgroup_can_fork` refused.
    CgroupCancelFork,
    /// `try_to_free_mem_cgroup_pages`: a memory cgroup was at its limit.
    TryToFreeMemCgroupPages,
    /// `mem_cgroup_out_of_memory` that found nobody to kill.
    MemCgroupOutOfMemory,
    /// `try_charge` or `try_charge_memcg` (armed): a memory cgroup refused a charge.
    TryCharge,
    /// `__memcg_kmem_charge` (armed, 5.10): the kernel memory limit of cgroup v1.
    MemcgKmemCharge,
    /// `__memcg_kmem_charge_page` (armed).
    MemcgKmemChargePage,
    /// `vm_mmap_pgoff`: a process asked for a mapping.
    VmMmapPgoff,
    /// `do_brk_flags`: a process asked for more heap.
    DoBrkFlags,
    /// `may_expand_vm`: `RLIMIT_AS` or `RLIMIT_DATA`.
    MayExpandVm,
    /// `vma_to_resize` (to 6.12) or `do_mremap`.
    Mremap,
    /// `mprotect_fixup`.
    Mprotect,
    /// `expand_downwards`: the stack had to grow.
    ExpandDownwards,
    /// `hugetlb_reserve_pages`.
    HugetlbReservePages,
    /// `mlock_future_check` or `mlock_future_ok`: `RLIMIT_MEMLOCK`.
    MlockFuture,
    /// `get_unmapped_area` or `__get_unmapped_area`.
    GetUnmappedArea,
    /// `shmem_fallocate`: room in a file of a tmpfs, such as a shared memory segment in /dev/shm.
    ShmemFallocate,
    /// `execve`, which pays for a change of user that passed `RLIMIT_NPROC`.
    Execve,
    /// `oom_kill_process`.
    OomKillProcess,
}

/// Number of [`Check`] values.
pub const CHECK_COUNT: usize = Check::OomKillProcess as usize + 1;

impl Check {
    /// Every check, in the order in which the kernel passes them.
    pub const ALL: [Self; CHECK_COUNT] = [
        Self::KernelClone,
        Self::CopyProcess,
        Self::ArchDupTaskStruct,
        Self::TaskExecStateCopy,
        Self::CopyCreds,
        Self::IsRlimitOverlimit,
        Self::IoUringFork,
        Self::CgroupFork,
        Self::SchedFork,
        Self::PerfEventInitTask,
        Self::AuditAlloc,
        Self::SecurityTaskAlloc,
        Self::CopySemundo,
        Self::DupFd,
        Self::CopyFsStruct,
        Self::PgdAlloc,
        Self::DupMmap,
        Self::VmEnoughMemory,
        Self::VmAreaDup,
        Self::AnonVmaFork,
        Self::CopyPageRange,
        Self::CopyNamespaces,
        Self::CopyIo,
        Self::CopyThread,
        Self::AllocPid,
        Self::CgroupCanFork,
        Self::PidsCanFork,
        Self::SchedCgroupFork,
        Self::FutexHashAllocate,
        Self::CgroupCancelFork,
        Self::TryToFreeMemCgroupPages,
        Self::MemCgroupOutOfMemory,
        Self::TryCharge,
        Self::MemcgKmemCharge,
        Self::MemcgKmemChargePage,
        Self::VmMmapPgoff,
        Self::DoBrkFlags,
        Self::MayExpandVm,
        Self::Mremap,
        Self::Mprotect,
        Self::ExpandDownwards,
        Self::HugetlbReservePages,
        Self::MlockFuture,
        Self::GetUnmappedArea,
        Self::ShmemFallocate,
        Self::Execve,
        Self::OomKillProcess,
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

    /// Whether reaching it says how far a fork came: memory cgroups may act at any stage.
    #[must_use]
    pub const fn is_stage(self) -> bool {
        (self as u32) < Self::TryToFreeMemCgroupPages as u32
    }
}

/// What saw the refusal.
pub mod source {
    /// The kernel's own `kernel_clone`, by fexit or kprobe.
    pub const KERNEL_CLONE: u32 = 1;
    /// The return of `fork` in the watched process's C library.
    pub const LIBC_FORK: u32 = 2;
    /// The system call, by the tracepoints `sys_enter` and `sys_exit`.
    pub const SYSCALL: u32 = 3;
    /// No fork, but an `execve` that was refused.
    pub const EXECVE: u32 = 4;
}

/// Parts of [`Attempt::syscall`]: what a [`source::SYSCALL`] attempt was seen to be.
pub mod syscall {
    /// The number of the system call.
    pub const NUMBER: u32 = 0xffff;
    /// `sys_enter` was seen: no filter or tracer answered in place of the kernel's fork path.
    pub const ENTERED: u32 = 1 << 16;
    /// `sys_exit` was seen and `sys_enter`, which was watched, was not.
    pub const ANSWERED_BEFORE: u32 = 1 << 17;

    /// `clone` (x86-64, arch/x86/entry/syscalls/syscall_64.tbl).
    pub const CLONE: u32 = 56;
    /// `fork`.
    pub const FORK: u32 = 57;
    /// `vfork`.
    pub const VFORK: u32 = 58;
    /// `clone3`.
    pub const CLONE3: u32 = 435;
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
    /// [`super::Attempt::pidns`] has at least one level.
    pub const PIDNS: u32 = 1 << 8;
    /// `pid_max` in `pidns` (6.18 and later).
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
    /// [`super::Attempt::memcg`] was read at `try_to_free_mem_cgroup_pages`.
    pub const MEMCG_RECLAIM: u32 = 1 << 17;
    /// [`super::Attempt::memcg`] was read at `mem_cgroup_out_of_memory`.
    pub const MEMCG_OOM: u32 = 1 << 18;
    /// `kmem_usage` and `kmem_max` of [`super::MemcgSeen`].
    pub const MEMCG_KMEM: u32 = 1 << 19;
    /// `oom_kill_disable` of [`super::MemcgSeen`] (kernels with cgroup v1 memory).
    pub const MEMCG_OOM_DISABLE: u32 = 1 << 20;
    /// [`super::State::oom_score_adj`].
    pub const OOM_SCORE_ADJ: u32 = 1 << 21;
    /// [`super::State::ptrace`].
    pub const PTRACE: u32 = 1 << 22;
    /// [`super::State::max_fds`].
    pub const MAX_FDS: u32 = 1 << 23;
    /// The open files were looked through for a client: [`super::Attempt::client`] holds it,
    /// or family 0 when none is open.
    pub const CLIENT: u32 = 1 << 24;
    /// There are more open files than were looked through.
    pub const CLIENT_TRUNCATED: u32 = 1 << 25;
    /// There are more pid namespaces above than were read.
    pub const PIDNS_TRUNCATED: u32 = 1 << 26;
    /// `memsw_usage` and `memsw_max` of [`super::MemcgSeen`] (cgroup v1).
    pub const MEMCG_MEMSW: u32 = 1 << 27;
    /// [`super::Attempt::pidns`] and `set_tid_size` were read inside `alloc_pid`.
    pub const PIDNS_AT_CHECK: u32 = 1 << 28;
    /// [`super::State::pending_signals`].
    pub const PENDING_SIGNALS: u32 = 1 << 29;
    /// [`super::State::oom_victim`].
    pub const OOM_VICTIM: u32 = 1 << 30;
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
    /// Not 0: the count in `user_struct` (before 5.14).
    pub of_user: u32,
}

/// One pid namespace, from the one that the child would have been in upwards.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidnsLevel {
    /// Inode number.
    pub inum: u32,
    /// `pid_namespace.pid_allocated`: numbers given out, and in bit 31 whether more may be.
    pub allocated: u32,
    /// `pid_namespace.pid_max`, 0 where the kernel has one for all (before 6.18).
    pub pid_max: i32,
    /// `pid_namespace.level`; 0 is the host's.
    pub level: u32,
}

/// The memory cgroup that was at its limit. Counters are in pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemcgSeen {
    /// Inode number of the cgroup's directory.
    pub cgroup_id: u64,
    /// `memory.usage`.
    pub usage: i64,
    /// `memory.max`; `i64::MAX / 4096` or more means "max".
    pub max: i64,
    /// `memsw.usage` (cgroup v1), else 0.
    pub memsw_usage: i64,
    /// `memsw.max` (cgroup v1), else 0.
    pub memsw_max: i64,
    /// `kmem.usage`.
    pub kmem_usage: i64,
    /// `kmem.max`.
    pub kmem_max: i64,
    /// `oom_kill_disable` (cgroup v1): nonzero means that nobody is killed.
    pub oom_kill_disable: u32,
    /// How many times memory was reclaimed for this fork.
    pub reclaims: u32,
}

/// The other end of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// `AF_INET`, `AF_INET6` or `AF_UNIX`; 0 for none.
    pub family: u16,
    /// TCP port in host byte order.
    pub port: u16,
    /// Pid of the process that connected (Unix socket), in the initial pid namespace.
    pub peer_pid: u32,
    /// Its effective uid when it connected, as kuid.
    pub peer_uid: u32,
    /// IPv4 address in the first four bytes, or IPv6 address, in network byte order.
    pub address: [u8; 16],
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
    /// `task_struct.policy`.
    pub policy: u32,
    /// `task_struct.seccomp.mode`.
    pub seccomp_mode: u32,
    /// `signal_struct.oom_score_adj`.
    pub oom_score_adj: i32,
    /// `task_struct.ptrace`: nonzero when a tracer is attached.
    pub ptrace: u32,
    /// `fdtable.max_fds`: room of the table of open files.
    pub max_fds: u32,
    /// `task_struct.pending.signal`, bit n = signal n+1: SIGKILL is there for whatever ends the
    /// process (kernel/signal.c `complete_signal`, 5.10 to 7.2).
    pub pending_signals: u32,
    /// Nonzero when the process is marked as a victim of an OOM killer (`signal_struct.oom_mm`).
    pub oom_victim: u32,
    /// Perf events on the task that its children inherit, of the first [`MAX_PERF_EVENTS`] in each
    /// of its contexts; 0 also where they were not read.
    pub perf_events: u32,
    /// Nonzero when syscall user dispatch is on (5.11 and later); 0 also where that was not read.
    pub user_dispatch: u32,
}

/// One fork, clone, clone3 or vfork of a watched process, or a refused execve, and, when it was
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
    /// The chain of pid namespaces.
    pub pidns: [PidnsLevel; MAX_PIDNS_LEVELS],
    /// Entries used in `pidns`.
    pub pidns_levels: u32,
    /// Pid of the watched process that this one is, or descends from.
    pub watched: u32,
    /// The memory cgroup that was at its limit.
    pub memcg: MemcgSeen,
    /// Whose connection it was.
    pub client: Client,
    /// How many numbers were asked for (`set_tid_size` of `alloc_pid`, or of clone3).
    pub set_tid_size: u32,
    /// Parts of [`syscall`], for [`source::SYSCALL`].
    pub syscall: u32,
    /// Where the kernel side keeps it while it is in progress.
    pub place: u32,
    /// State at the end.
    pub state: State,
    /// Records lost so far because the ring buffer was full.
    pub lost_before: u64,
    /// Arguments kept between the two halves of a kprobe pair.
    pub stash: [u64; 3],
    /// The same for `mem_cgroup_out_of_memory`, in which other checks run.
    pub memcg_stash: u64,
    /// The client's `struct sock`, while it is looked for.
    pub client_sock: u64,
    /// `task_struct.comm`.
    pub comm: [u8; 16],
    /// Nonzero when the process is a watched postmaster itself.
    pub postmaster: u32,
    /// Padding.
    pub pad: u32,
}

/// Kinds of record in the ring buffer: the first `u32` of each.
pub mod record {
    /// An [`super::Attempt`].
    pub const REFUSAL: u32 = 1;
    /// A [`super::ProcessEvent`]: a program named like a postmaster was started.
    pub const EXEC: u32 = 2;
    /// A [`super::ProcessEvent`]: a watched process ended.
    pub const EXIT: u32 = 3;
    /// A [`super::MemoryRefusal`].
    pub const MEMORY: u32 = 4;
    /// A [`super::OomKill`].
    pub const OOM_KILL: u32 = 5;
    /// A [`super::Sigkill`].
    pub const SIGKILL: u32 = 6;
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

/// One check that refused memory to a running process. One request of a C library may
/// give several (brk, then mmap, each by way of a limit): user space puts them together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRefusal {
    /// [`record::MEMORY`].
    pub kind: u32,
    /// A [`Check`] by number.
    pub check: u32,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Pid of the watched process that this one is, or descends from.
    pub watched: u32,
    /// As in [`Failed::ret`].
    pub ret: i32,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// Bytes asked for, 0 when not known.
    pub bytes: u64,
    /// Flags of the mapping as the call had them (`MAP_*`), 0 when not known; of
    /// [`Check::ShmemFallocate`] the device of the file system (`super_block.s_dev`).
    pub flags: u64,
    /// `mm->total_vm` in pages.
    pub total_vm_pages: u64,
    /// `mm->data_vm` in pages.
    pub data_vm_pages: u64,
    /// `mm->stack_vm` in pages.
    pub stack_vm_pages: u64,
    /// `mm->locked_vm` in pages.
    pub locked_vm_pages: u64,
    /// `RLIMIT_AS` in bytes.
    pub rlimit_as: u64,
    /// `RLIMIT_DATA` in bytes.
    pub rlimit_data: u64,
    /// `RLIMIT_STACK` in bytes.
    pub rlimit_stack: u64,
    /// `RLIMIT_MEMLOCK` in bytes.
    pub rlimit_memlock: u64,
    /// `mm->map_count`.
    pub map_count: i32,
    /// Bits of [`memory_valid`].
    pub valid: u32,
    /// The failing call of `__vm_enough_memory`, where it is that check.
    pub overcommit: Overcommit,
    /// `task_struct.comm`.
    pub comm: [u8; 16],
}

/// Bits of [`MemoryRefusal::valid`].
pub mod memory_valid {
    /// `total_vm_pages`, `data_vm_pages`, `stack_vm_pages`.
    pub const MM: u32 = 1 << 0;
    /// `map_count`.
    pub const MAP_COUNT: u32 = 1 << 1;
    /// `locked_vm_pages`.
    pub const LOCKED_VM: u32 = 1 << 2;
    /// The four limits.
    pub const RLIMITS: u32 = 1 << 3;
    /// `overcommit`, but for `committed_pages` and `mode`.
    pub const OVERCOMMIT: u32 = 1 << 4;
    /// `overcommit.committed_pages`.
    pub const COMMITTED: u32 = 1 << 5;
    /// `overcommit.mode`.
    pub const OVERCOMMIT_MODE: u32 = 1 << 6;
    /// `bytes`.
    pub const BYTES: u32 = 1 << 7;
}

/// The OOM killer chose a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomKill {
    /// [`record::OOM_KILL`].
    pub kind: u32,
    /// Process id of the victim in the initial pid namespace.
    pub victim: u32,
    /// Pid of the watched process that the victim is, or descends from; 0 for none.
    pub watched: u32,
    /// The process whose request brought it about.
    pub trigger: u32,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// `mm->total_vm` of the victim in pages.
    pub total_vm_pages: u64,
    /// Inode number of the memory cgroup that was out of memory; 0 for the whole host.
    pub memcg_id: u64,
    /// Its usage in pages.
    pub memcg_usage: i64,
    /// Its limit in pages.
    pub memcg_max: i64,
    /// `oom_score_adj` of the victim.
    pub oom_score_adj: i32,
    /// Bits of [`oom_valid`].
    pub valid: u32,
    /// `comm` of the victim.
    pub comm: [u8; 16],
}

/// Bits of [`OomKill::valid`].
pub mod oom_valid {
    /// `watched`, `comm`, `oom_score_adj`, `total_vm_pages`: the victim's task was at hand.
    pub const TASK: u32 = 1 << 0;
    /// `memcg_id`, `memcg_usage`, `memcg_max`: whose memory was short was seen.
    pub const SCOPE: u32 = 1 << 1;
}

/// SIGKILL was sent to a watched process or a child of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sigkill {
    /// [`record::SIGKILL`].
    pub kind: u32,
    /// Process id of the target in the initial pid namespace.
    pub target: u32,
    /// Pid of the watched process that the target is, or descends from.
    pub watched: u32,
    /// Process id of the sender; the sender's uid follows.
    pub sender: u32,
    /// Real uid of the sender (kuid).
    pub sender_uid: u32,
    /// Nonzero when the kernel itself sent it.
    pub from_kernel: u32,
    /// `comm` of the sender.
    pub sender_comm: [u8; 16],
    /// `comm` of the target.
    pub target_comm: [u8; 16],
}

/// Key of the counts of connections by client.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientKey {
    /// Process id of the postmaster in the initial pid namespace.
    pub tgid: u32,
    /// As in [`Client::family`]; 0 counts forks without a client.
    pub family: u32,
    /// Uid for a Unix socket, else 0.
    pub uid: u32,
    /// As in [`Client::address`].
    pub address: [u8; 16],
}

/// What is needed to read errno of a watched process, per process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Offset of `errno` from the thread pointer, 0 when unknown.
    pub errno_tp_offset: i64,
    /// Nonzero for a postmaster: its forks belong to clients.
    pub postmaster: u64,
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
    /// Attempts whose end was not seen: the return was not reported (kretprobes in use), or the
    /// thread ended before it.
    pub missed: u64,
    /// Attempts of descendants that made a child.
    pub child_forks: u64,
    /// Attempts of descendants refused; not part of `refused`.
    pub child_refused: u64,
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
    /// Padding.
    pub pad: u32,
    /// Checks that were reached, as [`Check::bit`]s.
    pub stages: u64,
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
    assert!(size_of::<State>() == 88);
    assert!(size_of::<PidnsLevel>() == 16);
    assert!(size_of::<MemcgSeen>() == 64);
    assert!(size_of::<Client>() == 28);
    assert!(size_of::<Attempt>() == 984);
    assert!(size_of::<MemoryRefusal>() == 168);
    assert!(size_of::<OomKill>() == 80);
    assert!(size_of::<Sigkill>() == 56);
    assert!(size_of::<ClientKey>() == 28);
    assert!(size_of::<ProcessEvent>() == 8);
    assert!(size_of::<Watched>() == 16);
    assert!(size_of::<Totals>() == 64 + 8 * HISTOGRAM_BUCKETS);
    assert!(size_of::<RefusalKey>() == 24);
    assert!(CHECK_COUNT < 64);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Attempt, ClientKey, RefusalKey, Totals, Watched};

    // SAFETY: repr(C), made of integers only, without padding bytes (asserted above).
    unsafe impl aya::Pod for Attempt {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ClientKey {}
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
