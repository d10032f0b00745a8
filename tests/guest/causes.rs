//! Further causes that a real server can meet, alone and together.

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    limits::{self, Cgroups, Restored, number, set_sysctl, sysctl},
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
    let said = refuse_by(server, name, method, EAGAIN, |server| {
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

/// kernel.pid_max, which is one for all up to 6.12; later each namespace has its own, and the
/// host's is set just the same.
pub(crate) fn pid_space_exhausted(server: &mut Server, method: &str) -> Result<()> {
    /// `RESERVED_PIDS` + 1 (include/linux/threads.h): the least that can be set.
    const LEAST: u64 = 301;
    let pid_max = Restored::remember("kernel/pid_max")?;
    let mut taken = Vec::new();
    let outcome = refuse_running(server, "pid_space_exhausted", method, || {
        set_sysctl("kernel/pid_max", LEAST)?;
        // After the wrap only 300 is left, unless it is taken.
        while let Ok(child) = Command::new("sleep").arg("600").spawn() {
            taken.push(child);
            ensure!(taken.len() < 400, "pid_max does not hold");
        }
        Ok(())
    });
    drop(pid_max);
    for mut child in taken {
        let _ = child.kill();
        let _ = child.wait();
    }
    let refusal = outcome?;
    check_common(
        server,
        &refusal,
        "EAGAIN",
        "pid_space_exhausted",
        certainty(method, false),
    )
}

/// Sets or takes away `SCHED_DEADLINE` of a process.
fn set_deadline(pid: u32, on: bool) -> Result<()> {
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

/// `RLIMIT_NPROC` and a pids cgroup are both full: the kernel asks for the first one first.
pub(crate) fn two_causes(server: &mut Server, method: &str) -> Result<()> {
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let tasks = number(cgroups.inner.join("pids.current"))?;
    fs::write(cgroups.inner.join("pids.max"), tasks.to_string())?;
    let (_, own) = limits::tasks_of_user_of(server.pid)?;
    limits::set_nproc(server.pid, own)?;
    let said = refuse_one(server, "two_causes", method, EAGAIN);
    limits::set_nproc(server.pid, 4096)?;
    let first_said = said.and_then(|said| {
        let refusal = first(&said)?;
        expect_eq!(refusal["cause"], "rlimit_nproc", "the kernel's order");
        ensure!(
            refusal["also_possible"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|other| other["what"] == "pids cgroup")
                || refusal["next_limit"]["limit"] == "pids_cgroup_max"
                || refusal["next"]["limit"] == "pids_cgroup_max",
            "the pids cgroup is named too: {refusal}"
        );
        Ok(())
    });
    // With the first out of the way the second refuses.
    let second = refuse_one(server, "two_causes_second", method, EAGAIN);
    cgroups.open()?;
    first_said?;
    let second = second?;
    expect_eq!(
        first(&second)?["cause"],
        "pids_cgroup_max",
        "the second one"
    );
    server.connect()
}

/// Three causes in one watch: the totals are exact, each by its cause.
pub(crate) fn storm_mixed(server: &mut Server, method: &str) -> Result<()> {
    const EACH: usize = 5;
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let tracer = Tracer::start("storm_mixed", method, &[])?;
    let refuse = |cause: &'static str| -> Result<(&'static str, usize)> {
        let before = server.refused_in_log(EAGAIN);
        for _ in 0..EACH {
            ensure!(server.connect().is_err(), "{cause}: not refused");
        }
        Ok((cause, server.refused_in_log(EAGAIN) - before))
    };
    let mut logged = Vec::new();
    for _ in 0..2 {
        let tasks = number(cgroups.inner.join("pids.current"))?;
        fs::write(cgroups.inner.join("pids.max"), tasks.to_string())?;
        logged.push(refuse("pids_cgroup_max")?);
        cgroups.open()?;
        let (_, own) = limits::tasks_of_user_of(server.pid)?;
        limits::set_nproc(server.pid, own)?;
        let nproc = refuse("rlimit_nproc");
        limits::set_nproc(server.pid, 4096)?;
        logged.push(nproc?);
        set_deadline(server.pid, true)?;
        let deadline = refuse("sched_deadline_fork");
        set_deadline(server.pid, false)?;
        logged.push(deadline?);
    }
    let said = tracer.stop()?;
    let totals = said.only("totals")?;
    let all: usize = logged.iter().map(|(_, count)| count).sum();
    expect_eq!(totals["refused"], all, "refused");
    for cause in ["pids_cgroup_max", "rlimit_nproc", "sched_deadline_fork"] {
        let count: usize = logged
            .iter()
            .filter(|(it, _)| *it == cause)
            .map(|(_, count)| count)
            .sum();
        expect_eq!(totals["refused_by_cause"][cause], count, cause);
    }
    expect_eq!(said.of("refusal").len(), all, "JSON keeps every record");
    expect_eq!(said.only("end")?["accounted"], true, "accounted");
    server.connect()
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
