//! Load the kernel side, attach it, and read what it sends.

mod added;
mod attach;
mod error;
mod libc_fork;
mod loader;
mod record;
mod skipped;
mod verify;

use std::{
    collections::HashMap as StdHashMap,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, RingBuf},
};
use pgfork_trace_common::{
    Attempt, Check, ClientKey, HISTOGRAM_BUCKETS, RefusalKey, Totals, Watched,
};

pub use error::CaptureError;
pub use loader::Settings;
pub use record::Record;
pub use verify::{Loaded, load_all};

use crate::{
    host::{Root, process, sysctl},
    kernel::{
        plan::{Group, Hook, Method, Plan, row},
        symbols::Symbols,
    },
    verdict::Coverage,
};
use added::Added;

/// The attached kernel side. Everything is detached when it is dropped, or by
/// the kernel when the process ends, however it ends.
pub struct Capture {
    ebpf: Ebpf,
    records: RingBuf<MapData>,
    watched: HashMap<MapData, u32, Watched>,
    totals: HashMap<MapData, u32, Totals>,
    refusals: HashMap<MapData, RefusalKey, u64>,
    /// Of processes that are watched no more.
    refusals_taken: u64,
    clients: HashMap<MapData, ClientKey, u64>,
    lost_events: Array<MapData, u64>,
    plan: Plan,
    symbols: Symbols,
    /// The checks of strict overcommit, if they came later.
    strict: Option<Added>,
    /// The checks on hot paths, while they are attached.
    armed: Option<Added>,
    coverage: Coverage,
    probes: usize,
    forks: StdHashMap<u32, attach::ForkProbes>,
    refused_methods: Vec<String>,
}

/// Totals of a process that has not forked yet.
pub(crate) const NO_TOTALS: Totals = Totals {
    forks: 0,
    refused: 0,
    restarted: 0,
    lost: 0,
    untracked: 0,
    missed: 0,
    child_forks: 0,
    child_refused: 0,
    histogram: [0; HISTOGRAM_BUCKETS],
};

impl Capture {
    /// Loads and attaches. Nothing stays behind when it fails.
    ///
    /// # Errors
    /// With what is missing, and what to do about it.
    pub fn start(settings: &Settings) -> Result<Self, CaptureError> {
        loader::start(settings)
    }

    /// Which checks are watched, and how.
    #[must_use]
    pub const fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Which checks were watched during the whole of this attempt.
    #[must_use]
    pub fn coverage_during(&self, attempt: &Attempt) -> &Coverage {
        // Those of strict overcommit are never attached later: they are among the armed ones.
        let added = self.strict.iter().chain(&self.armed);
        added::during(&self.coverage, added, attempt.start_ns)
    }

    /// Number of attached probes on kernel functions and tracepoints.
    #[must_use]
    pub const fn probes(&self) -> usize {
        self.probes
    }

    /// Methods that were tried and refused by the kernel, with the reason.
    #[must_use]
    pub fn refused_methods(&self) -> &[String] {
        &self.refused_methods
    }

    /// Follows the forks of process `pid` (in the initial pid namespace). Of a postmaster it
    /// is also recorded whose connection a fork was for.
    ///
    /// What answers before the kernel's fork path is reached shows at the return of the C
    /// library's `fork` only. Where hooks watch that path and this return cannot be watched, the
    /// reason is given back.
    ///
    /// # Errors
    /// When the table is full or, where its C library's `fork` is what is watched, when the
    /// process has none.
    pub fn watch(
        &mut self,
        pid: u32,
        postmaster: bool,
    ) -> Result<Option<CaptureError>, CaptureError> {
        let mut watched = Watched {
            postmaster: u64::from(postmaster),
            ..Watched::default()
        };
        let hooks = self.coverage.method != Method::Tracepoint;
        let (library, mut unseen) = match self.library(pid) {
            Ok(library) => (library, None),
            Err(error) if hooks => (None, Some(error)),
            Err(error) => return Err(error),
        };
        if let Some(library) = &library {
            watched.errno_tp_offset = library.errno_tp_offset.unwrap_or(0);
        }
        if self.totals.get(&pid, 0).is_err() {
            self.totals
                .insert(pid, NO_TOTALS, 0)
                .map_err(|source| CaptureError::TooManyWatched { pid, source })?;
        }
        self.watched
            .insert(pid, watched, 0)
            .map_err(|source| CaptureError::TooManyWatched { pid, source })?;
        if let Some(library) = library.filter(|_| !self.forks.contains_key(&pid)) {
            match attach::fork_probes(&mut self.ebpf, pid, &library) {
                Ok(probes) => {
                    self.forks.insert(pid, probes);
                }
                Err(error) if hooks => unseen = Some(error),
                Err(error) => {
                    self.unwatch(pid);
                    return Err(error);
                }
            }
        }
        Ok(unseen)
    }

    /// The C library whose `fork` is to be watched, where that does no harm.
    fn library(&mut self, pid: u32) -> Result<Option<libc_fork::Library>, CaptureError> {
        // Both would count each fork twice.
        if self.coverage.syscalls {
            return Ok(None);
        }
        let root = Root::default();
        let release = sysctl::read_sysctl(&root, "kernel/osrelease")
            .ok()
            .flatten()
            .unwrap_or_default();
        // A filter may come later; with hooks there is less to gain than to lose.
        let filtered = || {
            let status = process::status(&root, pid).ok().flatten();
            status.is_none_or(|status| status.seccomp != Some(process::Seccomp::Off))
        };
        if attach::return_probe_meets_filters(&release)
            && (self.coverage.method != Method::Tracepoint || filtered())
        {
            return Err(CaptureError::ReturnProbe { pid, release });
        }
        attach::load_fork_probes(&mut self.ebpf)?;
        libc_fork::locate(pid).map(Some)
    }

    /// Whether [`Self::watch`] finds all that it needs: right after a process has executed a
    /// program its C library is not mapped, and then not linked yet.
    #[must_use]
    pub fn is_ready(&self, pid: u32) -> bool {
        self.coverage.method != Method::Tracepoint
            || libc_fork::locate(pid).is_ok_and(|library| library.errno_tp_offset.is_some())
    }

    /// Stops following `pid`, as if it never had been.
    pub fn forget(&mut self, pid: u32) {
        self.unwatch(pid);
        self.take_refusals(pid);
        self.take_totals(pid);
        self.take_clients(pid);
    }

    /// Counts of a process that is watched no more make room for those of others.
    fn take_refusals(&mut self, pid: u32) -> u64 {
        let mut all = self.refusals();
        all.retain(|(key, _)| key.tgid == pid);
        for (key, _) in &all {
            // Absent is what is wanted.
            let _ = self.refusals.remove(key);
        }
        all.iter().map(|(_, count)| count).sum()
    }

    /// Stops following `pid`; its totals remain readable.
    pub fn unwatch(&mut self, pid: u32) {
        self.forks.remove(&pid);
        // Absent is what is wanted.
        let _ = self.watched.remove(&pid);
    }

    /// Totals of a process that is watched no more; their place, and that of its refusals, is free
    /// for another.
    pub fn take_totals(&mut self, pid: u32) -> Option<Totals> {
        let totals = self.totals(pid)?;
        self.refusals_taken += self.take_refusals(pid);
        // Absent is what is wanted.
        let _ = self.totals.remove(&pid);
        Some(totals)
    }

    /// Whether errno can be read for `pid` (always, but with the tracepoint method).
    #[must_use]
    pub fn reads_errno(&self, pid: u32) -> bool {
        self.coverage.method != Method::Tracepoint
            || self.coverage.syscalls
            || self
                .watched
                .get(&pid, 0)
                .is_ok_and(|watched| watched.errno_tp_offset != 0)
    }

    /// The next record, if one is waiting.
    pub fn next_record(&mut self) -> Option<Record> {
        loop {
            let item = self.records.next()?;
            if let Some(record) = Record::decode(&item) {
                return Some(record);
            }
        }
    }

    /// Exact totals of a watched process.
    #[must_use]
    pub fn totals(&self, pid: u32) -> Option<Totals> {
        self.totals.get(&pid, 0).ok()
    }

    /// Connections of postmasters so far, by client; family 0 counts forks for none. Of very
    /// many clients the rarest are forgotten.
    #[must_use]
    pub fn clients(&self) -> Vec<(ClientKey, u64)> {
        self.clients.iter().filter_map(Result::ok).collect()
    }

    /// Connections of a process that is watched no more; another with its pid begins anew.
    pub fn take_clients(&mut self, pid: u32) -> Vec<(ClientKey, u64)> {
        let mut clients = self.clients();
        clients.retain(|(key, _)| key.tgid == pid);
        for (key, _) in &clients {
            // Absent is what is wanted.
            let _ = self.clients.remove(key);
        }
        clients
    }

    /// Records other than refusals that were lost because the ring buffer was full.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.lost_events.get(&0, 0).unwrap_or(0)
    }

    /// Whether what refuses in strict overcommit may be watched and is not. While the checks on hot
    /// paths are, it is among them or has just been refused.
    #[must_use]
    pub fn lacks_strict(&self) -> bool {
        self.coverage.method != Method::Tracepoint
            && self.armed.is_none()
            && Check::ALL
                .into_iter()
                .any(|check| is_strict(check) && !self.coverage.sees(check))
    }

    /// Attaches what refuses in strict overcommit, for the rest of the watch; returns how many
    /// probes that adds.
    ///
    /// # Errors
    /// When it cannot be attached here, or this kernel does not have it.
    pub fn watch_strict(&mut self) -> Result<usize, CaptureError> {
        let added = self.add(&[Group::Strict])?;
        let probes = added.probes;
        if probes == 0 {
            let lost = self.plan.not_seen.iter().find(|it| is_strict(it.check));
            return Err(CaptureError::Method {
                method: self.coverage.method.name(),
                why: lost.map_or_else(String::new, |it| it.why.clone()),
            });
        }
        self.strict = Some(added);
        Ok(probes)
    }

    /// Attaches the checks on hot paths as well; returns how many probes that adds, 0 when
    /// they are attached already.
    ///
    /// # Errors
    /// When none of them can be attached here; nothing is then attached.
    pub fn arm(&mut self) -> Result<usize, CaptureError> {
        if self.coverage.method == Method::Tracepoint {
            return Err(CaptureError::Method {
                method: self.coverage.method.name(),
                why: "it hooks no function of the kernel".to_owned(),
            });
        }
        if self.armed.is_some() {
            return Ok(0);
        }
        // What calls it comes behind it: what it says would be taken for the caller's own.
        let added = self.add(&[Group::Strict, Group::Armed])?;
        let probes = added.probes;
        if probes > 0 {
            self.armed = Some(added);
        }
        Ok(probes)
    }

    /// Detaches what [`Self::arm`] attached; with `keep_strict` what refuses in strict overcommit
    /// stays, for the rest of the watch.
    pub fn disarm(&mut self, keep_strict: bool) {
        let Some(mut armed) = self.armed.take() else {
            return;
        };
        let stays = |hook: &Hook| keep_strict && is_strict(hook.check);
        let (kept, gone): (Vec<Hook>, Vec<Hook>) = armed.hooks.into_iter().partition(stays);
        for hook in gone {
            attach::detach(&mut self.ebpf, hook.alternative);
        }
        self.coverage = armed.before.clone();
        self.probes -= armed.probes;
        if kept.is_empty() {
            return;
        }
        let checks = kept.iter().map(|hook| hook.check);
        self.coverage.hooked.extend(checks);
        armed.probes = kept.iter().map(|hook| self.programs_of(hook)).sum();
        armed.hooks = kept;
        self.probes += armed.probes;
        self.strict = Some(armed);
    }

    /// How many programs hook a function.
    fn programs_of(&self, hook: &Hook) -> usize {
        let of = hook.alternative;
        let names = [of.fentry, of.fexit, of.kprobe, of.kretprobe];
        let loaded = |name: &&str| self.ebpf.program(name).is_some_and(|it| it.fd().is_ok());
        names.into_iter().flatten().filter(loaded).count()
    }

    /// Attaches those checks of the groups that are not watched yet, one group after the other.
    /// Nothing has changed when it fails.
    fn add(&mut self, groups: &[Group]) -> Result<Added, CaptureError> {
        let before = self.coverage.clone();
        let lacking = |check, group| row(check).group == group && !before.sees(check);
        let of_group = |group| {
            let hooks = self.plan.hooks.iter().copied();
            hooks.filter(move |hook| lacking(hook.check, group))
        };
        let chosen: Vec<Hook> = groups.iter().flat_map(|group| of_group(*group)).collect();
        // Without memory for them there still are kprobes.
        let by_ids = before.method == Method::Fexit;
        let ids = by_ids.then(|| loader::function_ids(&chosen).ok());
        let ids = ids.flatten();
        let (mut hooks, mut probes, mut refused) = (Vec::new(), 0, Vec::new());
        for hook in chosen {
            match loader::by_best(&mut self.ebpf, &hook, ids.as_ref()) {
                Ok(attached) => {
                    probes += attached;
                    hooks.push(hook);
                }
                Err(error) => refused.push((hook.check, error)),
            }
        }
        if hooks.is_empty()
            && let Some((_, error)) = refused.pop()
        {
            return Err(error);
        }
        let coverage = &mut self.coverage;
        coverage.hooked.extend(hooks.iter().map(|hook| hook.check));
        // Refused before, and taken now.
        let taken = |check| hooks.iter().any(|hook| hook.check == check);
        coverage.not_seen.retain(|(check, _)| !taken(*check));
        let not_offered = self
            .plan
            .not_seen
            .iter()
            .filter(|it| groups.contains(&row(it.check).group) && !before.misses(it.check));
        let not_taken = refused.iter();
        coverage.not_seen.extend(
            not_offered
                .map(|it| (it.check, it.why.clone()))
                .chain(not_taken.map(|(check, error)| (*check, error.to_string())))
                .chain(loader::partly_seen(&self.symbols, &hooks)),
        );
        self.probes += probes;
        Ok(Added {
            hooks,
            probes,
            since_ns: monotonic_ns(),
            before,
        })
    }

    /// Runs of our programs that the kernel left out, by program.
    #[must_use]
    pub fn skipped_runs(&self) -> Vec<(String, u64)> {
        skipped::runs(&self.ebpf)
    }

    /// How many refusals were counted, by all that was seen of them.
    #[must_use]
    pub fn refusals_counted(&self) -> u64 {
        let there: u64 = self.refusals().iter().map(|(_, count)| count).sum();
        there + self.refusals_taken
    }

    /// Exact counts of refusals, by what was seen of them.
    #[must_use]
    pub fn refusals(&self) -> Vec<(RefusalKey, u64)> {
        self.refusals.iter().filter_map(Result::ok).collect()
    }

    /// Connects the kernel side's diagnostics to the `log` crate.
    ///
    /// # Errors
    /// When the log ring buffer cannot be read.
    pub fn diagnostics(
        &mut self,
    ) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
    }
}

fn is_strict(check: Check) -> bool {
    row(check).group == Group::Strict
}

/// The clock of the kernel side's times (`bpf_ktime_get_ns`).
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes into what is handed over.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
        // Then everything is over: nothing waits for ever, and nothing counts as watched.
        return u64::MAX;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Readable when records are waiting.
impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.records.as_fd()
    }
}
