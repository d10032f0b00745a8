//! Tests of putting records together, and of every cause. Here: builders.

mod causes;
mod merging;

use std::collections::HashSet;

use pgfork_trace_common::{Check, MemoryRefusal, Overcommit, memory_valid as valid, record};

use super::{
    super::{MemoryFacts, OvercommitSettings},
    merge::Call,
    *,
};
use crate::kernel::plan::Method;

const PAGE: u64 = 4096;
const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
const ENOMEM: i32 = -libc::ENOMEM;
const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_HUGETLB: u64 = 0x4_0000;
const ANONYMOUS: u64 = 0x20;

/// A backend of 512 MiB address space without limits.
fn failed(check: Check, ret: i32) -> MemoryRefusal {
    MemoryRefusal {
        kind: record::MEMORY,
        check: check as u32,
        tgid: 2210,
        tid: 2210,
        watched: 1843,
        ret,
        time_ns: 1_000_000_000,
        total_vm_pages: 512 * MIB / PAGE,
        data_vm_pages: 64 * MIB / PAGE,
        stack_vm_pages: 33,
        rlimit_as: u64::MAX,
        rlimit_data: u64::MAX,
        rlimit_stack: 8 * MIB,
        rlimit_memlock: 8 * MIB,
        map_count: 200,
        valid: valid::MM | valid::MAP_COUNT | valid::LOCKED_VM | valid::RLIMITS,
        ..MemoryRefusal::default()
    }
}

fn asking(check: Check, ret: i32, bytes: u64) -> MemoryRefusal {
    let mut record = failed(check, ret);
    record.bytes = bytes;
    record.valid |= valid::BYTES;
    record
}

fn mmap(bytes: u64) -> MemoryRefusal {
    MemoryRefusal {
        flags: MAP_PRIVATE | ANONYMOUS,
        ..asking(Check::VmMmapPgoff, ENOMEM, bytes)
    }
}

fn brk(bytes: u64) -> MemoryRefusal {
    asking(Check::DoBrkFlags, ENOMEM, bytes)
}

fn overcommit(bytes: u64, mode: i32) -> MemoryRefusal {
    let mut record = asking(Check::VmEnoughMemory, ENOMEM, bytes);
    record.overcommit = Overcommit {
        pages: i64::try_from(bytes / PAGE).unwrap(),
        total_vm_pages: record.total_vm_pages,
        committed_pages: i64::try_from(3 * GIB / PAGE).unwrap(),
        cap_sys_admin: 0,
        mode,
    };
    record.valid |= valid::OVERCOMMIT | valid::COMMITTED | valid::OVERCOMMIT_MODE;
    record
}

fn call(inner: &[MemoryRefusal], outer: Option<MemoryRefusal>) -> Call {
    Call {
        inner: inner.to_vec(),
        outer,
    }
}

fn request(calls: &[Call]) -> Request {
    Request {
        calls: calls.to_vec(),
    }
}

fn facts() -> RequestFacts {
    RequestFacts {
        host: Facts {
            page_size: PAGE,
            cpus: 2,
            memory: Some(MemoryFacts {
                mem_total: 8 * GIB,
                mem_available: 5 * GIB,
                swap_total: 0,
                commit_limit: 4 * GIB,
                committed_as: 3 * GIB,
                hugetlb: 0,
            }),
            overcommit: Some(OvercommitSettings {
                mode: 0,
                ratio: 50,
                kbytes: 0,
                admin_reserve_kbytes: 8192,
                user_reserve_kbytes: 131_072,
            }),
            unit: Some("postgresql@15-main.service".to_owned()),
            pid: 1843,
            ..Facts::default()
        },
        max_map_count: Some(65_530),
        huge_pages: Some(HugePages {
            page_bytes: 2 * MIB,
            total_pages: 100,
            free_pages: 60,
            reserved_pages: 20,
        }),
        tmpfs: None,
        server: true,
    }
}

fn coverage(without: &[Check]) -> Coverage {
    let hooked: HashSet<Check> = Check::ALL
        .into_iter()
        .filter(|check| !without.contains(check))
        .collect();
    Coverage {
        method: Method::Fexit,
        not_seen: without
            .iter()
            .map(|check| (*check, format!("{check:?} is not in this kernel")))
            .collect(),
        hooked,
        syscalls: false,
    }
}

fn verdict(calls: &[Call]) -> MemoryVerdict {
    judge(&request(calls), &facts(), &coverage(&[])).unwrap()
}

fn found(verdict: &MemoryVerdict) -> (Cause, Certainty) {
    (verdict.cause, verdict.certainty)
}
