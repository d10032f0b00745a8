//! Processes that are killed, and signals that kill nobody.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    attribution,
    children::{ALL, Backend},
    scenarios::expect_eq,
    server::{Server, wait_for},
    tracer::Tracer,
};

fn kill(pid: u32) -> Result<()> {
    // SAFETY: a signal to a process of the tests.
    let sent = unsafe { libc::kill(i32::try_from(pid)?, libc::SIGKILL) };
    ensure!(sent == 0, "kill: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The OOM killer is let loose on the whole host, and finds a backend. No memory is short.
pub(crate) fn global_oom(server: &mut Server, method: &str) -> Result<()> {
    let backend = Backend::start(server)?;
    // The highest there is: nothing else on the host has it.
    fs::write(format!("/proc/{}/oom_score_adj", backend.pid), "1000")?;
    let tracer = Tracer::start("global_oom_kill", method, ALL)?;
    fs::write("/proc/sysrq-trigger", "f").context("/proc/sysrq-trigger")?;
    server.wait_until_killed(backend.pid)?;
    let said = tracer.stop()?;
    let kill = said
        .of("oom_kill")
        .into_iter()
        .find(|kill| kill["victim"]["pid"] == backend.pid);
    attribution::report("global_oom_kill", said.method(), kill, true);
    let kill = kill.with_context(|| format!("not reported: {:#?}", said.of("oom_kill")))?;
    expect_eq!(kill["cause"], "global_oom_kill", "cause");
    expect_eq!(kill["postmaster"]["pid"], server.pid, "whose");
    expect_eq!(kill["evidence"]["oom_score_adj"], 1000, "oom_score_adj");
    expect_eq!(said.of("oom_kill").len(), 1, "OOM kills");
    expect_eq!(said.of("killed").len(), 0, "told once");
    server.wait_until_ready()
}

/// The postmaster itself is sent SIGKILL: by whom is said, and that it is gone for that.
pub(crate) fn postmaster(server: &mut Server, method: &str) -> Result<()> {
    let tracer = Tracer::start("postmaster_killed", method, &[])?;
    let killed = server.pid;
    kill(killed)?;
    let gone = |line: &Value| line["type"] == "postmaster" && line["event"] == "gone";
    wait_for("the postmaster is gone", || {
        tracer.lines().iter().any(gone).then_some(())
    })?;
    // Its backends hang up, and its successor may start.
    server.start_again()?;
    let said = tracer.stop()?;
    let own = std::process::id();
    let of_it: Vec<&Value> = said
        .of("killed")
        .into_iter()
        .filter(|line| line["target"]["pid"] == killed)
        .collect();
    expect_eq!(of_it.len(), 1, "lines about the kill");
    expect_eq!(of_it[0]["by"], "signal", "by what");
    expect_eq!(of_it[0]["sender"]["pid"], own, "by whom");
    let gone = said
        .of("postmaster")
        .into_iter()
        .find(|line| gone(line) && line["postmaster"]["pid"] == killed)
        .context("it is not said to be gone")?;
    expect_eq!(gone["killed_by"]["sender"]["pid"], own, "gone by whom");
    server.connect()
}

/// A container's first process is sent SIGKILL from inside, which the kernel ignores, and then
/// from outside.
pub(crate) fn ignored(_: &mut Server, method: &str) -> Result<()> {
    let mut container = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "sh", "-c"])
        .arg("echo up; read go; sh -c 'kill -9 1; echo sent'; read end")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = container.stdin.take().context("no pipe")?;
    let mut stdout = BufReader::new(container.stdout.take().context("no pipe")?);
    let mut says = |word: &str| -> Result<()> {
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        ensure!(line.trim_end() == word, "it said {line:?}, not {word}");
        Ok(())
    };
    says("up")?;
    let own = container.id();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
    let init: u32 = children.trim().parse().context("its first process")?;
    let tracer = Tracer::start("kill_ignored", method, &["--pid", &init.to_string()])?;
    std::io::Write::write_all(&mut stdin, b"go\n")?;
    says("sent")?;
    kill(init)?;
    container.wait()?;
    // It ends by itself: nothing is left to watch.
    wait_for("pgfork-trace says that the process is gone", || {
        let lines = tracer.lines();
        lines
            .iter()
            .any(|line| line["type"] == "postmaster" && line["event"] == "gone")
            .then_some(())
    })?;
    let lines = tracer.lines();
    // The shell that said so may still be there, and goes with its namespace.
    let killed: Vec<&Value> = lines
        .iter()
        .filter(|line| line["type"] == "killed" && line["target"]["pid"] == init)
        .collect();
    expect_eq!(killed.len(), 1, "kills said");
    let of_it = killed[0];
    expect_eq!(of_it["sender"]["pid"], std::process::id(), "by whom");
    Ok(())
}
