//! Processes ended by force.

use jiff::{SignedDuration, Timestamp};

use super::{
    super::{
        escape::{name, sentence},
        line::{Killed, KilledBy, OomKill, Postmaster, Process, Role},
        units::{bytes, count},
    },
    actor::actor,
    block::{self, Block},
    style::Style,
    who,
};
use crate::verdict::{Cause, oom::OomEvidence};

/// Kills by one sender that are shown one by one; an immediate shutdown sends as many as there are backends.
const SHOWN: u64 = 3;
/// Further ones are counted at most once in this time.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);

#[derive(Debug)]
struct Entry {
    postmaster: Postmaster,
    killed_by: KilledBy,
    since: Timestamp,
    shown: u64,
    more: u64,
}

/// Kills by one sender below one watched process, put together.
#[derive(Debug, Default)]
pub(super) struct Fold(Vec<Entry>);

impl Fold {
    /// Whether a kill is shown; else it is counted.
    pub(super) fn see(&mut self, now: Timestamp, killed: &Killed) -> bool {
        if killed.target.pid == killed.postmaster.pid {
            return true;
        }
        let same = self.0.iter_mut().find(|it| {
            it.postmaster.pid == killed.postmaster.pid && it.killed_by == killed.killed_by
        });
        match same {
            Some(entry) if entry.shown >= SHOWN => {
                entry.more += 1;
                false
            }
            Some(entry) => {
                entry.shown += 1;
                true
            }
            None => {
                self.0.push(Entry {
                    postmaster: killed.postmaster.clone(),
                    killed_by: killed.killed_by.clone(),
                    since: now,
                    shown: 1,
                    more: 0,
                });
                true
            }
        }
    }

    /// What is due, or all of it.
    pub(super) fn due(&mut self, now: Timestamp, all: bool) -> Vec<String> {
        let over = |entry: &mut Entry| {
            all || now < entry.since || now.duration_since(entry.since) >= PAUSE
        };
        self.0
            .extract_if(.., over)
            .filter(|entry| entry.more > 0)
            .map(|entry| {
                let what = match entry.more {
                    1 => "process",
                    _ => "processes",
                };
                format!(
                    "SIGKILL {} for {} more {what} of {}",
                    by(&entry.killed_by),
                    count(entry.more),
                    who(&entry.postmaster)
                )
            })
            .collect()
    }
}

/// The block of a kill by the OOM killer; `clock` is its time.
pub(super) fn oom(clock: &str, kill: &OomKill, style: Style) -> String {
    let subject = match &kill.postmaster {
        Some(watched) if watched.pid == kill.victim.pid => style.strong(&who(watched)),
        Some(watched) => format!("{} of {}", style.strong(&actor(&kill.victim)), who(watched)),
        None => format!("{}, not watched", style.strong(&actor(&kill.victim))),
    };
    let verdict = &kill.verdict;
    let mut block = Block {
        out: format!(
            "{clock}  {}  {subject}, by the OOM killer{}\n",
            style.alarm("KILLED"),
            aftermath(&kill.victim)
        ),
        style,
    };
    if verdict.cause == Cause::Unknown {
        // The catalogue speaks of refusals.
        block.row(
            "cause",
            "unknown: whose memory was short was not seen".to_owned(),
        );
    } else {
        block.row(
            "cause",
            block::cause(
                verdict.cause,
                verdict.certainty,
                verdict.scope.as_ref(),
                style,
            ),
        );
    }
    block.row("because", sentence(&verdict.because).into_owned());
    block.rows("numbers", numbers(&verdict.evidence));
    if !verdict.remedy.is_empty() {
        block.rows(
            "remedy",
            block::remedies(verdict.cause, &verdict.remedy, style),
        );
    }
    block.out
}

fn numbers(evidence: &OomEvidence) -> Vec<String> {
    let mut rows = Vec::new();
    let cgroup = evidence.oom_cgroup.as_deref().map(name);
    if let Some(cgroup) = cgroup {
        rows.push(match (evidence.usage_bytes, evidence.limit_bytes) {
            (Some(usage), Some(limit)) => {
                format!("{} of {} in {cgroup}", bytes(usage), bytes(limit))
            }
            (None, Some(limit)) => format!("limit {} of {cgroup}", bytes(limit)),
            _ => format!("in {cgroup}"),
        });
    }
    let sizes = [
        ("private", evidence.anon_rss_bytes),
        ("of files", evidence.file_rss_bytes),
        ("shared", evidence.shmem_rss_bytes),
        ("of page tables", evidence.page_tables_bytes),
    ];
    let mut parts: Vec<String> = sizes
        .into_iter()
        .filter_map(|(what, size)| Some(format!("{} {what}", bytes(size?))))
        .collect();
    if !parts.is_empty() {
        parts = vec![format!("in RAM {}", parts.join(", "))];
    }
    parts.extend(
        evidence
            .total_vm_bytes
            .map(|size| format!("address space {}", bytes(size))),
    );
    parts.extend(
        evidence
            .oom_score_adj
            .map(|adjustment| format!("oom_score_adj {adjustment}")),
    );
    if !parts.is_empty() {
        rows.push(format!("the process: {}", parts.join("; ")));
    }
    rows
}

/// One line: who was killed by whom.
pub(super) fn killed(killed: &Killed) -> String {
    let watched = who(&killed.postmaster);
    let subject = if killed.target.pid == killed.postmaster.pid {
        watched
    } else {
        format!("{} of {watched}", actor(&killed.target))
    };
    let by_itself = matches!(&killed.killed_by, KilledBy::Signal { sender } if sender.pid == killed.postmaster.pid);
    let after = if by_itself {
        ""
    } else {
        aftermath(&killed.target)
    };
    format!(
        "{subject} was sent SIGKILL {}{after}",
        by(&killed.killed_by)
    )
}

/// What a postmaster does when a process with shared memory dies (src/backend/postmaster/postmaster.c
/// `HandleChildCrash`, PostgreSQL 10 to 18).
fn aftermath(target: &Process) -> &'static str {
    match target.role {
        Some(Role::ClientBackend | Role::WalSender) => {
            "; the postmaster then ends all other sessions and recovers"
        }
        _ => "",
    }
}

/// `by process 77 (bash), uid 0`.
pub(super) fn by(killed_by: &KilledBy) -> String {
    match killed_by {
        KilledBy::Signal { sender } => {
            let process = Process {
                pid: sender.pid,
                comm: sender.comm.clone(),
                ..Process::default()
            };
            format!("by {}, uid {}", actor(&process), sender.uid)
        }
        KilledBy::Kernel => {
            "by the kernel (not seen as an OOM kill of this process: its pid namespace ended, RLIMIT_CPU, or it went along with an OOM victim)"
                .to_owned()
        }
        KilledBy::OomKiller => "by the kernel's OOM killer".to_owned(),
    }
}
