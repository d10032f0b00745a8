//! Further causes that a real server can meet, alone and together.

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    fixtures::numbers::{self, namespace},
    limits::{Cgroups, Restored, number, set_sysctl, sysctl},
    perf::kernel_breakpoint,
    scenarios::{
        EAGAIN, certainty, check_common, expect_eq, first, refuse_by, refuse_one, tasks_now,
    },
    server::{RunningClient, Server, wait_for},
    tracer::Tracer,
};

/// Lets a client that is already running be refused, where nobody can fork.
fn refuse_running(
    server: &Server,
    name: &str,
    method: &str,
    close: impl FnOnce() -> Result<()>,
) -> Result<Value> {
    let mut client = RunningClient::start()?;
    server.connect()?;
    server.wait_for_backends(1)?;
    let said = refuse_by(server, name, method, EAGAIN, |server, _| {
        let before = server.refused_in_log(EAGAIN);
        close()?;
        client.reconnect()?;
        wait_for("the server refuses", || {
            (server.refused_in_log(EAGAIN) > before).then_some(())
        })
    })?;
    Ok(first(&said)?.clone())
}

/// kernel.threads-max: an inlined check, proven by the stages around it.
pub(crate) fn threads_max(server: &mut Server, method: &str) -> Result<()> {
    let _threads = Restored::remember("kernel/threads-max")?;
    let mut set = 0;
    let refusal = refuse_running(server, "threads_max", method, || {
        set = tasks_now()?;
        set_sysctl("kernel/threads-max", set)
    })?;
    check_common(server, &refusal, "EAGAIN", "threads_max", "deduced")?;
    expect_eq!(refusal["scope"]["kind"], "host", "scope");
    let threads = &refusal["evidence"]["threads"];
    expect_eq!(threads["limit"], set, "limit");
    ensure!(
        threads["tasks"].as_u64() >= Some(set),
        "the host is full: {threads}"
    );
    Ok(())
}

/// `RESERVED_PIDS` + 1 (include/linux/threads.h): the least that kernel.pid_max can be.
const LEAST_PID_MAX: u64 = 301;

/// Sets kernel.pid_max to the least, and takes every number.
pub(crate) fn take_all_pids(taken: &mut Vec<Child>) -> Result<()> {
    set_sysctl("kernel/pid_max", LEAST_PID_MAX)?;
    // After the wrap only 300 is left, unless it is taken.
    while let Ok(child) = Command::new("sleep").arg("600").spawn() {
        taken.push(child);
        ensure!(taken.len() < 400, "pid_max does not hold");
    }
    Ok(())
}

/// Gives them back; kernel.pid_max is to be restored before.
pub(crate) fn end_all(taken: &mut Vec<Child>) {
    for mut child in taken.drain(..) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// kernel.pid_max, which is one for all up to 6.12; later each namespace has its own, and the
/// host's is set just the same.
pub(crate) fn pid_space_exhausted(server: &mut Server, method: &str) -> Result<()> {
    let pid_max = Restored::remember("kernel/pid_max")?;
    let mut taken = Vec::new();
    let outcome = refuse_running(server, "pid_space_exhausted", method, || {
        take_all_pids(&mut taken)
    });
    drop(pid_max);
    end_all(&mut taken);
    let refusal = outcome?;
    check_common(
        server,
        &refusal,
        "EAGAIN",
        "pid_space_exhausted",
        certainty(method, false),
    )?;
    let scope = &refusal["scope"];
    expect_eq!(scope["kind"], "pid_namespace", "scope");
    expect_eq!(scope["level"], 0, "level");
    expect_eq!(scope["ancestor"], 0, "ancestor");
    expect_eq!(scope["inum"], namespace("pid")?, "namespace");
    let level = &refusal["evidence"]["pid_namespaces"][0];
    expect_eq!(level["pid_max"], LEAST_PID_MAX, "pid_max");
    expect_eq!(level["inum"], scope["inum"], "namespace");
    Ok(())
}

/// Sets or takes away `SCHED_DEADLINE` of a process.
pub(crate) fn set_deadline(pid: u32, on: bool) -> Result<()> {
    const SCHED_DEADLINE: u32 = 6;
    let time = |nanoseconds| if on { nanoseconds } else { 0 };
    let attributes = libc::sched_attr {
        size: 48,
        sched_policy: if on { SCHED_DEADLINE } else { 0 },
        // Little: what is given back while the process sleeps is given back late, or never.
        sched_runtime: time(5_000_000),
        sched_deadline: time(100_000_000),
        sched_period: time(100_000_000),
        // SAFETY: made of integers only.
        ..unsafe { std::mem::zeroed() }
    };
    // SAFETY: the kernel reads as many bytes as `size` says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            libc::c_long::from(pid),
            &raw const attributes,
            0,
        )
    };
    ensure!(
        result == 0,
        "sched_setattr: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// The postmaster is put under `SCHED_DEADLINE`.
pub(crate) fn sched_deadline(server: &mut Server, method: &str) -> Result<()> {
    set_deadline(server.pid, true)?;
    let said = refuse_one(server, "sched_deadline", method, EAGAIN);
    set_deadline(server.pid, false)?;
    let said = said?;
    check_common(
        server,
        first(&said)?,
        "EAGAIN",
        "sched_deadline_fork",
        certainty(method, false),
    )?;
    numbers::deadline(first(&said)?)?;
    server.connect().context("after the remedy")
}

/// Root measures the postmaster by an event that the postmaster itself may not open, and that its
/// children inherit.
pub(crate) fn perf_inherit(server: &mut Server, method: &str) -> Result<()> {
    let event = kernel_breakpoint(i32::try_from(server.pid)?)?;
    let said = refuse_one(
        server,
        "perf_inherit_failed",
        method,
        "Operation not permitted",
    );
    drop(event);
    let said = said?;
    let refusal = first(&said)?;
    // 5.10 has no hook there.
    let hooked = !fs::read_to_string("/proc/sys/kernel/osrelease")?.starts_with("5.10.");
    check_common(
        server,
        refusal,
        "EPERM",
        "perf_inherit_failed",
        certainty(method, !hooked),
    )?;
    expect_eq!(refusal["evidence"]["process"]["perf_events"], 1, "events");
    server.connect().context("after the remedy")
}

/// Whose connection it was: what this program knows of its own sockets.
pub(crate) fn client(server: &mut Server, method: &str) -> Result<()> {
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let tasks = number(cgroups.inner.join("pids.current"))?;
    let tracer = Tracer::start("client", method, &[])?;
    fs::write(cgroups.inner.join("pids.max"), tasks.to_string())?;
    let mut rest = Vec::new();
    let mut tcp = TcpStream::connect(("127.0.0.1", 5432))?;
    let port = tcp.local_addr()?.port();
    // Until the server has hung up.
    tcp.read_to_end(&mut rest)?;
    let mut unix = UnixStream::connect("/var/run/postgresql/.s.PGSQL.5432")?;
    unix.read_to_end(&mut rest)?;
    cgroups.open()?;
    let said = tracer.stop()?;
    let refusals = said.of("refusal");
    expect_eq!(refusals.len(), 2, "refusals");
    for refusal in &refusals {
        expect_eq!(refusal["child"]["kind"], "client_backend", "child");
    }
    let tcp = &refusals[0]["client"];
    expect_eq!(tcp["kind"], "tcp4", "kind");
    expect_eq!(tcp["address"], "127.0.0.1", "address");
    expect_eq!(tcp["port"], port, "port");
    let unix = &refusals[1]["client"];
    expect_eq!(unix["kind"], "unix", "kind");
    expect_eq!(unix["uid"], 0, "uid");
    expect_eq!(unix["pid"], std::process::id(), "pid");
    server.connect()
}

/// The tool's own test of itself finds everything right, and leaves the host as it was.
pub(crate) fn selftest(_: &mut Server, method: &str) -> Result<()> {
    let before = sysctl("kernel/threads-max")?;
    let output = Command::new("pgfork-trace")
        .args(["selftest", "--json", "--method", method])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    ensure!(
        output.status.code() == Some(0) && lines.len() >= 5,
        "exit status {:?}: {text}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stderr)
    );
    for line in &lines {
        ensure!(
            line["outcome"] == "right" || line["outcome"] == "skipped",
            "{line}"
        );
    }
    let right = lines.iter().filter(|line| line["outcome"] == "right");
    ensure!(right.count() >= 3, "most are skipped: {text}");
    expect_eq!(sysctl("kernel/threads-max")?, before, "settings");
    Ok(())
}
