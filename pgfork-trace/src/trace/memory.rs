//! What happens inside watched processes and below them: memory refused, and kills.

use std::time::{Duration, Instant};

use pgfork_trace_common::{self as records, Check, oom_valid};

use crate::{
    capture,
    gather::{cgroup_fact, text},
    host::{
        Pid, Root,
        cgroup::{self, Controller},
        memory, process, sysctl, tmpfs,
    },
    output::{
        Closed,
        line::{
            Errno, Killed, KilledBy, Line, MemoryRefusal, OomKill, Postmaster, Process, Sender,
            WatchedKind,
        },
    },
    verdict::{
        memory::{HugePages, Request, RequestFacts, TmpfsRoom, errno, judge},
        oom::{self, OomFacts},
    },
};

use super::{
    Stop, Trace, descendants,
    kills::{Cgroups, Ended, Identified, OomVictim, Ready},
};

/// Facts are read anew after this time: a storm of refusals must not become a storm of reading.
const FRESH: Duration = Duration::from_millis(200);

/// `vm.max_map_count` and the pool of huge pages, while they are fresh.
#[derive(Debug, Default)]
pub(super) struct RequestFactsCache(Option<(Instant, Option<u64>, Option<HugePages>)>);

impl RequestFactsCache {
    fn read(&mut self, root: &Root, now: Instant) -> (Option<u64>, Option<HugePages>) {
        if let Some((at, max_map_count, huge_pages)) = self.0
            && now.duration_since(at) < FRESH
        {
            return (max_map_count, huge_pages);
        }
        let max_map_count = sysctl::sysctl_number(root, "vm/max_map_count")
            .ok()
            .flatten();
        let (info, _) = memory::meminfo(root);
        let huge_pages = info.as_ref().and_then(huge_pages);
        self.0 = Some((now, max_map_count, huge_pages));
        (max_map_count, huge_pages)
    }
}

/// The tmpfs of a refused request, by its device: as the process has it mounted, or, when that is gone,
/// as its server has.
fn tmpfs_of(root: &Root, record: &records::MemoryRefusal) -> Option<TmpfsRoom> {
    let found = [record.tgid, record.watched]
        .into_iter()
        .find_map(|pid| tmpfs::on_device(root, pid, record.flags))?;
    Some(TmpfsRoom {
        mounted_on: text(found.mounted_on.as_os_str()),
        size_bytes: found.size_bytes,
        free_bytes: found.free_bytes,
    })
}

impl Trace<'_> {
    /// A check refused memory.
    pub(super) fn memory(&mut self, record: &records::MemoryRefusal) -> Result<(), Stop> {
        let complete = self.merger.push(*record);
        self.memory_refusals(&complete)
    }

    /// Requests that nothing can be added to any more.
    pub(super) fn complete_memory(&mut self) -> Result<(), Stop> {
        let complete = self.merger.expire(capture::monotonic_ns());
        self.memory_refusals(&complete)
    }

    fn memory_refusals(&mut self, requests: &[Request]) -> Result<(), Stop> {
        // All of them, also beyond --until and for the file alone: no other count has them.
        let mut said = Ok(());
        for request in requests {
            said = said.and(self.memory_refusal(request));
        }
        said?;
        self.count_refusal()
    }

    /// What is left at the end; the reader of the output may be gone.
    pub(super) fn last_memory_refusals(&mut self) {
        for request in self.merger.drain() {
            let _ = self.memory_refusal(&request);
        }
    }

    fn memory_refusal(&mut self, request: &Request) -> Result<(), Closed> {
        let Some(first) = request.first().copied() else {
            return Ok(());
        };
        let Some(watched) = self.watchlist.get_mut(first.watched) else {
            return Ok(());
        };
        let shown = watched.shown.clone();
        let facts = self.facts_for_request(&shown, request);
        let Some(verdict) = judge(request, &facts, self.capture.coverage()) else {
            return Ok(());
        };
        self.refusals += 1;
        self.memory_refused += 1;
        if let Some(watched) = self.watchlist.get_mut(first.watched) {
            *watched
                .memory_by_cause
                .entry(verdict.cause.id().to_owned())
                .or_default() += 1;
        }
        let process = self.descendants.process(
            &self.root,
            (first.tgid, first.tid),
            descendants::comm(&first.comm),
            &shown,
            Instant::now(),
        );
        let line = Line::MemoryRefusal(Box::new(MemoryRefusal {
            postmaster: shown,
            process,
            errno: errno(request).map(Errno::from_ret),
            method: self.capture.coverage().method,
            verdict,
        }));
        self.emit(&line)
    }

    fn facts_for_request(&mut self, watched: &Postmaster, request: &Request) -> RequestFacts {
        let now = Instant::now();
        let (max_map_count, huge_pages) = self.request_facts.read(&self.root, now);
        RequestFacts {
            host: self.gatherer.facts_of(watched.pid, now),
            server: is_server(watched),
            max_map_count,
            huge_pages,
            tmpfs: request.records().find_map(|record| {
                (record.check == Check::ShmemFallocate as u32)
                    .then(|| tmpfs_of(&self.root, record))
                    .flatten()
            }),
        }
    }

    /// The OOM killer chose a process.
    pub(super) fn oom_kill(&mut self, kill: &records::OomKill) -> Result<(), Closed> {
        let now = Instant::now();
        // The tracepoint of older kernels has the pid only.
        let watched = match kill.watched {
            0 if kill.valid & oom_valid::TASK == 0 => {
                let is_watched = |pid| self.watchlist.is_alive(pid);
                descendants::watched_above(&self.root, kill.victim, is_watched)
            }
            0 => None,
            watched => Some(watched),
        };
        let shown = watched
            .and_then(|pid| self.watchlist.get_mut(pid))
            .map(|watched| watched.shown.clone());
        let (root, descendants) = (&self.root, &mut self.descendants);
        let new = self.kills.oom(kill, now, || {
            let comm = descendants::comm(&kill.comm).or_else(|| {
                let stat = process::stat(root, kill.victim).ok()??;
                Some(text(&stat.comm))
            });
            let victim = match &shown {
                Some(shown) => {
                    descendants.process(root, (kill.victim, kill.victim), comm, shown, now)
                }
                None => Process {
                    pid: kill.victim,
                    tid: kill.victim,
                    comm,
                    ..Process::default()
                },
            };
            Identified {
                cgroups: memory_cgroups(root, kill.victim, shown.as_ref()),
                victim,
                postmaster: shown.clone(),
            }
        });
        if new
            && let Some(watched) = watched
            && let Some(watched) = self.watchlist.get_mut(watched)
        {
            watched.oom_kills += 1;
        }
        self.say_kills(Ended::Nothing)
    }

    /// SIGKILL was sent to a watched process or a descendant of one.
    pub(super) fn sigkill(&mut self, record: &records::Sigkill) -> Result<(), Closed> {
        let now = Instant::now();
        let Some(watched) = self.watchlist.get_mut(record.watched) else {
            return Ok(());
        };
        let shown = watched.shown.clone();
        let process = self.descendants.process(
            &self.root,
            (record.target, record.target),
            descendants::comm(&record.target_comm),
            &shown,
            now,
        );
        let sender = Sender {
            pid: record.sender,
            comm: descendants::comm(&record.sender_comm),
            uid: record.sender_uid,
        };
        match self.kills.signal(record, sender, now, process, shown) {
            Some((target, killed_by)) => {
                self.emit(&killed(target.postmaster, target.process, killed_by))
            }
            None => Ok(()),
        }
    }

    /// Says what is known about kills by now.
    pub(super) fn say_kills(&mut self, ended: Ended) -> Result<(), Closed> {
        let now = Instant::now();
        if let Some(log) = &mut self.oom_log
            && self.kills.is_waiting()
        {
            let lines = log.new_lines();
            self.kills.log(lines, now);
        }
        let Ready { oom, kernel } = self.kills.due(now, ended);
        // All of them: when the reader of standard output goes, the file still gets them.
        let mut said = Ok(());
        for victim in oom {
            let line = self.oom_line(victim);
            said = said.and(self.emit(&line));
        }
        for target in kernel {
            let line = killed(target.postmaster, target.process, KilledBy::Kernel);
            said = said.and(self.emit(&line));
        }
        said
    }

    fn oom_line(&mut self, victim: OomVictim) -> Line {
        let watched = victim.postmaster.as_ref();
        let host = self.gatherer.facts_of(
            watched.map_or(victim.kill.victim, |it| it.pid),
            Instant::now(),
        );
        if watched.is_none() {
            self.gatherer.forget(victim.kill.victim);
        }
        let cgroup = victim.cgroups.short(&victim.kill, &victim.report);
        let facts = OomFacts {
            page_size: host.page_size,
            cgroup,
            cgroup_v1: victim.cgroups.v1,
            watched: watched.is_some(),
            server: watched.is_some_and(is_server),
            postmaster: watched.is_some_and(|it| it.pid == victim.kill.victim && is_server(it)),
            unit: watched.and_then(|it| it.unit.clone()),
            overcommit_memory: host.overcommit.map(|it| it.mode),
        };
        Line::OomKill(Box::new(OomKill {
            verdict: oom::judge(&victim.kill, &victim.report, &facts),
            postmaster: victim.postmaster,
            victim: victim.victim,
            trigger_pid: (victim.kill.trigger != 0).then_some(victim.kill.trigger),
        }))
    }
}

fn is_server(watched: &Postmaster) -> bool {
    watched.kind == WatchedKind::Postmaster
}

/// Memory cgroups above the victim; where it is gone, those above its postmaster.
fn memory_cgroups(root: &Root, victim: Pid, watched: Option<&Postmaster>) -> Cgroups {
    let pids = [Some(victim), watched.map(|it| it.pid)];
    let chain = pids
        .into_iter()
        .flatten()
        .filter_map(|pid| cgroup::chain(root, pid, Controller::Memory).ok()?)
        .find(|chain| !chain.levels.is_empty());
    chain.map_or_else(Cgroups::default, |chain| Cgroups {
        v1: chain.version == cgroup::Version::V1,
        levels: chain
            .levels
            .iter()
            .filter_map(|level| cgroup_fact(level, Controller::Memory))
            .collect(),
    })
}

fn killed(postmaster: Postmaster, target: Process, killed_by: KilledBy) -> Line {
    Line::Killed(Killed {
        postmaster,
        target,
        killed_by,
    })
}

fn huge_pages(info: &memory::MemInfo) -> Option<HugePages> {
    let [total, free, reserved] = info.huge_pages;
    Some(HugePages {
        page_bytes: info.huge_page_bytes?,
        total_pages: total?,
        free_pages: free?,
        reserved_pages: reserved?,
    })
}
