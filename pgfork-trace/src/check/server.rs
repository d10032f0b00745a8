//! Facts about one server.

use std::{collections::HashMap, path::Path};

use crate::{
    gather::{self, text},
    host::{
        Ceiling, Root, capability,
        census::Seen,
        cgroup::{self, Chain, Controller, Level, Reach},
        process::{self, Accounted, INITIAL_USER_NS, Namespaces, Status},
        sock_diag::{self, Peer, Silence},
        users,
    },
    postgres::{Kind, Postmaster, Settings, Title, settings},
    verdict::{
        CgroupLevel, Facts,
        headroom::{Access, Cost, HeadroomFacts, MemoryLevel, NprocFacts, PidNumbers, Slots},
    },
};

use super::{
    host::{Host, noted, odd},
    in_force::InForce,
};

/// Backends whose mappings are looked at.
const SAMPLED: usize = 5;
/// `oom_score_adj` that exempts (mm/oom_kill.c `oom_badness`, 5.10 to 7.2).
const NEVER_KILLED: i32 = -1000;
/// Kernel stack of a task, in bytes (`THREAD_SIZE`, arch/x86/include/asm/page_64_types.h).
const STACK: u64 = 16 << 10;

/// A child of the postmaster.
#[derive(Debug)]
pub(super) struct Child<'h> {
    pub(super) seen: &'h Seen,
    pub(super) title: Option<Title>,
}

impl Child<'_> {
    fn is_client(&self) -> bool {
        matches!(&self.title, Some(title) if matches!(title.kind, Kind::Client(_)))
    }
}

/// One server.
#[derive(Debug)]
pub(super) struct Server<'h> {
    pub(super) postmaster: Postmaster,
    pub(super) settings: Settings,
    pub(super) in_force: InForce,
    pub(super) children: Vec<Child<'h>>,
    pub(super) headroom: HeadroomFacts,
    pub(super) pids: Option<Chain>,
    pub(super) memory: Option<Chain>,
    /// Size of the shared memory segment, and whether it is of huge pages.
    pub(super) shared: Option<(u64, bool)>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) child_oom_score_adj: Option<i32>,
    pub(super) not_seen: Vec<String>,
}

impl<'h> Server<'h> {
    /// Reads all of it.
    pub(super) fn read(root: &Root, host: &'h Host, postmaster: Postmaster) -> Self {
        let settings = settings(root, postmaster.pid);
        let children = children(root, host, &postmaster, &settings);
        let mut server = Self {
            in_force: InForce::read(root, &postmaster),
            not_seen: super::settings::unread(&settings),
            settings,
            children,
            headroom: HeadroomFacts::default(),
            pids: None,
            memory: None,
            shared: None,
            oom_score_adj: None,
            child_oom_score_adj: None,
            postmaster,
        };
        server.fill(root, host);
        server
    }

    fn fill(&mut self, root: &Root, host: &Host) {
        let pid = self.postmaster.pid;
        let notes = &mut self.not_seen;
        let status = noted(process::status(root, pid), notes).flatten();
        let accounted = noted(process::accounted(root, pid), notes).flatten();
        if accounted.is_none() {
            notes.push("the postmaster's mappings cannot be read (that takes root or its user): what a fork charges is not known".to_owned());
        }
        self.shared = accounted
            .filter(|it| it.shared_bytes > 0)
            .map(|it| (it.shared_bytes, it.shared_is_huge));
        let namespaces = process::namespaces(&root.pid(pid));
        self.pids = noted(cgroup::chain(root, pid, Controller::Pids), notes).flatten();
        self.memory = noted(cgroup::chain(root, pid, Controller::Memory), notes).flatten();
        for chain in [self.pids.as_ref(), self.memory.as_ref()] {
            reach_notes(chain, notes);
            let unread = chain.iter().flat_map(|chain| &chain.unread);
            notes.extend(unread.map(|it| odd(it)));
        }
        // Without the link it is not known in which user namespace capabilities count.
        let capable = |number: u32| {
            namespaces.user == Some(INITIAL_USER_NS)
                && status
                    .as_ref()
                    .and_then(|it| it.cap_effective)
                    .is_some_and(|caps| caps & capability::mask(number) != 0)
        };
        let pids = self.pids_levels(host);
        let cgroups = self
            .pids
            .iter()
            .flat_map(|chain| &chain.levels)
            .filter_map(|level| gather::cgroup_fact(level, Controller::Pids))
            .collect();
        let cost = self.cost(root, host, accounted.as_ref());
        self.headroom.killable = self.killable(root);
        self.headroom = HeadroomFacts {
            host: Facts {
                page_size: host.page_size,
                cpus: host.cpus,
                memory: host.memory,
                overcommit: host.overcommit,
                threads: host.threads,
                cgroups,
                unit: self.service(),
                fork_charge_bytes: accounted.map(|it| it.total_bytes),
                pid,
                hard_limits: gather::hard_limits(root, pid),
                ..Facts::default()
            },
            access: self.access(root, namespaces.mnt),
            kernel: host.kernel,
            swap_free: host.info.as_ref().and_then(|info| info.swap_free_bytes),
            shmem: host.info.as_ref().and_then(|info| info.shmem_bytes),
            total_vm_pages: status
                .as_ref()
                .and_then(|status| status.vm_size_bytes)
                .map(|bytes| bytes / host.page_size),
            cap_sys_admin: capable(capability::SYS_ADMIN),
            cap_sys_resource: capable(capability::SYS_RESOURCE),
            largest_charge: accounted.map(|it| it.largest_bytes),
            cost,
            pids,
            memory: self.memory_levels(root, host),
            killable: self.headroom.killable,
            nproc: self.nproc(root, host, status.as_ref(), &namespaces),
            numbers: numbers(root, host, &namespaces),
            pid_namespace_alive: namespace_alive(root, host, &namespaces),
            slots: self.slots(),
            max_connections: self.in_force.max_connections(&self.settings),
        };
    }

    /// How a command gets to the server; `mounts` is its mount namespace.
    fn access(&self, root: &Root, mounts: Option<u64>) -> Access {
        let postmaster = &self.postmaster;
        let own = process::namespaces(&root.proc().join("self")).mnt;
        let shown = |path: &Path| path.to_str().map(str::to_owned);
        // An abstract one has no directory.
        let socket_dir = postmaster.lock_file.socket_dir.as_deref();
        let exe = postmaster.exe.as_ref();
        let stderr = root.pid(postmaster.pid).join("fd/2");
        let is_file = std::fs::metadata(&stderr).is_ok_and(|it| it.is_file());
        let log = std::fs::read_link(stderr).ok().filter(|_| is_file);
        Access {
            log: log.as_deref().and_then(shown),
            uid: postmaster.uid,
            user: users::by_uid(root, postmaster.uid).map(|user| user.name),
            socket_dir: socket_dir.filter(|dir| dir.is_absolute()).and_then(shown),
            port: postmaster.port,
            programs: exe.and_then(|exe| exe.path.parent()).and_then(shown),
            data_dir: text(postmaster.data_dir.as_os_str()),
            elsewhere: own.zip(mounts).is_some_and(|(own, its)| own != its),
        }
    }

    fn service(&self) -> Option<String> {
        let unit = self.postmaster.unit.as_ref()?;
        unit.is_system_service().then(|| unit.unit.clone())
    }

    /// Levels that have the controller, without this program where it is below one.
    fn pids_levels(&self, host: &Host) -> Vec<CgroupLevel> {
        let levels = self.pids.iter().flat_map(|chain| &chain.levels);
        let level = |level: &Level| {
            let fact = gather::cgroup_fact(level, Controller::Pids)?;
            let own = host.own.pids_path.as_ref();
            let own = own.is_some_and(|path| path.starts_with(&level.path));
            Some(CgroupLevel {
                cgroup_id: fact.id,
                path: Some(fact.path),
                property: fact
                    .unit
                    .as_ref()
                    .map_or_else(|| "pids.max".to_owned(), |unit| unit.property.clone()),
                unit: fact.unit.map(|unit| unit.name),
                container: fact.container,
                tasks: level.pids.current?.saturating_sub(u64::from(own)),
                limit: level.pids.max?.value(),
            })
        };
        levels.filter_map(level).collect()
    }

    fn memory_levels(&self, root: &Root, host: &Host) -> Vec<MemoryLevel> {
        let Some(chain) = &self.memory else {
            return Vec::new();
        };
        let killable = self.killable_levels(root, host, &chain.levels);
        let level = |(level, killable): (&Level, Option<bool>)| {
            let facts = level.memory;
            let stat = cgroup::memory_stat(level, chain.version).ok().flatten();
            let shmem = stat.as_ref().map(|stat| stat.shmem);
            let stat = stat.unwrap_or_default();
            let limit = |ceiling: Option<Ceiling>| ceiling.and_then(Ceiling::value);
            let swapped = facts.swap_current_bytes.unwrap_or(0);
            Some(MemoryLevel {
                fact: gather::memcg_fact(level, chain.version)?,
                reclaimable: stat.reclaimable().min(facts.current_bytes.unwrap_or(0)),
                cache_in_use: stat.active_file.min(facts.current_bytes.unwrap_or(0)),
                shmem,
                high: limit(facts.high_bytes),
                swap_room: limit(facts.swap_max_bytes).map(|max| max.saturating_sub(swapped)),
                oom_group: facts.oom_group == Some(true),
                killable,
            })
        };
        let levels = chain.levels.iter().zip(killable);
        levels.filter_map(level).collect()
    }

    /// Whether the OOM killer may end anything in each memory cgroup: where nothing of the server
    /// may be ended, other processes in it may be.
    fn killable_levels(&self, root: &Root, host: &Host, levels: &[Level]) -> Vec<Option<bool>> {
        let server = self.headroom.killable;
        let mut killable = vec![server; levels.len()];
        if server != Some(false) {
            return killable;
        }
        let alive = |seen: &&Seen| !seen.kernel_thread && seen.state != 'Z';
        for seen in host.census.processes.iter().filter(alive) {
            let memberships = cgroup::memberships(root, seen.pid).ok().flatten();
            let memberships = memberships.unwrap_or_default();
            let own = cgroup::membership_for(&memberships, Controller::Memory);
            let Some(path) = own.map(|own| &own.path) else {
                continue;
            };
            let adj = process::oom_score_adj(root, seen.pid).ok().flatten();
            if adj == Some(NEVER_KILLED) {
                continue;
            }
            for (level, killable) in levels.iter().zip(&mut killable) {
                if path.starts_with(&level.path) && *killable != Some(true) {
                    *killable = adj.map(|_| true);
                }
            }
        }
        killable
    }

    /// Medians over some client backends, spread over all of them.
    fn cost(&mut self, root: &Root, host: &Host, postmaster: Option<&Accounted>) -> Cost {
        let clients: Vec<&Seen> = self
            .children
            .iter()
            .filter(|child| child.is_client() && child.seen.state != 'Z')
            .map(|child| child.seen)
            .collect();
        let step = clients.len().div_ceil(SAMPLED).max(1);
        let mut walked = 0;
        let (mut sample, mut page_tables) = (Vec::new(), Vec::new());
        for seen in clients.iter().step_by(step) {
            let status = process::status(root, seen.pid).ok().flatten();
            walked += status.as_ref().and_then(|it| it.vm_rss_bytes).unwrap_or(0);
            page_tables.extend(status.and_then(|it| it.vm_pte_bytes));
            if walked > process::WALKED_BYTES && !sample.is_empty() {
                break;
            }
            let found = process::accounted(root, seen.pid).ok().flatten();
            sample.extend(found.filter(|found| found.mappings > 0));
        }
        let measured = sample.len() as u64;
        if sample.is_empty() {
            self.not_seen.push(match clients.len() {
                0 => "no backend runs: a backend's memory is taken to be what the postmaster's fork charges, and may be more".to_owned(),
                _ => "the memory of backends cannot be read (that takes root or their user)".to_owned(),
            });
            sample.extend(postmaster.filter(|_| clients.is_empty()).copied());
        }
        let threads = clients.iter().map(|seen| seen.threads);
        Cost {
            measured_backends: measured,
            tasks: median(threads).unwrap_or(1).max(1),
            commit_bytes: median(sample.iter().map(|it| it.total_bytes)),
            private_bytes: median(sample.iter().map(|it| it.private_bytes)),
            kernel_bytes: self.kernel_bytes(host, median(page_tables.into_iter())),
        }
    }

    /// Kernel memory of the postmaster's own cgroup for each of its tasks.
    fn kernel_bytes(&self, host: &Host, page_tables: Option<u64>) -> Option<u64> {
        let chain = self.memory.as_ref()?;
        let level = chain.levels.first()?;
        let stat = cgroup::memory_stat(level, chain.version).ok().flatten();
        let fixed = stat.filter(|stat| stat.kernel_fixed() > 0);
        let untold = match fixed {
            Some(stat) if stat.kernel == 0 && !stat.has_page_tables => page_tables.unwrap_or(0),
            _ => 0,
        };
        let pids = self.pids.as_ref().and_then(|chain| chain.levels.first());
        let counted = pids
            .filter(|pids| pids.path == level.path)
            .and_then(|pids| pids.pids.current);
        let tasks = match counted {
            Some(tasks) => {
                let own = host.own.pids_path.as_ref() == Some(&level.path);
                tasks.saturating_sub(u64::from(own))
            }
            // The controllers may count different processes, on v2 where only one of them is switched
            // on for this level: then those of the server alone.
            None => {
                1 + self
                    .children
                    .iter()
                    .map(|child| child.seen.threads)
                    .sum::<u64>()
            }
        };
        let tasks = tasks.max(1);
        if let Some(stat) = fixed {
            return Some(stat.kernel_fixed() / tasks + untold);
        }
        let mapped = page_tables.unwrap_or(0) + STACK;
        let objects = (level.memory.kmem_current_bytes? / tasks).saturating_sub(mapped);
        Some(mapped + lasting(host, objects))
    }

    /// Whether the OOM killer may end anything of the server.
    fn killable(&mut self, root: &Root) -> Option<bool> {
        let adj = |pid| process::oom_score_adj(root, pid).ok().flatten();
        self.oom_score_adj = adj(self.postmaster.pid);
        let of_children: Vec<i32> = self
            .children
            .iter()
            .filter_map(|child| adj(child.seen.pid))
            .collect();
        self.child_oom_score_adj = of_children.iter().copied().max();
        let own = self.oom_score_adj?;
        match self.child_oom_score_adj {
            Some(most) => Some(most > NEVER_KILLED || own > NEVER_KILLED),
            None => (own > NEVER_KILLED).then_some(true),
        }
    }

    fn nproc(
        &self,
        root: &Root,
        host: &Host,
        status: Option<&Status>,
        namespaces: &Namespaces,
    ) -> Option<NprocFacts> {
        let uid = status?.uids.real;
        let limits = process::limits(root, self.postmaster.pid).ok().flatten()?;
        // Since 5.14 a user is counted in each user namespace of its own (kernel/ucount.c).
        let wanted = namespaces.user.filter(|_| host.kernel >= (5, 14));
        let (tasks, uncertain) = host.census.tasks_of(root, uid, wanted);
        let own = host.own.uid == Some(uid)
            && (wanted.is_none() || host.own.user_ns.is_none() || wanted == host.own.user_ns);
        Some(NprocFacts {
            uid,
            userns_inum: namespaces.user.and_then(|user| u32::try_from(user).ok()),
            tasks: tasks.saturating_sub(u64::from(own)),
            uncertain,
            // Another uid 0 has a number that is 0 only in its own user namespace.
            root: uid == 0 && host.own.user_ns.is_none_or(|own| own == INITIAL_USER_NS),
            limit: limits.processes?.soft.value(),
        })
    }

    /// How long its TCP connections have been silent, or a note on why that is not known.
    pub(super) fn silences(&mut self, root: &Root, host: &Host) -> Option<HashMap<Peer, Silence>> {
        let over_tcp = |child: &Child<'_>| match child.title.as_ref().map(|it| &it.kind) {
            Some(Kind::Client(client)) => client.port.is_some(),
            _ => false,
        };
        let port = self.postmaster.port?;
        if !self.children.iter().any(over_tcp) {
            return None;
        }
        let theirs = process::namespaces(&root.pid(self.postmaster.pid)).net;
        let why = if theirs.is_none() || host.own.net_ns.is_none() {
            "its network namespace cannot be read (that takes root or its user)".to_owned()
        } else if theirs != host.own.net_ns {
            "it is in another network namespace".to_owned()
        } else {
            match sock_diag::silences(root, port) {
                Ok(Some(found)) => return Some(found),
                Ok(None) => "the kernel's tcp_diag is not loaded (`ss -t` loads it)".to_owned(),
                Err(error) => format!("the kernel does not tell: {error}"),
            }
        };
        let note = "how long TCP clients have been in their state is not known";
        self.not_seen.push(format!("{note}: {why}"));
        None
    }

    fn slots(&mut self) -> Option<Slots> {
        let version = self.major_version();
        let number = |name, default| self.settings.number(name, default);
        let max = self.in_force.number(&self.settings, "max_connections", 100);
        let reserved = number("superuser_reserved_connections", 3);
        let reserved_roles = match version {
            Some(..16) => Some(0),
            _ => number("reserved_connections", 0),
        };
        let found = max.zip(reserved).zip(reserved_roles);
        let Some(((max, reserved), roles)) = found else {
            self.not_seen.push(
                "the server's settings cannot be read: max_connections is not known".to_owned(),
            );
            return None;
        };
        let takes_slot = |child: &&Child<'_>| match &child.title {
            // Before 12 these took a slot of max_connections too.
            Some(title) => match title.kind {
                Kind::Client(_) => true,
                Kind::WalSender(_) => version.is_some_and(|version| version < 12),
                _ => false,
            },
            None => false,
        };
        Some(Slots {
            used: self.children.iter().filter(takes_slot).count() as u64,
            max,
            reserved: reserved.saturating_add(roles),
            on_command_line: self.settings.is_on_command_line("max_connections"),
        })
    }

    /// `15`, of version 15.
    pub(super) fn major_version(&self) -> Option<u64> {
        self.postmaster
            .version
            .as_ref()?
            .split('.')
            .next()?
            .parse()
            .ok()
    }
}

fn children<'h>(
    root: &Root,
    host: &'h Host,
    postmaster: &Postmaster,
    settings: &Settings,
) -> Vec<Child<'h>> {
    let title = |seen: &Seen| {
        let arguments = process::cmdline(root, seen.pid).ok()?;
        Some(text(arguments.first()?))
    };
    let all: Vec<(&Seen, Option<String>)> = host
        .census
        .children(postmaster.pid)
        .map(|seen| (seen, title(seen)))
        .collect();
    let named = settings.text("cluster_name").map(str::to_owned);
    let cluster = named.or_else(|| {
        let mut titles = all.iter().filter_map(|(_, title)| title.as_deref());
        titles.find_map(Title::cluster_in).map(str::to_owned)
    });
    let parsed = |title: &String| Title::parse(title, cluster.as_deref());
    all.into_iter()
        .map(|(seen, title)| Child {
            seen,
            title: title.as_ref().and_then(parsed),
        })
        .collect()
}

fn numbers(root: &Root, host: &Host, namespaces: &Namespaces) -> Option<PidNumbers> {
    let own = namespaces.pid.zip(host.own.pid_ns);
    let inner = own.filter(|(theirs, ours)| theirs != ours);
    Some(PidNumbers {
        taken: host.census.taken_below(host.pid_max?),
        usable: host.pid_max?.saturating_sub(u64::from(host.census.lowest)),
        inner: inner.map(|(theirs, _)| host.census.tasks_in(root, theirs)),
    })
}

fn namespace_alive(root: &Root, host: &Host, namespaces: &Namespaces) -> Option<bool> {
    let children = namespaces.pid_for_children?;
    if namespaces.pid == Some(children) {
        // Nobody outlives the first process of the namespace that he is in.
        return Some(true);
    }
    host.census.namespace_has_init(root, children)
}

fn reach_notes(chain: Option<&Chain>, notes: &mut Vec<String>) {
    let Some(chain) = chain else { return };
    let controller = chain.controller.name();
    match chain.reach {
        Reach::Root => {}
        Reach::Partial => notes.push(format!(
            "{controller} cgroups above {} are not visible from in here, and may have a lower limit",
            chain.levels.last().map_or_else(|| "/".to_owned(), |top| text(top.path.as_os_str()))
        )),
        Reach::Outside | Reach::NotMounted => notes.push(format!(
            "the postmaster's {controller} cgroup is not mounted here: its limits are not known"
        )),
        Reach::NoController => notes.push(format!("no {controller} cgroup controller here")),
    }
}

/// v1 does not tell kernel objects that can be dropped: the same share of them as on the host.
fn lasting(host: &Host, objects: u64) -> u64 {
    let Some([Some(droppable), Some(fixed)]) = host.info.as_ref().map(|info| info.slab_bytes)
    else {
        return objects;
    };
    let all = u128::from(droppable) + u128::from(fixed);
    let lasting = u128::from(objects) * u128::from(fixed) / all.max(1);
    u64::try_from(lasting).unwrap_or(objects)
}

fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut sorted: Vec<u64> = values.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}
