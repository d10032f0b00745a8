//! `pgfork-trace trace`: watch, judge, report.

mod armed;
mod arming;
mod below;
mod clients;
mod comms;
mod descendants;
mod finish;
mod kills;
mod memory;
mod next;
mod privileges;
mod refused;
mod server_logs;
mod signals;
mod starting;
mod totals;
mod watchlist;

use std::{
    future::pending,
    io,
    os::fd::AsFd as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    capture::{Capture, CaptureError, Record, Settings},
    cli::TracePlan,
    gather::Gatherer,
    host::{Root, oom_log::OomLog, process},
    kernel::plan::Method,
    output::{
        Closed, Line, Reporter,
        line::{Change, EndReason, Notice, PostmasterChange, Start},
    },
    postgres,
    verdict::memory::Merger,
};
use armed::{ARMED_FOR, Armed};
use below::Below;
use clients::Clients;
use comms::Comms;
use descendants::Descendants;
use kills::{Ended, Kills};
use memory::RequestFactsCache;
use next::NextLimits;
use server_logs::ServerLogs;
use signals::Signals;
use watchlist::Watchlist;

/// How often folded counts are written and candidates are looked at again.
const TICK: Duration = Duration::from_millis(250);
/// Records taken in one go before signals and timers get their turn: more than the ring buffer holds.
const BATCH: usize = 512;

/// What one run of `trace` is told.
#[derive(Debug)]
pub struct Options {
    /// What to watch, and for how long.
    pub plan: TracePlan,
    /// Method asked for.
    pub method: Option<Method>,
    /// Kernel side diagnostics.
    pub verbose: bool,
    /// When the program started.
    pub started: Instant,
}

/// Watches until the end that was asked for; returns the number of refusals.
///
/// # Errors
/// When watching is not possible, with what to do about it.
pub async fn run(options: &Options, reporter: &mut Reporter) -> Result<u64> {
    let root = Root::default();
    check_pid_namespace(&root)?;
    let discovery = postgres::discover(&root)?;
    let nothing_asked = options.plan.filter == postgres::Filter::default();
    let targets = postgres::select(&root, &discovery.postmasters, &options.plan.filter)
        .map_err(|error| error.seen_through(discovery.hidden.as_deref()))?;
    let mut settings = Settings {
        method: options.method,
        verbose: options.verbose,
        comms: options.plan.filter.comms.clone(),
        all_children: options.plan.all_children,
        syscalls: options.plan.syscalls,
        ..Settings::default()
    };
    if let Some(path) = std::env::var_os("PGFORK_TRACE_BTF") {
        settings.btf = PathBuf::from(path);
    }
    // From here on there is something to bring to an end.
    let mut signals = Signals::catch()?;
    let capture = Capture::start(&settings)?;
    let below = Below::new(options.plan.all_children, capture.coverage());
    let mut trace = Trace {
        gatherer: Gatherer::new(Root::default()),
        clients: Clients::default(),
        server_logs: ServerLogs::default(),
        comms: Comms::new(&options.plan.filter.comms),
        armed: Armed::new(stays_armed()?),
        strict_not_before: None,
        next_limits: NextLimits::default(),
        descendants: Descendants::default(),
        merger: Merger::default(),
        kills: Kills::default(),
        // Before capabilities are dropped. Without it kills are told without sizes.
        oom_log: OomLog::open(&Root::default()).ok(),
        below,
        request_facts: RequestFactsCache::default(),
        memory_refused: 0,
        watchlist: Watchlist::new(options.plan.filter.clone()),
        root,
        capture,
        reporter,
        refusals: 0,
        until: options.plan.until,
        lost_seen: 0,
        before_fork: Vec::new(),
        attached: Instant::now(),
    };
    trace.watch_all(&targets)?;
    // Some may have been started, or may have become one, between the look and the attaching.
    for candidate in &discovery.candidates {
        trace
            .watchlist
            .candidate(&trace.root, candidate.pid, Instant::now());
    }
    for postmaster in postgres::discover(&trace.root)?.postmasters {
        trace
            .watchlist
            .candidate(&trace.root, postmaster.pid, Instant::now());
    }
    // These are part of the first line; what hinders is said behind it.
    let mut notices = trace.look_for_named();
    notices.retain(|line| matches!(line, Line::Notice(_)));
    trace.look_at_logs();
    trace.attached = Instant::now();
    let outcome = trace
        .begin(options, discovery.hidden, nothing_asked)
        .and_then(|()| trace.emit_all(&notices));
    let reason = match outcome {
        Ok(()) => trace.watch(options, &mut signals).await?,
        Err(Closed) => EndReason::Signal,
    };
    trace.finish(reason);
    Ok(trace.refusals)
}

/// How long the checks on hot paths stay. Tests have less time than users.
fn stays_armed() -> Result<Duration> {
    let Some(seconds) = std::env::var_os("PGFORK_TRACE_ARMED_FOR") else {
        return Ok(ARMED_FOR);
    };
    let number = seconds.to_str().and_then(|seconds| seconds.parse().ok());
    let number = number.with_context(|| {
        format!(
            "PGFORK_TRACE_ARMED_FOR={} is no number of seconds",
            seconds.display()
        )
    })?;
    Ok(Duration::from_secs(number))
}

/// The kernel side speaks of processes by their pid in the initial pid namespace.
pub(crate) fn check_pid_namespace(root: &Root) -> Result<()> {
    let own = process::namespaces(&root.pid(std::process::id())).pid;
    if own.is_some_and(|own| own != process::INITIAL_PID_NS) {
        bail!(
            "this program runs in a pid namespace of its own (a container), and would not recognize the kernel's pids; \
             run it on the host, or in a container with the host's pid namespace (docker run --pid=host)"
        );
    }
    Ok(())
}

struct Trace<'a> {
    root: Root,
    capture: Capture,
    reporter: &'a mut Reporter,
    watchlist: Watchlist,
    gatherer: Gatherer,
    clients: Clients,
    server_logs: ServerLogs,
    comms: Comms,
    armed: Armed,
    /// Strict overcommit could not be watched: when to try again.
    strict_not_before: Option<Instant>,
    next_limits: NextLimits,
    descendants: Descendants,
    merger: Merger,
    kills: Kills,
    oom_log: Option<OomLog>,
    below: Below,
    request_facts: RequestFactsCache,
    /// Those of `refusals` that were requests for memory.
    memory_refused: u64,
    refusals: u64,
    until: Option<u64>,
    lost_seen: u64,
    /// To be said: where not all that answers `fork()` is seen.
    before_fork: Vec<Line>,
    attached: Instant,
}

/// Why the loop goes no further.
enum Stop {
    Closed,
    End(EndReason),
}

impl From<Closed> for Stop {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl Trace<'_> {
    fn emit(&mut self, line: &Line) -> Result<(), Closed> {
        self.reporter.emit(Timestamp::now(), line)
    }

    fn emit_all(&mut self, lines: &[Line]) -> Result<(), Closed> {
        lines.iter().try_for_each(|line| self.emit(line))
    }

    /// What cannot be watched is an error when it was named by its pid, or when nothing else can;
    /// of other postmasters that is said when they are looked at again.
    fn watch_all(&mut self, targets: &[postgres::Target]) -> Result<(), CaptureError> {
        let mut failed = None;
        for target in targets {
            let pid = target.pid();
            let postmaster = matches!(target, postgres::Target::Postmaster(_));
            match self.follow(pid, postmaster) {
                Ok(()) => self.watchlist.add(&self.root, target),
                Err(error) if self.watchlist.is_named(pid) => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if self.watchlist.alive().next().is_none() => Err(error),
            _ => Ok(()),
        }
    }

    /// Follows the forks of a process; notes where what answers before the kernel's fork path
    /// does is not seen.
    fn follow(&mut self, pid: u32, postmaster: bool) -> Result<(), CaptureError> {
        self.gatherer.meet(pid);
        if let Some(error) = self.capture.watch(pid, postmaster)? {
            self.before_fork.push(Notice::line(
                "before_fork_not_seen",
                format!(
                    "a seccomp filter, a tracer or syscall user dispatch that refuses fork() of process {pid} before the kernel's fork path is reached would not be seen: {error}"
                ),
            ));
        }
        Ok(())
    }

    fn begin(
        &mut self,
        options: &Options,
        hidden: Option<String>,
        nothing_asked: bool,
    ) -> Result<(), Closed> {
        if options.method.is_none() && !self.capture.refused_methods().is_empty() {
            let refused = self.capture.refused_methods().join("; ");
            let method = self.capture.coverage().method.name();
            self.emit(&Notice::line(
                "fallback",
                format!("using the {method} method, because the better ones do not work here ({refused})"),
            ))?;
        }
        if let Some(hidden) = hidden {
            self.emit(&Notice::line("proc_hidden", hidden))?;
        }
        if let Err(error) = privileges::drop_capabilities() {
            self.emit(&Notice::line(
                "capabilities_kept",
                format!("capabilities could not be dropped: {error}"),
            ))?;
        }
        let start = self.start_line(options);
        self.emit(&start)?;
        if let Some(message) = self.below.not_seen(options.plan.all_children) {
            self.emit(&Notice::line("children_not_seen", message))?;
        }
        if self.watchlist.alive().next().is_none() && nothing_asked {
            self.emit(&Notice::line(
                "waiting",
                "no PostgreSQL postmaster is running here; waiting for one to start",
            ))?;
        }
        let silent: Vec<u32> = self
            .watchlist
            .alive()
            .map(|watched| watched.id.pid)
            .filter(|pid| !self.capture.reads_errno(*pid))
            .collect();
        for pid in silent {
            self.emit(&Notice::line(
                "errno_hidden",
                format!("the C library of process {pid} does not say where it keeps errno; verdicts do without it"),
            ))?;
        }
        self.look_again()
    }

    fn start_line(&self, options: &Options) -> Line {
        let coverage = self.capture.coverage();
        let release = crate::host::sysctl::read_sysctl(&self.root, "kernel/osrelease")
            .ok()
            .flatten();
        Line::Start(Start {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: release.unwrap_or_else(|| "unknown".to_owned()),
            method: coverage.method,
            probes: self.capture.probes() as u64,
            attach_ns: nanoseconds(self.attached - options.started),
            not_seen: coverage
                .not_seen
                .iter()
                .map(|(_, why)| why.clone())
                .collect(),
            postmasters: self
                .watchlist
                .alive()
                .map(|watched| watched.shown.clone())
                .collect(),
            names: options.plan.filter.comms.clone(),
        })
    }

    async fn watch(&mut self, options: &Options, signals: &mut Signals) -> Result<EndReason> {
        let mut logger = None;
        if options.verbose {
            match self.capture.diagnostics() {
                Ok(diagnostics) => logger = Some(diagnostics),
                // The pipe that closes here is found closed at the next line.
                Err(error) => drop(self.emit(&Notice::line(
                    "no_diagnostics",
                    format!("diagnostics of the kernel side (-v) cannot be read: {error}"),
                ))),
            }
        }
        let records = self
            .capture
            .as_fd()
            .try_clone_to_owned()
            .context("cannot wait for the kernel's records")?;
        // SAFETY: the descriptor is owned by what is registered, and so open as long as that lives.
        let ready = unsafe { AsyncFd::register_with_interest(records, Interest::READABLE) }
            .context("cannot wait for the kernel's records")?;
        let mut tick = tokio::time::interval(TICK);
        let deadline = options
            .plan
            .duration
            .map(|duration| tokio::time::Instant::from_std(self.attached) + duration);
        loop {
            let step = tokio::select! {
                guard = ready.readable() => {
                    guard.context("cannot wait for the kernel's records")?.clear_ready();
                    self.drain()
                }
                () = signals.any() => Err(Stop::End(EndReason::Signal)),
                () = at(deadline) => Err(Stop::End(EndReason::Duration)),
                _ = tick.tick() => self.tick(),
                () = tokio::time::sleep(starting::SOON), if self.is_one_linking() => {
                    self.look_again().map_err(Stop::from)
                }
            };
            if let Some(logger) = &mut logger {
                logger.flush();
            }
            match step {
                Ok(()) => {}
                Err(Stop::Closed) => return Ok(EndReason::Signal),
                Err(Stop::End(reason)) => return Ok(reason),
            }
        }
    }

    fn tick(&mut self) -> Result<(), Stop> {
        self.gatherer.tick(Instant::now());
        // Also a safety net, should a wake-up have been missed.
        self.drain()?;
        self.look_at_logs();
        self.complete_memory()?;
        self.say_kills(Ended::Nothing)?;
        self.catch_up()?;
        self.look_again()?;
        let named = self.look_for_named();
        self.emit_all(&named)?;
        self.disarm()?;
        self.watch_strict()?;
        self.reporter.tick(Timestamp::now())?;
        if self.watchlist.is_over() {
            return Err(Stop::End(EndReason::NoMore));
        }
        Ok(())
    }

    /// What a full ring buffer may have swallowed: the end of a watched process, and the start
    /// of another one.
    fn catch_up(&mut self) -> Result<(), Closed> {
        let pids: Vec<u32> = self
            .watchlist
            .alive()
            .map(|watched| watched.id.pid)
            .collect();
        let lost: u64 = pids
            .iter()
            .filter_map(|pid| self.capture.totals(*pid))
            .map(|totals| totals.lost)
            .sum::<u64>()
            + self.capture.lost_events();
        let vanished: Vec<u32> = self
            .watchlist
            .alive()
            .filter(|watched| matches!(process::still(&self.root, watched.id), Ok(false)))
            .map(|watched| watched.id.pid)
            .collect();
        if vanished.is_empty() && lost <= self.lost_seen {
            return Ok(());
        }
        self.lost_seen = lost;
        for pid in vanished {
            self.exited(pid)?;
        }
        for postmaster in postgres::discover(&self.root)
            .map(|found| found.postmasters)
            .unwrap_or_default()
        {
            self.watchlist
                .candidate(&self.root, postmaster.pid, Instant::now());
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Stop> {
        for _ in 0..BATCH {
            match self.capture.next_record() {
                None => return Ok(()),
                Some(Record::Refusal(attempt)) => self.refusal(&attempt)?,
                Some(Record::Exec(pid)) => {
                    if let Some(line) = self.look_at_named(pid) {
                        self.emit(&line)?;
                    }
                    self.watchlist.candidate(&self.root, pid, Instant::now());
                    self.look_again()?;
                }
                Some(Record::Exit(pid)) => self.exited(pid)?,
                Some(Record::Memory(record)) => self.memory(&record)?,
                Some(Record::OomKill(kill)) => self.oom_kill(&kill)?,
                Some(Record::Sigkill(record)) => self.sigkill(&record)?,
            }
        }
        Ok(())
    }

    fn exited(&mut self, pid: u32) -> Result<(), Closed> {
        self.capture.unwatch(pid);
        self.gatherer.forget(pid);
        self.clients.forget(pid);
        self.next_limits.forget(pid);
        self.descendants.forget(pid);
        if self.watchlist.is_alive(pid) {
            self.say_kills(Ended::Process(pid))?;
        }
        let killed_by = self.kills.killed_by(pid, Instant::now());
        let counted = self.capture.take_totals(pid);
        let clients = self.capture.take_clients(pid);
        let logged = self.server_logs.end(&self.root, pid, Instant::now());
        if let Some(watched) = self.watchlist.get_mut(pid) {
            watched.logged = logged;
        }
        let Some(watched) = self.watchlist.remove(pid, counted, clients) else {
            return Ok(());
        };
        let gone = Line::Postmaster(PostmasterChange {
            event: Change::Gone,
            postmaster: watched.shown.clone(),
            previous_pid: None,
            killed_by,
        });
        self.emit(&gone)
    }
}

async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => pending().await,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether an error means that a reader of the output has gone.
#[must_use]
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        // serde_json does not name the error within as its source.
        io.or_else(|| cause.downcast_ref::<serde_json::Error>()?.io_error_kind())
    };
    error
        .chain()
        .filter_map(kind)
        .any(|kind| kind == io::ErrorKind::BrokenPipe)
}
