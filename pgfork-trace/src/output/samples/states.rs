//! Refusals for causes other than the usual limits, judged from records made by hand.

use pgfork_trace_common::{Attempt, Check, Failed, PidnsLevel, source, valid};

use super::{HOSTILE, MIB, refusal};
use crate::{
    kernel::plan::Method,
    output::line::Refusal,
    verdict::{
        CgroupFact, Coverage, Facts, KillableFact, LogFact, MemcgFact, MemoryFacts,
        OvercommitSettings, UnitFact, judge,
    },
};

const UNIT: &str = "postgresql@15-main.service";

fn attempt(ret: i32, source: u32) -> Attempt {
    // SAFETY: an Attempt is made of integers only.
    let mut attempt: Attempt = unsafe { std::mem::zeroed() };
    (attempt.source, attempt.ret, attempt.tgid, attempt.tid) = (source, ret, 1843, 1843);
    attempt.valid = valid::RET;
    attempt
}

fn hooked(ret: i32, failed: &[(Check, i32)], reached: &[Check]) -> Attempt {
    let mut attempt = attempt(ret, source::KERNEL_CLONE);
    for (slot, (check, ret)) in attempt.trail.iter_mut().zip(failed) {
        *slot = Failed {
            check: *check as u32,
            ret: *ret,
        };
        attempt.trail_len += 1;
    }
    let failed = failed.iter().map(|(check, _)| check);
    for check in reached.iter().chain(failed) {
        attempt.stages |= check.bit();
    }
    attempt
}

fn facts() -> Facts {
    Facts {
        page_size: 4096,
        cpus: 2,
        pid: 1843,
        unit: Some(UNIT.to_owned()),
        kernel: Some((6, 18)),
        memory: Some(MemoryFacts {
            mem_total: 16_000 * MIB,
            mem_available: 12_000 * MIB,
            ..MemoryFacts::default()
        }),
        overcommit: Some(OvercommitSettings::default()),
        ..Facts::default()
    }
}

fn judged(attempt: &Attempt, facts: &Facts, method: Method) -> Refusal {
    let hooked = match method {
        Method::Tracepoint => [].into(),
        _ => Check::ALL.into_iter().collect(),
    };
    let coverage = Coverage {
        method,
        hooked,
        not_seen: Vec::new(),
        syscalls: false,
    };
    let mut refusal = refusal(attempt.ret, judge(attempt, facts, &coverage));
    refusal.method = method;
    refusal
}

fn memory(path: &str, unit: Option<&str>, usage: u64, limit: Option<u64>) -> MemcgFact {
    MemcgFact {
        group: CgroupFact {
            runtime: None,
            id: 700 + path.len() as u64,
            path: path.to_owned(),
            directory: format!("/sys/fs/cgroup{path}"),
            unit: unit.map(|name| UnitFact {
                name: name.to_owned(),
                property: "MemoryMax".to_owned(),
            }),
            container: None,
        },
        usage: Some(usage),
        limit,
        ..MemcgFact::default()
    }
}

pub(in crate::output) fn no_victim() -> Refusal {
    let mut facts = facts();
    let path = format!("/system.slice/{UNIT}");
    facts.memory_cgroups = vec![
        memory(&path, Some(UNIT), 2_048 * MIB, Some(2_048 * MIB)),
        memory(
            "/system.slice",
            Some("system.slice"),
            2_900 * MIB,
            Some(3_000 * MIB),
        ),
    ];
    facts.killable = Some(KillableFact {
        looked_at: 33,
        protected: 33,
    });
    facts.kernel_log = vec![LogFact::NothingKillable];
    let mut attempt = hooked(
        -libc::ENOMEM,
        &[
            (Check::MemCgroupOutOfMemory, 0),
            (Check::CopyCreds, -libc::ENOMEM),
        ],
        &[Check::TryToFreeMemCgroupPages],
    );
    attempt.memcg.cgroup_id = facts.memory_cgroups[0].group.id;
    (attempt.memcg.usage, attempt.memcg.max) = (524_288, 524_288);
    attempt.memcg.reclaims = 17;
    attempt.valid |= valid::MEMCG_RECLAIM | valid::MEMCG_OOM;
    judged(&attempt, &facts, Method::Fexit)
}

fn namespaces(attempt: &mut Attempt, levels: &[(u32, u32, i32)]) {
    for (number, (taken, alive, pid_max)) in levels.iter().enumerate() {
        attempt.pidns[number] = PidnsLevel {
            inum: 4_026_532_500 + number as u32,
            allocated: alive << 31 | taken,
            pid_max: *pid_max,
            level: (levels.len() - 1 - number) as u32,
        };
    }
    attempt.pidns_levels = levels.len() as u32;
    attempt.valid |= valid::PIDNS | valid::PIDNS_PID_MAX | valid::PIDNS_AT_CHECK;
}

pub(in crate::output) fn pid_numbers() -> Refusal {
    let eagain = -libc::EAGAIN;
    let mut attempt = hooked(eagain, &[(Check::AllocPid, eagain)], &[]);
    namespaces(&mut attempt, &[(300, 1, 301), (32_700, 1, 32_768)]);
    judged(&attempt, &facts(), Method::Fexit)
}

pub(in crate::output) fn dying_namespace() -> Refusal {
    let enomem = -libc::ENOMEM;
    let mut attempt = hooked(enomem, &[(Check::AllocPid, enomem)], &[]);
    namespaces(&mut attempt, &[(2, 0, 4_194_304), (900, 1, 32_768)]);
    judged(&attempt, &facts(), Method::Fexit)
}

pub(in crate::output) fn threads() -> Refusal {
    let mut attempt = hooked(
        -libc::EAGAIN,
        &[],
        &[Check::ArchDupTaskStruct, Check::CopyCreds],
    );
    (attempt.state.nr_threads, attempt.state.max_threads) = (31_000, 31_000);
    attempt.valid |= valid::THREADS;
    let mut facts = facts();
    facts.pid_max = Some(32_768);
    judged(&attempt, &facts, Method::Fexit)
}

pub(in crate::output) fn filter() -> Refusal {
    let mut attempt = attempt(-libc::EPERM, source::LIBC_FORK);
    attempt.state.seccomp_mode = 2;
    attempt.valid |= valid::SECCOMP | valid::PTRACE;
    let mut facts = facts();
    facts.security_modules = vec!["capability".to_owned(), "selinux".to_owned()];
    judged(&attempt, &facts, Method::Tracepoint)
}

pub(in crate::output) fn large_mapping() -> Refusal {
    let mut facts = facts();
    facts.largest_mapping_bytes = Some(20_000 * MIB);
    facts.kernel_log = vec![LogFact::CommitRefused { pid: 1843 }];
    judged(
        &attempt(-libc::ENOMEM, source::LIBC_FORK),
        &facts,
        Method::Tracepoint,
    )
}

pub(in crate::output) fn kernel_memory() -> Refusal {
    let attempt = hooked(-libc::ENOMEM, &[], &[Check::ArchDupTaskStruct]);
    judged(&attempt, &facts(), Method::Fexit)
}

/// Names that others choose, in what comes from the kernel log and from cgroups.
pub(in crate::output) fn hostile() -> Refusal {
    let mut facts = facts();
    facts.memory_cgroups = vec![memory(HOSTILE, Some(HOSTILE), MIB, Some(MIB))];
    facts.kernel_log = vec![
        LogFact::AllocationFailed {
            comm: HOSTILE.to_owned(),
        },
        LogFact::PidsRejected {
            path: HOSTILE.to_owned(),
        },
    ];
    let enomem = -libc::ENOMEM;
    let mut attempt = hooked(enomem, &[(Check::MemCgroupOutOfMemory, 0)], &[]);
    attempt.memcg.cgroup_id = facts.memory_cgroups[0].group.id;
    (attempt.memcg.usage, attempt.memcg.max) = (256, 256);
    attempt.valid |= valid::MEMCG_OOM;
    judged(&attempt, &facts, Method::Fexit)
}
