//! The demo: what psql says about a refused connection, and what pgfork-trace says.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{
    limits::{self, Cgroups, meminfo, number, set_sysctl},
    server::{Server, wait_for},
    tracer::Tracer,
};

/// Lets a connection be refused for this cause, and prints both sides.
pub(crate) fn run(cause: &str) -> Result<()> {
    let server = Server::start()?;
    server.connect().context("before any limit is set")?;
    server.settle()?;
    let tracer = Tracer::start("demo", "auto", &[])?;
    match cause {
        "commit_limit" => {
            let left = limits::widen_admin_reserve()?;
            set_sysctl(
                "vm/overcommit_kbytes",
                (meminfo("Committed_AS")? + left) / 1024,
            )?;
            set_sysctl("vm/overcommit_memory", 2)?;
        }
        "pids_cgroup_max" => {
            let cgroups = Cgroups::make()?;
            server.enter(&cgroups.inner)?;
            let tasks = number(cgroups.outer.join("pids.current"))?;
            fs::write(cgroups.outer.join("pids.max"), tasks.to_string())?;
        }
        "rlimit_nproc" => limits::set_nproc(server.pid, limits::tasks_of_user_of(server.pid)?.1)?,
        other => bail!("no such cause: {other}"),
    }
    let error = server
        .connect()
        .err()
        .context("the connection was not refused")?;
    wait_for("pgfork-trace reports it", || {
        (tracer.refusals() > 0).then_some(())
    })?;
    let said = tracer.stop()?;
    println!(
        "\n$ psql -c 'select 1'\n{error}\n\n$ pgfork-trace\n{}",
        said.text
    );
    let refusal = said
        .of("refusal")
        .into_iter()
        .next()
        .context("no refusal")?;
    let command = refusal["remedy"][0]["command"]
        .as_str()
        .context("no remedy")?
        .to_owned();
    let applied = std::process::Command::new("sh")
        .args(["-c", &command])
        .output()?;
    println!(
        "$ {command}\n{}",
        String::from_utf8_lossy(&applied.stdout).trim_end()
    );
    server.connect().context("after the remedy")?;
    println!("$ psql -c 'select 1'\n(connected)");
    Ok(())
}
