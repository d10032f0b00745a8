//! The tool, or the server, is started when the host or its cgroup has next to nothing left.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    limits::{Cgroups, Restored, meminfo, set_sysctl},
    scenarios::{EAGAIN, ENOMEM, certainty, check_common, expect_eq, first},
    server::{RunningClient, Server, wait_for},
    tracer::{Said, Tracer},
};

/// What root has left at the commit limit: vm.admin_reserve_kbytes by default.
const LEFT_TO_ROOT: u64 = 8 << 20;

/// Starts at the commit limit, with 8 MiB left to root, and explains the next refusal.
pub(crate) fn commit(server: &mut Server, method: &str) -> Result<()> {
    let _mode = Restored::remember("vm/overcommit_memory")?;
    // Setting the ratio is what resets overcommit_kbytes.
    let _ratio = Restored::remember("vm/overcommit_ratio")?;
    let mut client = RunningClient::start()?;
    server.connect()?;
    server.wait_for_backends(1)?;
    set_sysctl(
        "vm/overcommit_kbytes",
        (meminfo("Committed_AS")? + LEFT_TO_ROOT) >> 10,
    )?;
    set_sysctl("vm/overcommit_memory", 2)?;
    let before = server.refused_in_log(ENOMEM);
    let tracer = Tracer::start("outage_commit", method, &[])?;
    client.reconnect()?;
    wait_for("the server refuses", || {
        (server.refused_in_log(ENOMEM) > before).then_some(())
    })?;
    wait_for("pgfork-trace reports it", || {
        (tracer.refusals() > 0).then_some(())
    })?;
    let said = tracer.stop()?;
    check_common(
        server,
        first(&said)?,
        "ENOMEM",
        "commit_limit",
        certainty(method, false),
    )
}

fn cgroup(
    name: &str,
    controller: &str,
    file: &str,
    limit: &str,
) -> Result<Option<std::path::PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let root = if root.join(controller).is_dir() {
        root.join(controller)
    } else {
        root.to_owned()
    };
    let cgroup = root.join(name);
    fs::create_dir_all(&cgroup)?;
    if !cgroup.join(file).exists() {
        return Ok(None);
    }
    fs::write(cgroup.join(file), limit).with_context(|| format!("{limit} > {file}"))?;
    Ok(Some(cgroup))
}

/// Starts in a pids cgroup that has room for it and for nothing else.
pub(crate) fn pids(server: &mut Server, method: &str) -> Result<()> {
    let cgroup = cgroup("one-task", "pids", "pids.max", "1")?.context("no pids controller")?;
    watches_in(server, "outage_pids", method, &cgroup)
}

/// Starts in a memory cgroup of 16 MiB, and nothing is killed.
pub(crate) fn memory(server: &mut Server, method: &str) -> Result<()> {
    let cgroup =
        cgroup("little-memory", "memory", "memory.max", "16M")?.context("no memory controller")?;
    // The cgroup may be one of an earlier run, with its counts.
    let kills = || -> Result<String> {
        let events = fs::read_to_string(cgroup.join("memory.events"))?;
        let kills = events.lines().find(|line| line.starts_with("oom_kill "));
        Ok(kills.context("no oom_kill")?.to_owned())
    };
    let before = kills()?;
    let outcome = watches_in(server, "outage_memory", method, &cgroup);
    let after = kills()?;
    ensure!(
        before == after,
        "killed for its memory: {before}, then {after}; {outcome:?}"
    );
    outcome
}

/// Starts with as much private memory as root has left at the commit limit, to the byte.
pub(crate) fn private(server: &mut Server, method: &str) -> Result<()> {
    let tracer = Tracer::start_within("outage_private", method, LEFT_TO_ROOT >> 10)?;
    let said = sees_a_fork(server, tracer)?;
    expect_eq!(said.method(), method, "method");
    Ok(())
}

fn watches_in(server: &Server, scenario: &str, method: &str, cgroup: &Path) -> Result<()> {
    sees_a_fork(server, Tracer::start_in(scenario, method, cgroup)?).map(drop)
}

fn sees_a_fork(server: &Server, tracer: Tracer) -> Result<Said> {
    server.connect()?;
    let said = tracer.stop()?;
    ensure!(said.status == 0, "exit status {}", said.status);
    ensure!(
        said.only("totals")?["forks"].as_u64() >= Some(1),
        "the connection is a fork"
    );
    Ok(said)
}

/// The server is started anew inside the outage: its very first fork is refused, and it ends.
pub(crate) fn restart_refused(server: &mut Server, method: &str) -> Result<()> {
    let cgroups = Cgroups::make()?;
    fs::write(cgroups.inner.join("pids.max"), "1")?;
    let old = server.pid;
    let tracer = Tracer::start("restart_refused", method, &[])?;
    let mut failed = (0, 0);
    let outcome = server.fail_to_start_in(&cgroups.inner, |pid, log| {
        failed = (pid, log.matches(EAGAIN).count());
        ensure!(failed.1 > 0, "no fork was refused: {log}");
        wait_for("pgfork-trace reports it", || {
            (tracer.refusals() > 0).then_some(())
        })
    });
    cgroups.open()?;
    outcome?;
    let said = tracer.stop()?;
    let (pid, logged) = failed;
    expect_eq!(said.of("refusal").len(), logged, "refusals reported");
    let refusal = first(&said)?;
    expect_eq!(refusal["errno"]["name"], "EAGAIN", "errno");
    expect_eq!(refusal["cause"], "pids_cgroup_max", "cause");
    expect_eq!(refusal["certainty"], certainty(method, false), "certainty");
    expect_eq!(refusal["scope"]["path"], "/pgtest/inner", "path");
    expect_eq!(refusal["postmaster"]["kind"], "postmaster", "kind");
    expect_eq!(refusal["postmaster"]["pid"], pid, "pid");
    ensure!(
        refusal["postmaster"]["data_dir"]
            .as_str()
            .is_some_and(|it| it.ends_with("/main")),
        "data directory: {refusal}"
    );
    let events: Vec<(&str, u64)> = said
        .of("postmaster")
        .into_iter()
        .filter_map(|line| Some((line["event"].as_str()?, line["postmaster"]["pid"].as_u64()?)))
        .collect();
    let own = |event, pid: u32| (event, u64::from(pid));
    let expected = [
        own("gone", old),
        own("restarted", pid),
        own("gone", pid),
        own("restarted", server.pid),
    ];
    ensure!(
        expected.starts_with(&events) && events.len() >= 3,
        "events: {events:?}"
    );
    expect_eq!(said.only("end")?["accounted"], true, "accounted");
    Ok(())
}
