//! The tool is started when the host, or the cgroup it is started in, has next to nothing left.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    limits::{Restored, meminfo, set_sysctl},
    scenarios::{ENOMEM, certainty, check_common, first},
    server::{RunningClient, Server, wait_for},
    tracer::Tracer,
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

fn watches_in(server: &Server, scenario: &str, method: &str, cgroup: &Path) -> Result<()> {
    let tracer = Tracer::start_in(scenario, method, cgroup)?;
    server.connect()?;
    let said = tracer.stop()?;
    ensure!(said.status == 0, "exit status {}", said.status);
    ensure!(
        said.only("totals")?["forks"].as_u64() >= Some(1),
        "the connection is a fork"
    );
    Ok(())
}
