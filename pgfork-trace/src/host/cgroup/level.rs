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
    /// `max` in `pids.events`. On v1, on v2 of 5.10 and 6.1, and with the mount option
    /// `pids_localevents`: forks from this very cgroup that were refused, be it by a level above.
    /// Else, on v2 of 6.12 to 7.2: forks refused by this limit or one below it (`pids_event` in
    /// kernel/cgroup/pids.c).
    pub events_max: Option<u64>,
    /// `max` in `pids.events.local`, where it exists (v2 of newer kernels): forks refused by this
    /// limit alone; with `pids_localevents` the same as `events_max` (`__pids_events_show`).
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
    /// `memory.memsw.usage_in_bytes`; v1 only.
    pub memsw_current_bytes: Option<u64>,
    /// `memory.kmem.limit_in_bytes`, bytes; v1 only. Enforced on 5.10 (`__memcg_kmem_charge`),
    /// without effect on 6.1 and later.
    pub kmem_max_bytes: Option<Ceiling>,
    /// `memory.kmem.usage_in_bytes`, bytes; v1 only.
    pub kmem_current_bytes: Option<u64>,
    /// `oom_kill_disable` in `memory.oom_control`; v1 only.
    pub oom_kill_disable: Option<bool>,
    /// `memory.oom.group`: all tasks are killed, not one; v2 only.
    pub oom_group: Option<bool>,
    // v2: of `memory.events.local`, since `memory.events` counts what happened below as well,
    // unless mounted with `memory_localevents` (`memcg_memory_event`, include/linux/memcontrol.h,
    // 5.10 to 7.2); it is read only where there is no `.local`, as before 5.2.
    /// `high`: times that the cgroup was slowed down; v2 only.
    pub events_high: Option<u64>,
    /// `max` (`memory.failcnt`): times that the limit was hit.
    pub events_max: Option<u64>,
    /// `oom`: times that reclaim could not help; v2 only.
    pub events_oom: Option<u64>,
    /// `oom_kill` (in `memory.oom_control`): tasks of this very cgroup that were killed.
    pub events_oom_kill: Option<u64>,
    /// `memory.memsw.failcnt`: times that the limit of memory and swap was hit; v1 only.
    pub events_memsw: Option<u64>,
    /// `memory.kmem.failcnt`: times that the limit of kernel memory was hit; v1 only.
    pub events_kmem: Option<u64>,
}

/// Reads it. A file that is not in its format is absent, and named in `unread`.
pub(super) fn read_level(
    path: PathBuf,
    directory: PathBuf,
    controller: Controller,
    version: Version,
    unread: &mut Vec<String>,
) -> Level {
    let mut level = Level {
        inode: directory.metadata().ok().map(|found| found.ino()),
        path,
        pids: PidsFacts::default(),
        memory: MemoryFacts::default(),
        directory,
    };
    let mut files = Files {
        directory: &level.directory,
        unread,
    };
    match (controller, version) {
        (Controller::Pids, _) => level.pids = files.pids(),
        (Controller::Memory, Version::V1) => level.memory = files.memory_v1(),
        (Controller::Memory, Version::V2) => level.memory = files.memory_v2(),
    }
    level
}

/// The files of one cgroup.
struct Files<'d> {
    directory: &'d Path,
    unread: &'d mut Vec<String>,
}

impl Files<'_> {
    fn pids(&mut self) -> PidsFacts {
        PidsFacts {
            current: self.number("pids.current"),
            max: self.ceiling("pids.max"),
            events_max: self.counter("pids.events", "max"),
            events_local_max: self.counter("pids.events.local", "max"),
        }
    }

    fn memory_v2(&mut self) -> MemoryFacts {
        let local = self.directory.join("memory.events.local").exists();
        let events = if local {
            "memory.events.local"
        } else {
            "memory.events"
        };
        MemoryFacts {
            current_bytes: self.number("memory.current"),
            max_bytes: self.ceiling("memory.max"),
            high_bytes: self.ceiling("memory.high"),
            swap_max_bytes: self.ceiling("memory.swap.max"),
            swap_current_bytes: self.number("memory.swap.current"),
            oom_group: self.number("memory.oom.group").map(|group| group != 0),
            events_high: self.counter(events, "high"),
            events_max: self.counter(events, "max"),
            events_oom: self.counter(events, "oom"),
            events_oom_kill: self.counter(events, "oom_kill"),
            ..MemoryFacts::default()
        }
    }

    fn memory_v1(&mut self) -> MemoryFacts {
        let oom_kill_disable = self.counter("memory.oom_control", "oom_kill_disable");
        MemoryFacts {
            current_bytes: self.number("memory.usage_in_bytes"),
            max_bytes: self.ceiling_v1("memory.limit_in_bytes"),
            memsw_max_bytes: self.ceiling_v1("memory.memsw.limit_in_bytes"),
            memsw_current_bytes: self.number("memory.memsw.usage_in_bytes"),
            kmem_max_bytes: self.ceiling_v1("memory.kmem.limit_in_bytes"),
            kmem_current_bytes: self.number("memory.kmem.usage_in_bytes"),
            oom_kill_disable: oom_kill_disable.map(|value| value != 0),
            events_max: self.number("memory.failcnt"),
            events_oom_kill: self.counter("memory.oom_control", "oom_kill"),
            events_memsw: self.number("memory.memsw.failcnt"),
            events_kmem: self.number("memory.kmem.failcnt"),
            ..MemoryFacts::default()
        }
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        read::noted(read::number(&self.directory.join(name)), self.unread)
    }

    fn ceiling(&mut self, name: &str) -> Option<Ceiling> {
        read::noted(read::ceiling(&self.directory.join(name)), self.unread)
    }

    fn ceiling_v1(&mut self, name: &str) -> Option<Ceiling> {
        read::noted(ceiling_v1(&self.directory.join(name)), self.unread)
    }

    fn counter(&mut self, name: &str, key: &str) -> Option<u64> {
        read::noted(counter(&self.directory.join(name), key), self.unread)
    }
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
