//! Reads the host's side of a refusal: facts for the verdict, nothing decided.

mod log;
mod states;

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use pgfork_trace_common::Attempt;

use crate::{
    host::{
        Pid, Root,
        cgroup::{self, Chain, Controller, Level},
        memory, process, sysctl,
    },
    output::escape,
    verdict::{
        BackendCost, CgroupFact, Facts, HardLimits, KillableFact, MemcgFact, MemoryFacts,
        OvercommitSettings, UnitFact,
    },
};
use log::Log;
pub(crate) use states::memcg_fact;

/// Facts are read anew after this time: a storm of refusals must not become a storm of reading.
const FRESH: Duration = Duration::from_millis(200);
/// What costs more (mappings, all processes) is read anew after this time.
const SLOW_FRESH: Duration = Duration::from_secs(5);
/// Children whose mappings are looked at for the cost of a backend.
const SAMPLED_CHILDREN: usize = 5;
/// Names kept of a user's tasks.
const TOP_TASKS: usize = 5;
const STRICT: i32 = 2;

/// Reads facts, and keeps those that are still fresh.
#[derive(Debug)]
pub struct Gatherer {
    root: Root,
    page_size: u64,
    cpus: u64,
    quick: HashMap<Pid, (Instant, Facts)>,
    slow: HashMap<Pid, (Instant, Slow)>,
    tasks: HashMap<u32, (Instant, Vec<(String, u64)>)>,
    memory: HashMap<Pid, (Instant, Vec<MemcgFact>)>,
    killable: HashMap<Pid, (Instant, KillableFact)>,
    log: Log,
    kernel: Option<(u32, u32)>,
    security_modules: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct Slow {
    fork_charge_bytes: Option<u64>,
    largest_mapping_bytes: Option<u64>,
    backends: BackendCost,
}

impl Gatherer {
    /// For the host below `root`.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self {
            log: Log::start(&root),
            kernel: states::kernel(&root),
            security_modules: states::security_modules(&root),
            memory: HashMap::new(),
            killable: HashMap::new(),
            root,
            page_size: system_value(libc::_SC_PAGESIZE).unwrap_or(4096),
            cpus: system_value(libc::_SC_NPROCESSORS_ONLN).unwrap_or(1),
            quick: HashMap::new(),
            slow: HashMap::new(),
            tasks: HashMap::new(),
        }
    }

    /// Facts for one refusal, as of now or shortly before. What cannot be read is absent.
    pub fn facts(&mut self, attempt: &Attempt, now: Instant) -> Facts {
        let pid = attempt.tgid;
        let mut facts = self.facts_of(pid, now);
        if facts
            .overcommit
            .is_some_and(|settings| settings.mode == STRICT)
        {
            let slow = self.slow(pid, now);
            facts.fork_charge_bytes = slow.fork_charge_bytes;
            facts.largest_mapping_bytes = slow.largest_mapping_bytes;
            facts.backends = slow.backends;
        }
        if attempt.ret == -libc::EAGAIN && attempt.nproc_levels > 0 {
            facts.user_tasks = self.tasks(attempt.state.uid, now);
        }
        self.states(attempt, &mut facts, now);
        facts
    }

    /// Facts that are read in one quick look, for whatever was refused to `pid`.
    pub fn facts_of(&mut self, pid: Pid, now: Instant) -> Facts {
        match self.quick.get(&pid) {
            Some((at, facts)) if now.duration_since(*at) < FRESH => facts.clone(),
            _ => {
                let facts = self.read(pid);
                self.quick.insert(pid, (now, facts.clone()));
                facts
            }
        }
    }

    /// Takes what the kernel has logged meanwhile, so that it is known when that was.
    pub fn tick(&mut self, now: Instant) {
        self.log.fetch(now);
    }

    /// Forgets a process that ended.
    pub fn forget(&mut self, pid: Pid) {
        self.quick.remove(&pid);
        self.slow.remove(&pid);
        self.memory.remove(&pid);
        self.killable.remove(&pid);
    }

    fn read(&self, pid: Pid) -> Facts {
        let (sysctls, _) = sysctl::sysctls(&self.root);
        let chain = cgroup::chain(&self.root, pid, Controller::Pids)
            .ok()
            .flatten();
        Facts {
            page_size: self.page_size,
            cpus: self.cpus,
            memory: memory_facts(&self.root),
            overcommit: overcommit_settings(&sysctls),
            threads: sysctls.nr_threads.zip(sysctls.threads_max),
            unit: chain
                .as_ref()
                .and_then(|chain| cgroup::unit_of(&chain.path))
                .filter(|unit| unit.kind == cgroup::UnitKind::Service)
                .map(|unit| unit.unit),
            cgroups: chain.map(|chain| cgroup_facts(&chain)).unwrap_or_default(),
            pid,
            hard_limits: hard_limits(&self.root, pid),
            kernel: self.kernel,
            pid_max: sysctls.pid_max,
            ..Facts::default()
        }
    }

    fn slow(&mut self, pid: Pid, now: Instant) -> Slow {
        if let Some((at, slow)) = self.slow.get(&pid)
            && now.duration_since(*at) < SLOW_FRESH
        {
            return slow.clone();
        }
        let accounted = |pid| {
            process::accounted(&self.root, pid)
                .ok()
                .flatten()
                .map(|it| it.total_bytes)
        };
        let children = process::children(&self.root, pid);
        let mut charges: Vec<u64> = children
            .iter()
            .rev()
            .take(SAMPLED_CHILDREN)
            .filter_map(|child| accounted(*child))
            .collect();
        charges.sort_unstable();
        let own = process::accounted(&self.root, pid).ok().flatten();
        let slow = Slow {
            fork_charge_bytes: own.map(|it| it.total_bytes),
            largest_mapping_bytes: own.map(|it| it.largest_bytes),
            backends: BackendCost {
                children: children.len() as u64,
                commit_bytes: charges.get(charges.len() / 2).copied(),
            },
        };
        self.slow.insert(pid, (now, slow.clone()));
        slow
    }

    fn tasks(&mut self, uid: u32, now: Instant) -> Vec<(String, u64)> {
        if let Some((at, tasks)) = self.tasks.get(&uid)
            && now.duration_since(*at) < SLOW_FRESH
        {
            return tasks.clone();
        }
        let tasks: Vec<(String, u64)> = process::tasks_by_comm_of_uid(&self.root, uid, TOP_TASKS)
            .unwrap_or_default()
            .into_iter()
            .map(|(comm, count)| (text(&comm), count))
            .collect();
        self.tasks.insert(uid, (now, tasks.clone()));
        tasks
    }
}

pub(crate) fn system_value(name: libc::c_int) -> Option<u64> {
    // SAFETY: sysconf only reads.
    u64::try_from(unsafe { libc::sysconf(name) })
        .ok()
        .filter(|value| *value > 0)
}

pub(crate) fn hard_limits(root: &Root, pid: Pid) -> HardLimits {
    let limits = process::limits(root, pid).ok().flatten();
    let limits = limits.unwrap_or_default();
    let hard = |limit: Option<process::RLimit>| Some(limit?.hard.value().unwrap_or(u64::MAX));
    HardLimits {
        nproc: hard(limits.processes),
        address_space: hard(limits.address_space_bytes),
        data: hard(limits.data_bytes),
        stack: hard(limits.stack_bytes),
        memlock: hard(limits.locked_memory_bytes),
    }
}

pub(crate) fn memory_facts(root: &Root) -> Option<MemoryFacts> {
    let (info, _) = memory::meminfo(root);
    let info = info?;
    Some(MemoryFacts {
        mem_total: info.mem_total_bytes?,
        mem_available: info.mem_available_bytes?,
        swap_total: info.swap_total_bytes?,
        commit_limit: info.commit_limit_bytes?,
        committed_as: info.committed_as_bytes?,
        // Absent without huge pages in the kernel.
        hugetlb: info.hugetlb_bytes.unwrap_or(0),
    })
}

pub(crate) fn overcommit_settings(sysctls: &sysctl::Sysctls) -> Option<OvercommitSettings> {
    Some(OvercommitSettings {
        mode: i32::try_from(sysctls.overcommit_memory?).ok()?,
        ratio: sysctls.overcommit_ratio?,
        kbytes: sysctls.overcommit_kbytes?,
        admin_reserve_kbytes: sysctls.admin_reserve_kbytes?,
        user_reserve_kbytes: sysctls.user_reserve_kbytes?,
    })
}

fn cgroup_facts(chain: &Chain) -> Vec<CgroupFact> {
    chain
        .levels
        .iter()
        .filter_map(|level| cgroup_fact(level, Controller::Pids))
        .collect()
}

/// What a level is called, and who manages its limit for `controller`.
pub(crate) fn cgroup_fact(level: &Level, controller: Controller) -> Option<CgroupFact> {
    // The limit is the unit's own only in the unit's own directory, not below it.
    let unit = cgroup::unit_of(&level.path).filter(|unit| unit.cgroup == level.path);
    let container = cgroup::container_of(&level.path);
    Some(CgroupFact {
        id: level.inode?,
        path: text(level.path.as_os_str()),
        directory: text(level.directory.as_os_str()),
        unit: unit.map(|unit| UnitFact {
            property: unit.property(controller).to_owned(),
            name: unit.unit,
        }),
        runtime: container
            .as_ref()
            .filter(|container| container.cgroup == level.path)
            .map(|container| container.runtime),
        container: container.map(|container| container.id),
    })
}

/// A name for output: bytes that are not UTF-8 stay recognizable.
#[must_use]
pub fn text(name: &OsStr) -> String {
    escape::from_bytes(name.as_bytes())
}
