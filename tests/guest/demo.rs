//! The demo: what psql says about a refused connection, and what pgfork-trace says.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

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
    // As it is run: inside the outage.
    let tracer = Tracer::start(&format!("demo_{cause}"), "auto", &[])?;
    let error = server
        .connect()
        .err()
        .context("the connection was not refused")?;
    wait_for("pgfork-trace reports it", || {
        (tracer.refusals() > 0).then_some(())
    })?;
    let said = tracer.stop()?;
    println!("\n--- psql says\n$ psql -c 'select 1'\n{error}");
    println!("\n--- pgfork-trace says\n$ pgfork-trace\n{}", said.text);
    let refusal = said
        .of("refusal")
        .into_iter()
        .next()
        .context("no refusal")?;
    let command = refusal["remedy"][0]["command"]
        .as_str()
        .context("no remedy")?
        .to_owned();
    let applied = Command::new("sh").args(["-c", &command]).output()?;
    println!(
        "--- with the remedy\n$ {command}\n{}",
        String::from_utf8_lossy(&applied.stdout).trim_end()
    );
    server.connect().context("after the remedy")?;
    println!("$ psql -c 'select 1'\n(connected)");
    server.stop()
}

/// As a user sees it, for each cause; how many did not end with a connection.
pub(crate) fn all() -> Result<usize> {
    // The last one's setting is the host's, and stays.
    let causes = ["pids_cgroup_max", "rlimit_nproc", "commit_limit"];
    crate::plan(causes.len());
    let mut failed = 0;
    for cause in causes {
        match shown(cause) {
            Ok(()) => println!("test demo_{cause} auto ... ok"),
            Err(error) => {
                failed += 1;
                println!("test demo_{cause} auto ... FAILED: {error:?}");
            }
        }
    }
    Ok(failed)
}

fn shown(cause: &str) -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .args(["demo", cause])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {text}", output.status);
    let mut rest = &*text;
    for words in [
        "--- psql says",
        "could not fork new process for connection",
        "--- pgfork-trace says",
        "REFUSED  postmaster",
        cause,
        "remedy ",
        "--- with the remedy",
        "(connected)",
    ] {
        let at = rest
            .find(words)
            .with_context(|| format!("{words} is missing in: {text}"))?;
        rest = &rest[at + words.len()..];
    }
    Ok(())
}
