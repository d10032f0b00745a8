//! The counters and limits of one cgroup.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::read::{self, Ceiling, ReadError};
use super::{Controller, Version};

/// One cgroup in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Path from the root of the hierarchy, as far as the tool can see it: `/system.slice`.
    pub path: PathBuf,
    /// Where its files are, as the tool sees it.
    pub directory: PathBuf,
    /// Inode of the directory: the kernel's id of the cgroup.
    pub inode: Option<u64>,
    /// Counters of the pids controller; all absent for another controller.
    pub pids: PidsFacts,
    /// Counters of the memory controller; all absent for another controller.
    pub memory: MemoryFacts,
}

/// The pids controller's files (kernel/cgroup/pids.c, same names on v1 and v2). The root has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsFacts {
    /// `pids.current`: tasks here and below.
    pub current: Option<u64>,
    /// `pids.max`.
    pub max: Option<Ceiling>,
    /// `max` in `pids.events`. On v1, and on v2 of 5.10 and 6.1: forks from this very cgroup that
    /// were refused, be it by a level above; on v2 of 6.12 to 7.2: forks refused by this limit
    /// (`pids_event` in kernel/cgroup/pids.c).
    pub events_max: Option<u64>,
    /// `max` in `pids.events.local` (v2 of newer kernels).
    pub events_local_max: Option<u64>,
}

/// The memory controller's files (mm/memcontrol.c, mm/memcontrol-v1.c). v1 names in brackets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryFacts {
    /// `memory.current` (`memory.usage_in_bytes`), bytes.
    pub current_bytes: Option<u64>,
    /// `memory.max` (`memory.limit_in_bytes`), bytes.
    pub max_bytes: Option<Ceiling>,
    /// `memory.high`, bytes; v2 only.
    pub high_bytes: Option<Ceiling>,
    /// `memory.swap.max`, bytes; v2 only.
    pub swap_max_bytes: Option<Ceiling>,
    /// `memory.swap.current`, bytes; v2 only.
    pub swap_current_bytes: Option<u64>,
    /// `memory.memsw.limit_in_bytes`: memory and swap together; v1 only.
    pub memsw_max_bytes: Option<Ceiling>,
    /// `memory.kmem.limit_in_bytes`, bytes; v1 only. Enforced on 5.10 (`__memcg_kmem_charge`),
    /// without effect on 6.1 and later.
    pub kmem_max_bytes: Option<Ceiling>,
    /// `memory.kmem.usage_in_bytes`, bytes; v1 only.
    pub kmem_current_bytes: Option<u64>,
    /// `oom_kill_disable` in `memory.oom_control`; v1 only.
    pub oom_kill_disable: Option<bool>,
    /// `max` in `memory.events` (`memory.failcnt`): times that the limit was hit.
    pub events_max: Option<u64>,
    /// `oom` in `memory.events`: times that reclaim could not help; v2 only.
    pub events_oom: Option<u64>,
    /// `oom_kill` in `memory.events` (in `memory.oom_control`): tasks killed.
    pub events_oom_kill: Option<u64>,
}

pub(super) fn read_level(
    path: PathBuf,
    directory: PathBuf,
    controller: Controller,
    version: Version,
) -> Result<Level, ReadError> {
    let mut pids = PidsFacts::default();
    let mut memory = MemoryFacts::default();
    match (controller, version) {
        (Controller::Pids, _) => pids = read_pids(&directory)?,
        (Controller::Memory, Version::V1) => memory = read_memory_v1(&directory)?,
        (Controller::Memory, Version::V2) => memory = read_memory_v2(&directory)?,
    }
    Ok(Level {
        inode: directory.metadata().ok().map(|found| found.ino()),
        path,
        directory,
        pids,
        memory,
    })
}

fn read_pids(directory: &Path) -> Result<PidsFacts, ReadError> {
    Ok(PidsFacts {
        current: read::number(&directory.join("pids.current"))?,
        max: read::ceiling(&directory.join("pids.max"))?,
        events_max: counter(&directory.join("pids.events"), "max")?,
        events_local_max: counter(&directory.join("pids.events.local"), "max")?,
    })
}

fn read_memory_v2(directory: &Path) -> Result<MemoryFacts, ReadError> {
    let events = directory.join("memory.events");
    Ok(MemoryFacts {
        current_bytes: read::number(&directory.join("memory.current"))?,
        max_bytes: read::ceiling(&directory.join("memory.max"))?,
        high_bytes: read::ceiling(&directory.join("memory.high"))?,
        swap_max_bytes: read::ceiling(&directory.join("memory.swap.max"))?,
        swap_current_bytes: read::number(&directory.join("memory.swap.current"))?,
        events_max: counter(&events, "max")?,
        events_oom: counter(&events, "oom")?,
        events_oom_kill: counter(&events, "oom_kill")?,
        ..MemoryFacts::default()
    })
}

fn read_memory_v1(directory: &Path) -> Result<MemoryFacts, ReadError> {
    let oom_control = directory.join("memory.oom_control");
    Ok(MemoryFacts {
        current_bytes: read::number(&directory.join("memory.usage_in_bytes"))?,
        max_bytes: ceiling_v1(&directory.join("memory.limit_in_bytes"))?,
        memsw_max_bytes: ceiling_v1(&directory.join("memory.memsw.limit_in_bytes"))?,
        kmem_max_bytes: ceiling_v1(&directory.join("memory.kmem.limit_in_bytes"))?,
        kmem_current_bytes: read::number(&directory.join("memory.kmem.usage_in_bytes"))?,
        oom_kill_disable: counter(&oom_control, "oom_kill_disable")?.map(|value| value != 0),
        events_max: read::number(&directory.join("memory.failcnt"))?,
        events_oom_kill: counter(&oom_control, "oom_kill")?,
        ..MemoryFacts::default()
    })
}

/// v1 writes "no limit" as the largest number of whole pages in a signed 64-bit number
/// (`PAGE_COUNTER_MAX`, include/linux/page_counter.h): 2^63 minus a page, of up to 64 KiB.
fn ceiling_v1(path: &Path) -> Result<Option<Ceiling>, ReadError> {
    const LARGEST_PAGE: u64 = 64 * 1024;
    const NO_LIMIT: u64 = i64::MAX as u64 - LARGEST_PAGE;
    Ok(read::ceiling(path)?.map(|ceiling| match ceiling {
        Ceiling::At(NO_LIMIT..) => Ceiling::Unlimited,
        other => other,
    }))
}

/// The number behind `name` in a file of lines `name number`.
fn counter(path: &Path, name: &str) -> Result<Option<u64>, ReadError> {
    let mut found = None;
    read::lines(path, |number, line| {
        let mut fields = read::fields(line);
        if fields.next() == Some(name.as_bytes()) {
            let value = fields.next().and_then(read::parse);
            found = Some(value.ok_or_else(|| ReadError::parse(path, number, "a number", line))?);
        }
        Ok(())
    })?;
    Ok(found)
}
