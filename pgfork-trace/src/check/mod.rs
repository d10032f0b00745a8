//! `pgfork-trace check`: the room that is left under every limit, without eBPF, without a database
//! connection, without starting anything.

mod ages;
mod connections;
mod history;
mod host;
mod in_force;
mod origins;
mod report;
mod server;
mod settings;
mod summary;
#[cfg(test)]
mod tests;
mod watch;

use std::{io::Write, path::Path, time::Instant};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;

pub use ages::{Arrivals, Memory, StateAge};
pub use connections::{Connections, SocketCounts, Tally};
pub use history::{
    HostHistory, KernelEvent, LogEvents, MemoryEvents, PidsEvents, Pressure, ServerHistory,
};
pub use origins::Origin;
pub use report::{LimitReport, Report, SCHEMA, ServerReport, Trend};
pub use settings::SettingReport;

use crate::{
    cli::CheckPlan,
    gather::text,
    host::{Pid, Root},
    output::{
        CheckFile, OutputOptions, Surroundings, check_document, check_text, watch_text,
        write_failed_metrics, write_metrics,
    },
    postgres::{Filter, Identity, Postmaster, Target, discover, identify, presumed, select},
    verdict::{
        findings::findings,
        headroom::{self, HeadroomFacts, Near, Row},
    },
};
use host::Host;
use server::Server;
use watch::{Clock, Signals, Trends};

/// What one look, or the worst of several, comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Limits that are close or reached.
    pub near: u64,
    /// Limits that every server has and that could not be read.
    pub unread: u64,
}

impl Seen {
    /// Something is close: 1. Nothing that could be read is, but not all could: 2. Else 0.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self { near: 1.., .. } => 1,
            Self { unread: 1.., .. } => 2,
            Self { .. } => 0,
        }
    }

    fn and(self, report: &Report) -> Self {
        Self {
            near: self.near.max(report.near),
            unread: self.unread.max(report.unread),
        }
    }
}

/// Looks, once or again and again, and writes what there is to say; nothing with `-q`. While
/// watching, the worst of all looks counts.
///
/// # Errors
/// As [`look`], or when the output is gone. While watching, only the latter ends it.
pub fn run(plan: &CheckPlan, options: &OutputOptions) -> Result<Seen> {
    let root = Root::default();
    let file = options.file.as_deref().map(CheckFile::create).transpose();
    let file = file.map_err(anyhow::Error::from);
    let mut out = Output {
        options,
        around: Surroundings::read(),
        again: plan.watch.is_some(),
        file: looked(plan, file)?,
        prometheus: plan.prometheus.as_deref(),
    };
    let mut memory = Memory::default();
    if plan.watch.is_none() {
        let report = look_again(&root, &plan.filter, plan.near, &mut memory);
        let report = looked(plan, report)?;
        out.write(&report, &mut std::io::stdout().lock())?;
        return Ok(Seen::default().and(&report));
    }
    let look = || {
        let report = look_again(&root, &plan.filter, plan.near, &mut memory);
        looked(plan, report)
    };
    let mut clock = looked(plan, Signals::catch().map_err(anyhow::Error::from))?;
    watch(plan, look, &mut clock, |report| {
        out.write(report, &mut std::io::stdout().lock())
    })
}

/// The result; where there is none, the file of metrics says so instead of what an earlier look saw.
fn looked<T>(plan: &CheckPlan, result: Result<T>) -> Result<T> {
    result.map_err(|error| {
        let path = plan.prometheus.as_deref();
        match path.map(|path| (path, write_failed_metrics(path))) {
            Some((path, Err(why))) => {
                error.context(format!("cannot write {}: {why}", path.display()))
            }
            _ => error,
        }
    })
}

/// Looks until it is told to stop, or the time is over.
fn watch(
    plan: &CheckPlan,
    mut look: impl FnMut() -> Result<Report>,
    clock: &mut impl Clock,
    mut write: impl FnMut(&Report) -> Result<()>,
) -> Result<Seen> {
    let pause = plan.watch.unwrap_or_default();
    let end = plan.duration.map(|duration| clock.now() + duration);
    let mut trends = Trends::default();
    let mut seen: Option<Seen> = None;
    loop {
        let now = clock.now();
        match look() {
            Ok(mut report) => {
                trends.add(&mut report, now);
                seen = Some(seen.unwrap_or_default().and(&report));
                write(&report)?;
            }
            // A restart of the server, for one.
            Err(error) if seen.is_some() => writeln!(std::io::stderr(), "pgfork-trace: {error:#}")?,
            Err(error) => return Err(error),
        }
        let over = |end: Instant| end <= clock.now() + pause;
        let left = end.map(|end| end.saturating_duration_since(clock.now()));
        let last = end.is_some_and(over);
        if clock.pause(left.unwrap_or(pause).min(pause)) || last {
            return Ok(seen.unwrap_or_default());
        }
    }
}

/// Where reports go.
struct Output<'o> {
    options: &'o OutputOptions,
    around: Surroundings,
    /// There will be more.
    again: bool,
    file: Option<CheckFile>,
    prometheus: Option<&'o Path>,
}

impl Output<'_> {
    fn write(&mut self, report: &Report, out: &mut impl Write) -> Result<()> {
        if let Some(path) = self.prometheus {
            write_metrics(report, path)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(file) = &mut self.file {
            file.write(report)?;
        }
        if self.options.quiet > 0 {
            return Ok(());
        }
        if self.options.json {
            out.write_all(&check_document(report))?;
        } else {
            let text = match self.again && self.options.verbose == 0 {
                true => watch_text(report, self.options, &self.around),
                false => check_text(report, self.options, &self.around),
            };
            if self.again && self.around.stdout_terminal {
                // Home, and clear what is below.
                out.write_all(b"\x1b[H\x1b[J")?;
            }
            out.write_all(text.as_bytes())?;
        }
        Ok(out.flush()?)
    }
}

/// Looks once.
///
/// # Errors
/// When `/proc` cannot be listed, no server is found, or what was named is not there.
pub fn look(root: &Root, filter: &Filter, near: Near) -> Result<Report> {
    look_again(root, filter, near, &mut Memory::default())
}

/// The same, with what earlier looks saw.
///
/// # Errors
/// As [`look`].
pub fn look_again(root: &Root, filter: &Filter, near: Near, memory: &mut Memory) -> Result<Report> {
    let started = Instant::now();
    let (servers, mut not_seen) = servers(root, filter)?;
    let host = Host::read(root)?;
    let uptime = crate::host::uptime(root).ok().flatten();
    let pids: Vec<Pid> = servers.iter().map(|it| it.pid).collect();
    memory.keep(&pids);
    let servers: Vec<ServerReport> = servers
        .into_iter()
        .map(|postmaster| {
            let mut server = Server::read(root, &host, postmaster);
            let mut connections =
                connections::count(&host.census, &server.postmaster, &server.children, uptime);
            connections.sockets = connections::count_sockets(root, &server.postmaster);
            let silences = server.silences(root, &host);
            let id = server.postmaster.id();
            let ages = memory.look(id, &server.children, silences.as_ref(), started);
            connections.states = ages.states;
            connections.arrivals = ages.arrivals;
            let history = history::of_server(root, &mut server);
            let (origins, facts) = origins::of_server(root, &host, &server);
            let mut report = describe(server, connections, history, near);
            report.origins = origins;
            let rows: Vec<Row> = report.limits.iter().map(|it| it.row.clone()).collect();
            report.findings = findings(&facts, &rows);
            report
        })
        .collect();
    let limits = servers.iter().flat_map(|server| &server.limits);
    let near = limits.filter(|limit| limit.near).count() as u64;
    let unread = servers
        .iter()
        .map(|server| server.unread.len() as u64)
        .sum();
    not_seen.extend(host.not_seen);
    let history = history::of_host(root, uptime, &mut not_seen);
    Ok(Report {
        schema: SCHEMA,
        time: format!("{:.6}", Timestamp::now()),
        kernel: host.release,
        took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        near,
        unread,
        servers,
        history,
        not_seen,
    })
}

/// The servers that were asked for, and what could not be read of them. Without permission, what is
/// called like a postmaster is taken for one: limits are for everybody to read.
fn servers(root: &Root, filter: &Filter) -> Result<(Vec<Postmaster>, Vec<String>)> {
    let found = discover(root)?;
    let mut all = found.postmasters;
    let mut not_seen = Vec::new();
    for candidate in &found.candidates {
        let Ok(Some(postmaster)) = presumed(root, candidate) else {
            continue;
        };
        not_seen.push(format!(
            "process {} is taken for a postmaster by its name: its data directory can only be read as root or as its user",
            postmaster.pid
        ));
        all.push(postmaster);
    }
    if all.is_empty() {
        match found.hidden {
            Some(hidden) => bail!("no postmaster was found; {hidden}"),
            None => bail!("no postmaster was found"),
        }
    }
    let mut servers = Vec::new();
    for target in
        select(root, &all, filter).map_err(|error| error.seen_through(found.hidden.as_deref()))?
    {
        match target {
            Target::Postmaster(postmaster) => servers.push(*postmaster),
            Target::Process(process) => bail!("process {} is not a postmaster", process.id.pid),
        }
    }
    not_seen.extend(found.hidden);
    Ok((servers, not_seen))
}

/// What the room under every limit of the postmaster `pid` is computed from. `None` when it is
/// no postmaster any more, or nothing of the host can be read.
pub(crate) fn headroom_facts(root: &Root, pid: Pid) -> Option<HeadroomFacts> {
    let Ok(Identity::Postmaster(postmaster)) = identify(root, pid) else {
        return None;
    };
    let host = Host::read(root).ok()?;
    Some(Server::read(root, &host, *postmaster).headroom)
}

fn describe(
    server: Server<'_>,
    connections: Connections,
    history: ServerHistory,
    near: Near,
) -> ServerReport {
    let rows = headroom::headroom(&server.headroom);
    let first = headroom::first(&rows);
    let settings = settings::of_server(&server.settings, &server.in_force, server.major_version());
    let first = first.and_then(|first| rows.iter().position(|row| std::ptr::eq(row, first)));
    let postmaster = server.postmaster;
    let mut report = ServerReport {
        pid: postmaster.pid,
        port: postmaster.port,
        data_dir: text(postmaster.data_dir.as_os_str()),
        version: postmaster.version,
        unit: postmaster.unit.map(|unit| unit.unit),
        container: postmaster.container.map(|container| container.id),
        summary: String::new(),
        make_room: None,
        unread: Vec::new(),
        first,
        limits: rows
            .into_iter()
            .map(|row| LimitReport::new(row, near))
            .collect(),
        backend_cost: server.headroom.cost,
        fork_charge_bytes: server.headroom.host.fork_charge_bytes,
        settings,
        connections,
        findings: Vec::new(),
        origins: Vec::new(),
        history,
        not_seen: server.not_seen,
    };
    summary::renew(&mut report);
    report
}
