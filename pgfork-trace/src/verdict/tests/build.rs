//! Small builders of refusals and facts.

use pgfork_trace_common::{
    Attempt, Check, Failed, NprocLevel, Overcommit, PidnsLevel, PidsLevel, record, source, valid,
};

use crate::{
    kernel::plan::Method,
    verdict::{CgroupFact, Coverage, Facts, MemoryFacts, OvercommitSettings, UnitFact},
};

pub(super) const EAGAIN: i32 = -libc::EAGAIN;
pub(super) const ENOMEM: i32 = -libc::ENOMEM;
pub(super) const PAGE: u64 = 4096;
pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
pub(super) const GIB: u64 = 1024 * MIB;
pub(super) const INITIAL_USERNS: u32 = 0xEFFF_FFFD;
pub(super) const POSTGRES: u32 = 999;
pub(super) const CAP_SYS_ADMIN: u64 = 1 << 21;
pub(super) const CAP_SYS_RESOURCE: u64 = 1 << 24;

#[derive(Clone, Copy)]
pub(super) struct Build(Attempt);

/// Seen by hooks in the kernel's fork path.
pub(super) fn hooked(ret: i32) -> Build {
    let mut build = blank(source::KERNEL_CLONE);
    build.0.ret = ret;
    build.0.valid |= valid::RET;
    build
        .reached(Check::KernelClone)
        .total_vm(512 * MIB)
        .mode(0)
}

/// Seen by the return of the C library's `fork`; errno where it could be read.
pub(super) fn by_libc(ret: Option<i32>) -> Build {
    let mut build = blank(source::LIBC_FORK);
    if let Some(ret) = ret {
        build.0.ret = ret;
        build.0.valid |= valid::RET;
    }
    build
}

/// Seen by its system call, of which `call` has the parts.
pub(super) fn by_syscall(call: u32, ret: i32) -> Build {
    blank(source::SYSCALL).with(valid::RET).change(|it| {
        it.ret = ret;
        it.syscall = call;
    })
}

/// An unprivileged process of the host in a living pid namespace.
fn blank(source: u32) -> Build {
    // SAFETY: an Attempt is made of integers only.
    let mut attempt: Attempt = unsafe { std::mem::zeroed() };
    attempt.kind = record::REFUSAL;
    attempt.source = source;
    attempt.tgid = 1843;
    attempt.tid = 1843;
    Build(attempt)
        .credentials(POSTGRES, 0)
        .pid_namespace(1 << 31 | 80)
}

impl Build {
    pub(super) fn done(self) -> Attempt {
        self.0
    }

    pub(super) fn reached(mut self, check: Check) -> Self {
        self.0.stages |= check.bit();
        self
    }

    pub(super) fn failed(mut self, check: Check, ret: i32) -> Self {
        self.0.trail[self.0.trail_len as usize] = Failed {
            check: check as u32,
            ret,
        };
        self.0.trail_len += 1;
        self.reached(check)
    }

    pub(super) fn credentials(mut self, uid: u32, capabilities: u64) -> Self {
        self.0.state.uid = uid;
        self.0.state.cap_effective = capabilities;
        self.0.valid |= valid::CRED;
        self
    }

    pub(super) fn without(mut self, bits: u32) -> Self {
        self.0.valid &= !bits;
        self
    }

    pub(super) fn with(mut self, bits: u32) -> Self {
        self.0.valid |= bits;
        self
    }

    pub(super) fn change(mut self, change: impl FnOnce(&mut Attempt)) -> Self {
        change(&mut self.0);
        self
    }

    pub(super) fn pid_namespace(mut self, allocated: u32) -> Self {
        self.0.pidns[0].allocated = allocated;
        self.0.pidns_levels = 1;
        self.0.valid |= valid::PIDNS;
        self
    }

    /// `(count, limit)` from the own cgroup upwards; cgroup ids are 101, 102, ...
    pub(super) fn pids(mut self, levels: &[(i64, i64)]) -> Self {
        for (number, (count, limit)) in levels.iter().enumerate() {
            self.0.pids[number] = PidsLevel {
                cgroup_id: 101 + number as u64,
                count: *count,
                limit: *limit,
            };
        }
        self.0.pids_levels = levels.len() as u32;
        self.0.valid |= valid::PIDS;
        self
    }

    /// `(count, limit)` in the initial user namespace.
    pub(super) fn nproc(self, count: i64, limit: u64) -> Self {
        self.nproc_levels(&[(count, limit, INITIAL_USERNS)])
    }

    pub(super) fn nproc_levels(mut self, levels: &[(i64, u64, u32)]) -> Self {
        for (slot, (count, limit, userns_inum)) in self.0.nproc.iter_mut().zip(levels) {
            *slot = NprocLevel {
                count: *count,
                limit: *limit,
                userns_inum: *userns_inum,
                of_user: 0,
            };
        }
        self.0.nproc_levels = levels.len() as u32;
        self.0.valid |= valid::NPROC;
        self
    }

    pub(super) fn threads(mut self, tasks: i64, limit: i64) -> Self {
        self.0.state.nr_threads = tasks;
        self.0.state.max_threads = limit;
        self.0.valid |= valid::THREADS;
        self
    }

    /// The refusing call of `__vm_enough_memory`, and the kernel's counter after it.
    pub(super) fn overcommit_call(mut self, call: Overcommit) -> Self {
        self.0.overcommit = call;
        self.0.valid |= valid::OVERCOMMIT_CALL | valid::COMMITTED | valid::OVERCOMMIT_MODE;
        self
    }

    pub(super) fn committed(mut self, bytes: u64) -> Self {
        self.0.overcommit.committed_pages = (bytes / PAGE) as i64;
        self.0.valid |= valid::COMMITTED;
        self
    }

    /// The levels of pid namespaces from the child's upwards; the last is the host's.
    pub(super) fn pid_namespaces(mut self, levels: &[(u32, i32)]) -> Self {
        for (number, (taken, pid_max)) in levels.iter().enumerate() {
            self.0.pidns[number] = PidnsLevel {
                inum: 4_026_530_000 + number as u32,
                allocated: 1 << 31 | taken,
                pid_max: *pid_max,
                level: (levels.len() - 1 - number) as u32,
            };
        }
        self.0.pidns_levels = levels.len() as u32;
        self.with(valid::PIDNS | valid::PIDNS_PID_MAX)
    }

    /// The memory cgroup at its limit, in pages, as `try_to_free_mem_cgroup_pages` had it.
    pub(super) fn memcg(mut self, cgroup_id: u64, usage: i64, max: i64) -> Self {
        self.0.memcg.cgroup_id = cgroup_id;
        self.0.memcg.usage = usage;
        self.0.memcg.max = max;
        self.0.memcg.reclaims += 17;
        self.with(valid::MEMCG_RECLAIM)
            .reached(Check::TryToFreeMemCgroupPages)
    }

    /// Whether SIGKILL was pending when the fork ended.
    pub(super) fn dying(mut self, dying: bool) -> Self {
        self.0.state.pending_signals = if dying { 1 << 8 | 1 << 16 } else { 1 << 16 };
        self.with(valid::PENDING_SIGNALS)
    }

    /// An OOM killer had chosen the process when the fork ended.
    pub(super) fn oom_victim(mut self) -> Self {
        self.0.state.oom_victim = 1;
        self.with(valid::OOM_VICTIM).dying(true)
    }

    pub(super) fn flags(mut self, flags: u64) -> Self {
        self.0.clone_flags = flags;
        self
    }

    /// The mode as it was read with the fork.
    pub(super) fn mode(self, mode: i32) -> Self {
        self.with(valid::OVERCOMMIT_MODE)
            .change(|it| it.overcommit.mode = mode)
    }

    pub(super) fn total_vm(mut self, bytes: u64) -> Self {
        self.0.state.total_vm_pages = bytes / PAGE;
        self.0.valid |= valid::MM;
        self
    }
}

/// A host of 16 GiB with two processors and without swap, in heuristic mode.
pub(super) fn facts() -> Facts {
    Facts {
        page_size: PAGE,
        cpus: 2,
        memory: Some(MemoryFacts {
            mem_total: 16 * GIB,
            mem_available: 12 * GIB,
            swap_total: 0,
            commit_limit: 8 * GIB,
            committed_as: GIB,
            hugetlb: 0,
        }),
        overcommit: Some(OvercommitSettings {
            mode: 0,
            ratio: 50,
            kbytes: 0,
            admin_reserve_kbytes: 8192,
            user_reserve_kbytes: 131_072,
        }),
        pid: 1843,
        ..Facts::default()
    }
}

/// A cgroup of the path; `number` 0 is the own one.
pub(super) fn cgroup(number: u64, path: &str) -> CgroupFact {
    CgroupFact {
        runtime: None,
        id: 101 + number,
        path: path.to_owned(),
        directory: format!("/sys/fs/cgroup{path}"),
        unit: None,
        container: None,
    }
}

pub(super) fn unit(name: &str) -> Option<UnitFact> {
    Some(UnitFact {
        name: name.to_owned(),
        property: "TasksMax".to_owned(),
    })
}

/// Every check is watched.
pub(super) fn all_hooks() -> Coverage {
    Coverage {
        method: Method::Fexit,
        hooked: Check::ALL.into_iter().collect(),
        not_seen: Vec::new(),
        syscalls: false,
    }
}

/// What is attached before anything is armed, of a kernel that has all checks, where memory is not
/// promised strictly.
pub(super) fn base_hooks() -> Coverage {
    let hooked = Check::ALL.into_iter().filter(|check| {
        !matches!(
            check,
            Check::DupMmap
                | Check::VmEnoughMemory
                | Check::VmAreaDup
                | Check::AnonVmaFork
                | Check::CopyPageRange
                | Check::TryCharge
                | Check::MemcgKmemCharge
                | Check::MemcgKmemChargePage
        ) && *check < Check::VmMmapPgoff
    });
    Coverage {
        hooked: hooked.collect(),
        ..all_hooks()
    }
}

/// All but these.
pub(super) fn hooks_without(missing: &[Check]) -> Coverage {
    let mut coverage = all_hooks();
    for check in missing {
        coverage.hooked.remove(check);
        coverage.not_seen.push((*check, "not attached".to_owned()));
    }
    coverage
}

/// The tracepoint method.
pub(super) fn no_hooks() -> Coverage {
    Coverage {
        method: Method::Tracepoint,
        hooked: [].into(),
        not_seen: Vec::new(),
        syscalls: false,
    }
}
