//! `pgfork-trace check`: the room that is left under every limit, without eBPF, without a database
//! connection, without starting anything.

mod connections;
mod history;
mod host;
mod origins;
mod report;
mod server;
mod summary;
#[cfg(test)]
mod tests;
mod watch;

use std::{io::Write as _, time::Instant};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;

pub use connections::{Connections, SocketCounts, Tally};
pub use history::{
    HostHistory, KernelEvent, LogEvents, MemoryEvents, PidsEvents, Pressure, ServerHistory,
};
pub use origins::Origin;
pub use report::{LimitReport, Report, SCHEMA, ServerReport, Trend};

use crate::{
    cli::CheckPlan,
    gather::text,
    host::{Pid, Root},
    output::{OutputOptions, Surroundings, check_document, check_text, write_metrics},
    postgres::{Filter, Identity, Postmaster, Target, discover, identify, presumed, select},
    verdict::{
        findings::findings,
        headroom::{self, HeadroomFacts, Near, Row},
    },
};
use host::Host;
use server::Server;

/// Looks, once or again and again, and writes what there is to say; nothing with `-q`. Limits that
/// are close or reached.
///
/// # Errors
/// As [`look`], or when the output is gone. While watching, only the latter ends it.
pub fn run(plan: &CheckPlan, output: &OutputOptions) -> Result<u64> {
    let root = Root::default();
    let around = Surroundings::read();
    let mut before: Option<(Instant, Report)> = None;
    loop {
        let now = Instant::now();
        let mut report = match look(&root, &plan.filter, plan.near) {
            Ok(report) => report,
            Err(error) if before.is_some() => {
                // A restart of the server, for one.
                writeln!(std::io::stderr(), "pgfork-trace: {error:#}")?;
                std::thread::sleep(plan.watch.unwrap_or_default());
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some((then, before)) = &before {
            watch::add_trends(&mut report, before, now.duration_since(*then));
        }
        if let Some(path) = &plan.prometheus {
            write_metrics(&report, path)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        write(&report, plan.watch.is_some(), output, &around)?;
        let Some(pause) = plan.watch else {
            return Ok(report.near);
        };
        before = Some((now, report));
        std::thread::sleep(pause);
    }
}

fn write(
    report: &Report,
    again: bool,
    output: &OutputOptions,
    around: &Surroundings,
) -> Result<()> {
    if output.quiet > 0 {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    if output.json {
        out.write_all(&check_document(report))?;
    } else {
        if again && around.stdout_terminal {
            // Home, and clear what is below.
            out.write_all(b"\x1b[H\x1b[J")?;
        }
        out.write_all(check_text(report, output, around).as_bytes())?;
    }
    Ok(out.flush()?)
}

/// Looks once.
///
/// # Errors
/// When `/proc` cannot be listed, no server is found, or what was named is not there.
pub fn look(root: &Root, filter: &Filter, near: Near) -> Result<Report> {
    let started = Instant::now();
    let (servers, mut not_seen) = servers(root, filter)?;
    let host = Host::read(root)?;
    let uptime = crate::host::uptime(root).ok().flatten();
    let servers: Vec<ServerReport> = servers
        .into_iter()
        .map(|postmaster| {
            let mut server = Server::read(root, &host, postmaster);
            let mut connections =
                connections::count(&host.census, &server.postmaster, &server.children, uptime);
            connections.sockets = connections::count_sockets(root, &server.postmaster);
            let history = history::of_server(root, &mut server);
            let (origins, facts) = origins::of_server(root, &host, &server, uptime);
            let mut report = describe(server, connections, history, near);
            report.origins = origins;
            let rows: Vec<Row> = report.limits.iter().map(|it| it.row.clone()).collect();
            report.findings = findings(&facts, &rows);
            report
        })
        .collect();
    let limits = servers.iter().flat_map(|server| &server.limits);
    let near = limits.filter(|limit| limit.near).count() as u64;
    not_seen.extend(host.not_seen);
    let history = history::of_host(root, uptime, &mut not_seen);
    Ok(Report {
        schema: SCHEMA,
        time: format!("{:.6}", Timestamp::now()),
        kernel: host.release,
        took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        near,
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
    let summary = summary::sentence(first, server.headroom.cost.measured_backends);
    let first = first.and_then(|first| rows.iter().position(|row| std::ptr::eq(row, first)));
    let postmaster = server.postmaster;
    ServerReport {
        pid: postmaster.pid,
        port: postmaster.port,
        data_dir: text(postmaster.data_dir.as_os_str()),
        version: postmaster.version,
        unit: postmaster.unit.map(|unit| unit.unit),
        container: postmaster.container.map(|container| container.id),
        summary,
        first,
        limits: rows
            .into_iter()
            .map(|row| LimitReport::new(row, near))
            .collect(),
        backend_cost: server.headroom.cost,
        fork_charge_bytes: server.headroom.host.fork_charge_bytes,
        connections,
        findings: Vec::new(),
        origins: Vec::new(),
        history,
        not_seen: server.not_seen,
    }
}
