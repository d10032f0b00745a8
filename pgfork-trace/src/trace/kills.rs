//! Processes ended by force: what the kernel side saw and what the kernel log says, put together.
//!
//! A state machine fed with times; it reads no clock and no file.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use pgfork_trace_common::{OomKill, Sigkill};

use crate::{
    host::{Pid, oom_log::OomLine},
    output::line::{KilledBy, Postmaster, Process, Sender},
    verdict::{
        CgroupFact,
        oom::{OomReport, merged},
    },
};

/// A kill waits this long for the kernel log, and for the other record of it: two ticks.
const PATIENCE: Duration = Duration::from_millis(500);
/// What ended a process is remembered this long: its end may take a while.
const MEMORY: Duration = Duration::from_secs(60);
/// Most kills remembered, and most victims of the log.
const MOST: usize = 256;

/// An OOM kill of which more may come to be known.
#[derive(Debug)]
pub(super) struct OomVictim {
    pub(super) kill: OomKill,
    pub(super) victim: Process,
    pub(super) postmaster: Option<Postmaster>,
    /// Memory cgroups above the victim, read while it was there.
    pub(super) cgroups: Cgroups,
    pub(super) report: OomReport,
    since: Instant,
}

/// What is read about a victim at once: it will be gone.
#[derive(Debug, Default)]
pub(super) struct Identified {
    pub(super) victim: Process,
    pub(super) postmaster: Option<Postmaster>,
    pub(super) cgroups: Cgroups,
}

/// Memory cgroups from that of a process upwards.
#[derive(Clone, Debug, Default)]
pub(super) struct Cgroups {
    pub(super) levels: Vec<CgroupFact>,
    pub(super) v1: bool,
}

impl Cgroups {
    /// The cgroup that was short of memory, and its place above the victim's own.
    pub(super) fn short(&self, kill: &OomKill, report: &OomReport) -> Option<(usize, CgroupFact)> {
        let logged = report
            .chosen
            .as_ref()
            .and_then(|it| it.oom_memcg.as_deref());
        let at = self.levels.iter().position(|level| match kill.memcg_id {
            0 => logged == Some(level.path.as_str()),
            id => level.id == id,
        })?;
        Some((at, self.levels[at].clone()))
    }
}

/// SIGKILL from the kernel, which an OOM kill may explain.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) process: Process,
    pub(super) postmaster: Postmaster,
    since: Instant,
}

/// What is ready to be said.
#[derive(Debug, Default)]
pub(super) struct Ready {
    pub(super) oom: Vec<OomVictim>,
    pub(super) kernel: Vec<Target>,
}

/// Kills that wait, and what is remembered of those that were said.
#[derive(Debug, Default)]
pub(super) struct Kills {
    oom: Vec<OomVictim>,
    kernel: Vec<Target>,
    /// What the log says about victims whose record has not come yet.
    reports: VecDeque<(Pid, Instant, OomReport)>,
    usage: Option<crate::host::oom_log::Usage>,
    known: VecDeque<(Pid, Instant, KilledBy)>,
    /// OOM kills seen.
    pub(super) oom_kills: u64,
}

impl Kills {
    /// The OOM killer chose a process. `identify` says which, for the first record of it.
    /// Returns whether it is a new one.
    pub(super) fn oom(
        &mut self,
        kill: &OomKill,
        now: Instant,
        identify: impl FnOnce() -> Identified,
    ) -> bool {
        let pid = kill.victim;
        self.kernel.retain(|target| target.process.pid != pid);
        if let Some(waiting) = self.oom.iter_mut().find(|it| it.kill.victim == pid) {
            waiting.kill = merged(&waiting.kill, kill);
            return false;
        }
        if matches!(self.killed_by(pid, now), Some(KilledBy::OomKiller)) {
            return false;
        }
        let Identified {
            victim,
            postmaster,
            cgroups,
        } = identify();
        self.remember(pid, now, KilledBy::OomKiller);
        self.oom_kills += 1;
        let at = self.reports.iter().position(|(of, ..)| *of == pid);
        let report = at.and_then(|at| self.reports.remove(at));
        self.oom.push(OomVictim {
            kill: *kill,
            victim,
            postmaster,
            cgroups,
            report: report.map(|(.., report)| report).unwrap_or_default(),
            since: now,
        });
        true
    }

    /// SIGKILL was sent. Gives what to say now: a kill by the kernel waits, as the OOM killer's
    /// own record may follow, and one that was said is not said again.
    pub(super) fn signal(
        &mut self,
        record: &Sigkill,
        sender: Sender,
        now: Instant,
        process: Process,
        postmaster: Postmaster,
    ) -> Option<(Target, KilledBy)> {
        let pid = record.target;
        let target = Target {
            process,
            postmaster,
            since: now,
        };
        if record.from_kernel != 0 {
            // Each thread group that shares the victim's memory is sent one.
            let told = self.killed_by(pid, now).is_some()
                || self.kernel.iter().any(|it| it.process.pid == pid);
            if !told {
                self.kernel.push(target);
            }
            return None;
        }
        let killed_by = KilledBy::Signal { sender };
        if self.killed_by(pid, now).as_ref() == Some(&killed_by) {
            return None;
        }
        self.remember(pid, now, killed_by.clone());
        Some((target, killed_by))
    }

    /// What the kernel log has that is new.
    pub(super) fn log(&mut self, lines: Vec<OomLine>, now: Instant) {
        for line in lines {
            match line {
                // Printed before its victim is named.
                OomLine::Usage(usage) => self.usage = Some(usage),
                OomLine::Chosen(chosen) => {
                    let usage = self.usage.take().filter(|_| !chosen.global);
                    let pid = chosen.pid;
                    let report = self.report(pid, now);
                    (report.usage, report.chosen) = (usage, Some(chosen));
                }
                OomLine::Killed(killed) => {
                    let pid = killed.pid;
                    self.report(pid, now).killed = Some(killed);
                }
            }
        }
    }

    fn report(&mut self, pid: Pid, now: Instant) -> &mut OomReport {
        if let Some(at) = self.oom.iter().position(|it| it.kill.victim == pid) {
            return &mut self.oom[at].report;
        }
        let old = |since: Instant| now.duration_since(since) >= MEMORY;
        self.reports.retain(|(_, since, _)| !old(*since));
        let at = match self.reports.iter().position(|(of, ..)| *of == pid) {
            Some(at) => at,
            None => {
                if self.reports.len() >= MOST {
                    self.reports.pop_front();
                }
                self.reports.push_back((pid, now, OomReport::default()));
                self.reports.len() - 1
            }
        };
        &mut self.reports[at].2
    }

    /// Whether something waits for the log.
    pub(super) fn is_waiting(&self) -> bool {
        !self.oom.is_empty() || !self.kernel.is_empty()
    }

    /// What is complete, or has waited long enough; all of it for `ended`, or at the end.
    pub(super) fn due(&mut self, now: Instant, ended: Ended) -> Ready {
        let patient = |since: Instant| now.duration_since(since) < PATIENCE;
        let of = |pid: Pid| match ended {
            Ended::Nothing => false,
            Ended::Process(ended) => ended == pid,
            Ended::Watching => true,
        };
        let ready = Ready {
            oom: self
                .oom
                .extract_if(.., |it| {
                    let whole = it.report.killed.is_some()
                        && it.kill.valid & pgfork_trace_common::oom_valid::SCOPE != 0;
                    whole || !patient(it.since) || of(it.kill.victim)
                })
                .collect(),
            kernel: self
                .kernel
                .extract_if(.., |it| !patient(it.since) || of(it.process.pid))
                .collect(),
        };
        for target in &ready.kernel {
            self.remember(target.process.pid, now, KilledBy::Kernel);
        }
        ready
    }

    /// What ended this process by force, if anything did lately.
    pub(super) fn killed_by(&self, pid: Pid, now: Instant) -> Option<KilledBy> {
        let (_, at, killed_by) = self.known.iter().rev().find(|(of, ..)| *of == pid)?;
        (now.duration_since(*at) < MEMORY).then(|| killed_by.clone())
    }

    fn remember(&mut self, pid: Pid, now: Instant, killed_by: KilledBy) {
        if self.known.len() >= MOST {
            self.known.pop_front();
        }
        self.known.push_back((pid, now, killed_by));
    }
}

/// What came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing.
    Nothing,
    /// A process: what is known about it is said before its end is.
    Process(Pid),
    /// Watching.
    Watching,
}

#[cfg(test)]
mod tests {
    use pgfork_trace_common::oom_valid;

    use super::*;
    use crate::host::oom_log::{Chosen, Killed, Usage};

    fn named(pid: Pid) -> Identified {
        Identified {
            victim: Process {
                pid,
                tid: pid,
                ..Process::default()
            },
            ..Identified::default()
        }
    }

    fn victim(pid: Pid, valid: u32) -> OomKill {
        OomKill {
            victim: pid,
            valid,
            ..OomKill::default()
        }
    }

    fn sender(pid: Pid) -> Sender {
        Sender {
            pid,
            comm: None,
            uid: 0,
        }
    }

    fn signal(kills: &mut Kills, target: Pid, from_kernel: u32, now: Instant) -> Option<KilledBy> {
        let record = Sigkill {
            target,
            from_kernel,
            sender: 5,
            ..Sigkill::default()
        };
        let process = named(target).victim;
        kills
            .signal(&record, sender(5), now, process, Postmaster::default())
            .map(|(_, killed_by)| killed_by)
    }

    fn killed(pid: Pid) -> OomLine {
        OomLine::Killed(Killed {
            pid,
            ..Killed::default()
        })
    }

    #[test]
    fn both_records_the_signal_and_the_log_are_one_kill() {
        let (mut kills, now) = (Kills::default(), Instant::now());
        assert!(
            kills.oom(&victim(9, oom_valid::TASK | oom_valid::SCOPE), now, || {
                named(9)
            })
        );
        // The signal of the killer, and the tracepoint behind it.
        assert_eq!(signal(&mut kills, 9, 1, now), None);
        assert!(!kills.oom(&victim(9, 0), now, || unreachable!()));
        assert!(kills.due(now, Ended::Nothing).oom.is_empty());
        let usage = Usage {
            usage_bytes: 1,
            limit_bytes: 2,
        };
        let chosen = Chosen {
            pid: 9,
            ..Chosen::default()
        };
        kills.log(
            vec![OomLine::Usage(usage), OomLine::Chosen(chosen), killed(9)],
            now,
        );
        let ready = kills.due(now, Ended::Nothing);
        assert_eq!((ready.oom.len(), ready.kernel.len()), (1, 0));
        assert_eq!(ready.oom[0].report.usage, Some(usage));
        assert!(ready.oom[0].report.killed.is_some());
        assert_eq!(ready.oom[0].kill.valid, oom_valid::TASK | oom_valid::SCOPE);
        assert_eq!(kills.killed_by(9, now), Some(KilledBy::OomKiller));
        // Late repetition.
        assert!(!kills.oom(&victim(9, 0), now + PATIENCE, || unreachable!()));
        assert_eq!(kills.oom_kills, 1);
        assert!(!kills.is_waiting());
    }

    #[test]
    fn without_the_hook_the_signal_comes_first() {
        let (mut kills, now) = (Kills::default(), Instant::now());
        assert_eq!(signal(&mut kills, 9, 1, now), None);
        assert!(kills.is_waiting());
        assert!(kills.oom(&victim(9, 0), now, || named(9)));
        // No log can be read: it is said all the same.
        let ready = kills.due(now + PATIENCE, Ended::Nothing);
        assert_eq!((ready.oom.len(), ready.kernel.len()), (1, 0));
        assert_eq!(ready.oom[0].report, OomReport::default());
    }

    #[test]
    fn the_log_may_come_before_the_record() {
        let (mut kills, now) = (Kills::default(), Instant::now());
        kills.log(vec![killed(9)], now);
        assert!(kills.oom(&victim(9, oom_valid::SCOPE), now, || named(9)));
        let ready = kills.due(now, Ended::Nothing);
        assert!(ready.oom[0].report.killed.is_some());
    }

    #[test]
    fn signals_of_processes_are_said_once_and_those_of_the_kernel_wait() {
        let (mut kills, now) = (Kills::default(), Instant::now());
        let by = KilledBy::Signal { sender: sender(5) };
        assert_eq!(signal(&mut kills, 9, 0, now), Some(by.clone()));
        assert_eq!(signal(&mut kills, 9, 0, now), None);
        assert_eq!(kills.killed_by(9, now), Some(by));
        assert_eq!(kills.killed_by(9, now + MEMORY), None);
        assert_eq!(signal(&mut kills, 8, 1, now), None);
        assert_eq!(signal(&mut kills, 8, 1, now), None);
        assert_eq!(kills.due(now, Ended::Nothing).kernel.len(), 0);
        // Its end is there: it waits no longer.
        assert_eq!(kills.due(now, Ended::Process(7)).kernel.len(), 0);
        assert_eq!(kills.due(now, Ended::Process(8)).kernel.len(), 1);
        assert_eq!(kills.killed_by(8, now), Some(KilledBy::Kernel));
        assert_eq!(signal(&mut kills, 7, 1, now), None);
        assert_eq!(kills.due(now, Ended::Watching).kernel.len(), 1);
    }

    #[test]
    fn the_cgroup_by_its_id_or_by_the_log() {
        let level = |id, path: &str| CgroupFact {
            id,
            path: path.to_owned(),
            ..CgroupFact::default()
        };
        let cgroups = Cgroups {
            levels: vec![level(7, "/a/b"), level(8, "/a"), level(1, "/")],
            v1: true,
        };
        let report = |path: &str| OomReport {
            chosen: Some(Chosen {
                oom_memcg: Some(path.to_owned()),
                ..Chosen::default()
            }),
            ..OomReport::default()
        };
        let short = |memcg_id, report: &OomReport| {
            let kill = OomKill {
                memcg_id,
                ..victim(9, 0)
            };
            cgroups.short(&kill, report).map(|(at, fact)| (at, fact.id))
        };
        assert_eq!(short(8, &OomReport::default()), Some((1, 8)));
        assert_eq!(short(0, &report("/a/b")), Some((0, 7)));
        // What the kernel side saw wins.
        assert_eq!(short(8, &report("/a/b")), Some((1, 8)));
        assert_eq!(short(99, &report("/a/b")), None);
        assert_eq!(short(0, &OomReport::default()), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut kills, now) = (Kills::default(), Instant::now());
        for pid in 0..2 * MOST as Pid {
            kills.log(vec![killed(pid)], now);
            let _ = signal(&mut kills, pid, 0, now);
        }
        assert_eq!((kills.reports.len(), kills.known.len()), (MOST, MOST));
    }
}
