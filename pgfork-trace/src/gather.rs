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
        cgroup::{self, Chain, Controller, Level, Manager},
        memory,
        process::{self, Accounted},
        sysctl,
    },
    output::escape,
    verdict::{
        BackendCost, CgroupFact, Facts, HardLimits, KillableFact, MemcgFact, MemoryFacts,
        OvercommitSettings, UnitFact, overcommit,
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
/// The smallest of so many are taken.
const SIZED_CHILDREN: usize = 32;
/// Resident memory of children whose page tables are walked in one go, at most, in bytes: far less
/// than elsewhere, because the kernel's records wait meanwhile.
const WALKED_OF_CHILDREN: u64 = 1 << 30;
/// Names kept of a user's tasks.
const TOP_TASKS: usize = 5;

/// Reads facts, and keeps those that are still fresh.
#[derive(Debug)]
pub struct Gatherer {
    root: Root,
    page_size: u64,
    cpus: u64,
    quick: HashMap<Pid, (Instant, Facts)>,
    charges: HashMap<Pid, (Instant, Option<Accounted>)>,
    backends: HashMap<Pid, (Instant, BackendCost)>,
    tasks: HashMap<u32, (Instant, Vec<(String, u64)>)>,
    memory: HashMap<Pid, (Instant, Vec<MemcgFact>)>,
    killable: HashMap<Pid, (Instant, KillableFact)>,
    /// Cgroups of processes that are watched, as they were when that began: a server that ends by
    /// its refused fork is gone before anything of it is read.
    met: HashMap<Pid, Vec<CgroupFact>>,
    log: Log,
    kernel: Option<(u32, u32)>,
    security_modules: Vec<String>,
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
            met: HashMap::new(),
            root,
            page_size: system_value(libc::_SC_PAGESIZE).unwrap_or(4096),
            cpus: system_value(libc::_SC_NPROCESSORS_ONLN).unwrap_or(1),
            quick: HashMap::new(),
            charges: HashMap::new(),
            backends: HashMap::new(),
            tasks: HashMap::new(),
        }
    }

    /// Facts for one refusal, as of now or shortly before. What cannot be read is absent.
    pub fn facts(&mut self, attempt: &Attempt, now: Instant) -> Facts {
        let pid = attempt.tgid;
        let mut facts = self.facts_of(pid, now);
        // What a server's short-lived descendant was refused is mended at the server.
        let server = match attempt.watched {
            0 => pid,
            watched => watched,
        };
        if server != pid {
            let above = self.facts_of(server, now);
            facts.pid = server;
            facts.unit = above.unit;
            facts.hard_limits = above.hard_limits;
            if facts.cgroups.is_empty() {
                facts.cgroups = above.cgroups;
            }
        }
        if overcommit::mode(attempt, &facts) == Some(overcommit::STRICT) {
            let own = self.charge(pid, now);
            facts.fork_charge_bytes = own.map(|it| it.total_bytes);
            facts.largest_mapping_bytes = own.map(|it| it.largest_bytes);
            facts.backends = self.backends(server, now);
        }
        if attempt.ret == -libc::EAGAIN && attempt.nproc_levels > 0 {
            facts.user_tasks = self.tasks(attempt.state.uid, now);
        }
        self.states(attempt, &mut facts, now);
        facts
    }

    /// Takes down the cgroups of a process that is watched from now on.
    pub fn meet(&mut self, pid: Pid) {
        if let Ok(Some(chain)) = cgroup::chain(&self.root, pid, Controller::Pids) {
            self.met.insert(pid, cgroup_facts(&chain));
        }
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
    /// What is not fresh any more is forgotten: nobody says when a descendant ends.
    pub fn tick(&mut self, now: Instant) {
        self.log.fetch(now);
        let age = |at: &Instant| now.saturating_duration_since(*at);
        self.quick.retain(|_, (at, _)| age(at) < FRESH);
        self.memory.retain(|_, (at, _)| age(at) < FRESH);
        self.charges.retain(|_, (at, _)| age(at) < SLOW_FRESH);
        self.backends.retain(|_, (at, _)| age(at) < SLOW_FRESH);
        self.killable.retain(|_, (at, _)| age(at) < SLOW_FRESH);
        self.tasks.retain(|_, (at, _)| age(at) < SLOW_FRESH);
    }

    /// Forgets a process that ended.
    pub fn forget(&mut self, pid: Pid) {
        self.quick.remove(&pid);
        self.charges.remove(&pid);
        self.backends.remove(&pid);
        self.memory.remove(&pid);
        self.killable.remove(&pid);
        self.met.remove(&pid);
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
                .filter(cgroup::UnitRef::is_system_service)
                .map(|unit| unit.unit),
            // By the ids in a record they are found among those from before, or not at all.
            cgroups: chain
                .map(|chain| cgroup_facts(&chain))
                .filter(|facts| !facts.is_empty())
                .or_else(|| self.met.get(&pid).cloned())
                .unwrap_or_default(),
            pid,
            hard_limits: hard_limits(&self.root, pid),
            kernel: self.kernel,
            pid_max: sysctls.pid_max,
            ..Facts::default()
        }
    }

    /// What a fork of this process charges, unless it has too much resident memory to look at.
    fn charge(&mut self, pid: Pid, now: Instant) -> Option<Accounted> {
        if let Some((at, charge)) = self.charges.get(&pid)
            && now.saturating_duration_since(*at) < SLOW_FRESH
        {
            return *charge;
        }
        let mut budget = process::WALKED_BYTES;
        let charge = process::accounted_within(&self.root, pid, &mut budget);
        self.charges.insert(pid, (read_at(now), charge));
        charge
    }

    /// The cost of a backend, by some of those that run: the smallest ones, as whoever looks at
    /// a large one keeps the kernel's records waiting.
    fn backends(&mut self, server: Pid, now: Instant) -> BackendCost {
        if let Some((at, cost)) = self.backends.get(&server)
            && now.saturating_duration_since(*at) < SLOW_FRESH
        {
            return *cost;
        }
        let children = process::children(&self.root, server);
        let resident = |pid: &Pid| {
            let status = process::status(&self.root, *pid).ok().flatten()?;
            Some((status.vm_rss_bytes?, *pid))
        };
        let newest = children.iter().rev().take(SIZED_CHILDREN);
        let mut sized: Vec<(u64, Pid)> = newest.filter_map(resident).collect();
        sized.sort_unstable();
        let mut budget = WALKED_OF_CHILDREN;
        let mut charges: Vec<u64> = sized
            .iter()
            .take(SAMPLED_CHILDREN)
            .map_while(|(_, pid)| process::accounted_within(&self.root, *pid, &mut budget))
            .map(|it| it.total_bytes)
            .collect();
        charges.sort_unstable();
        let cost = BackendCost {
            children: children.len() as u64,
            commit_bytes: charges.get(charges.len() / 2).copied(),
        };
        self.backends.insert(server, (read_at(now), cost));
        cost
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

/// When what took a while to read was read: its age counts from the end.
fn read_at(now: Instant) -> Instant {
    now.max(Instant::now())
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
    // The limit is the unit's own only in the unit's own directory, not below it. systemctl does
    // not find the units of a user's own manager: there the file is named.
    let unit = cgroup::unit_of(&level.path)
        .filter(|unit| unit.cgroup == level.path && unit.manager == Manager::System);
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
