//! `--all-children`: what backends and their children are refused, and who ends them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    attribution,
    limits::{Cgroups, number},
    scenarios::expect_eq,
    server::{RunningClient, Server, wait_for},
    tracer::{Said, Tracer, is_tracepoint},
};

pub(crate) const ALL: &[&str] = &["--all-children"];
const MIB: u64 = 1 << 20;

/// Everything is attached, nothing is refused, and nothing is reported.
pub(crate) fn control_all(server: &mut Server, method: &str) -> Result<()> {
    let tracer = Tracer::start("control_all", method, ALL)?;
    for _ in 0..3 {
        server.connect()?;
    }
    server.query("select count(*) from (select repeat('x', 1000000) from generate_series(1, 20) order by 1) t")?;
    server.query("copy (select 1) to program 'cat > /dev/null'")?;
    let said = tracer.stop()?;
    for kind in [
        "refusal",
        "memory_refusal",
        "oom_kill",
        "killed",
        "repeat",
        "lost",
    ] {
        expect_eq!(said.of(kind).len(), 0, kind);
    }
    expect_eq!(said.status, 0, "exit status");
    expect_eq!(said.only("end")?["accounted"], true, "accounted");
    Ok(())
}

const IN_PARALLEL: &str = "select count(*) from rows_without_index;";

/// A running backend and its client.
pub(crate) struct Backend {
    client: RunningClient,
    pub(crate) pid: u32,
}

impl Backend {
    pub(crate) fn start(server: &Server) -> Result<Self> {
        let client = RunningClient::start()?;
        let pid = wait_for("the backend", || {
            server.processes().into_iter().find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|title| title.contains("[local] idle"))
            })
        })?;
        Ok(Self { client, pid })
    }

    /// Sets one of its limits to what it uses now and some more.
    fn limit(&self, resource: libc::__rlimit_resource_t, field: usize, more: u64) -> Result<()> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid))?;
        let pages: u64 = statm
            .split_whitespace()
            .nth(field)
            .unwrap_or_default()
            .parse()?;
        let limit = libc::rlimit {
            rlim_cur: pages * 4096 + more,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: `limit` is valid for reading; the old limit is not asked for.
        let result = unsafe {
            libc::prlimit(
                i32::try_from(self.pid)?,
                resource,
                &raw const limit,
                std::ptr::null_mut(),
            )
        };
        ensure!(result == 0, "prlimit: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Has it ask for a worker and a shared memory segment by [`IN_PARALLEL`].
    fn works_in_parallel(&mut self, server: &Server) -> Result<()> {
        server.query(
            "create table if not exists rows_without_index as select generate_series(1, 100000)",
        )?;
        for setting in [
            "max_parallel_workers_per_gather = 1",
            "parallel_setup_cost = 0",
            "parallel_tuple_cost = 0",
            "min_parallel_table_scan_size = 0",
        ] {
            self.client.say(&format!("set {setting};"))?;
        }
        Ok(())
    }

    /// A statement that wants much memory at once.
    fn want_memory(&mut self) -> Result<()> {
        self.client.say("select length(repeat('x', 500000000));")
    }
}

fn out_of_memory(server: &Server) -> usize {
    server.log().matches("ERROR:  out of memory").count()
}

/// Whether this method can see the forks of descendants.
fn sees_forks(method: &str) -> bool {
    method != "tracepoint"
}

/// Whether this method can see what backends ask for.
fn sees_requests(method: &str) -> bool {
    !is_tracepoint(method)
}

fn refused_memory(
    server: &Server,
    method: &str,
    cause: &'static str,
    close: impl FnOnce(&Backend) -> Result<()>,
) -> Result<Said> {
    let mut backend = Backend::start(server)?;
    let tracer = Tracer::start(cause, method, ALL)?;
    close(&backend)?;
    let before = out_of_memory(server);
    backend.want_memory()?;
    wait_for("the server says that it is out of memory", || {
        (out_of_memory(server) > before).then_some(())
    })?;
    let said = tracer.stop()?;
    let lines = said.of("memory_refusal");
    let line = lines.first().copied();
    attribution::report(cause, said.method(), line, sees_requests(method));
    if !sees_requests(method) {
        expect_eq!(lines.len(), 0, "memory refusals");
        return Ok(said);
    }
    let line = line.context("nothing was reported")?;
    // One line for one malloc, but where the backend lost the processor for longer than
    // the calls of one malloc are waited for: a slow guest may not decide.
    ensure!(lines.len() <= 2, "lines for one malloc: {}", lines.len());
    for line in &lines {
        expect_eq!(line["cause"], cause, "cause");
    }
    expect_eq!(line["errno"]["name"], "ENOMEM", "errno");
    expect_eq!(line["process"]["pid"], backend.pid, "who");
    expect_eq!(line["postmaster"]["pid"], server.pid, "whose");
    let asked: u64 = line["asked"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|asked| asked["bytes"].as_u64())
        .max()
        .context("not said what was asked for")?;
    ensure!(asked >= 500_000_000, "asked for {asked}");
    Ok(said)
}

/// `RLIMIT_AS` of a running backend.
pub(crate) fn rlimit_as(server: &mut Server, method: &str) -> Result<()> {
    refused_memory(server, method, "rlimit_as", |backend| {
        backend.limit(libc::RLIMIT_AS, 0, 16 * MIB)
    })
    .map(drop)
}

/// `RLIMIT_DATA` of a running backend.
pub(crate) fn rlimit_data(server: &mut Server, method: &str) -> Result<()> {
    refused_memory(server, method, "rlimit_data", |backend| {
        backend.limit(libc::RLIMIT_DATA, 5, 16 * MIB)
    })
    .map(drop)
}

/// A tmpfs of this size on /dev/shm, until it is dropped.
struct SmallShm;

impl SmallShm {
    const SIZE: u64 = 64 << 10;

    fn mount() -> Result<Self> {
        fs::create_dir_all("/dev/shm")?;
        // SAFETY: strings with their end.
        let result = unsafe {
            libc::mount(
                c"shm".as_ptr(),
                c"/dev/shm".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=64k,mode=1777".as_ptr().cast(),
            )
        };
        ensure!(result == 0, "mount: {}", std::io::Error::last_os_error());
        Ok(Self)
    }
}

impl Drop for SmallShm {
    fn drop(&mut self) {
        // SAFETY: a string with its end.
        unsafe { libc::umount2(c"/dev/shm".as_ptr(), libc::MNT_DETACH) };
    }
}

/// A parallel query does not find room in /dev/shm.
pub(crate) fn shm_full(server: &mut Server, method: &str) -> Result<()> {
    const CAUSE: &str = "shm_tmpfs_full";
    let mut backend = Backend::start(server)?;
    backend.works_in_parallel(server)?;
    let tracer = Tracer::start(CAUSE, method, ALL)?;
    let small = SmallShm::mount()?;
    let refused = || {
        let log = server.log();
        log.matches("could not resize shared memory segment")
            .count()
    };
    let before = refused();
    backend.client.say(IN_PARALLEL)?;
    wait_for("the server finds no room", || {
        (refused() > before).then_some(())
    })?;
    let said = tracer.stop()?;
    drop(small);
    let lines = said.of("memory_refusal");
    let line = lines.first().copied();
    attribution::report(CAUSE, said.method(), line, sees_requests(method));
    if !sees_requests(method) {
        expect_eq!(lines.len(), 0, "memory refusals");
        return Ok(());
    }
    let line = line.context("nothing was reported")?;
    expect_eq!(lines.len(), refused() - before, "refusals");
    expect_eq!(line["cause"], CAUSE, "cause");
    expect_eq!(line["certainty"], "observed", "certainty");
    expect_eq!(line["errno"]["name"], "ENOSPC", "errno");
    expect_eq!(line["process"]["pid"], backend.pid, "who");
    let tmpfs = &line["evidence"]["tmpfs"];
    expect_eq!(tmpfs["mounted_on"], "/dev/shm", "where");
    expect_eq!(tmpfs["size_bytes"], SmallShm::SIZE, "size");
    let asked = line["evidence"]["requested_bytes"].as_u64();
    ensure!(asked > Some(SmallShm::SIZE), "asked for {asked:?}");
    ensure!(
        said.text.contains("could not resize shared memory segment"),
        "the server's words: {}",
        said.text
    );
    Ok(())
}

/// The OOM killer of a memory cgroup ends a backend, and the server restarts all others.
pub(crate) fn oom_kill(server: &mut Server, method: &str) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("memory").is_dir() {
        return Ok(());
    }
    let cgroup = root.join("pgtest-memory");
    fs::create_dir_all(&cgroup)?;
    let mut backend = Backend::start(server)?;
    fs::write(cgroup.join("cgroup.procs"), backend.pid.to_string())?;
    fs::write(cgroup.join("memory.max"), (64 * MIB).to_string())?;
    let kills = || -> Result<u64> {
        let events = fs::read_to_string(cgroup.join("memory.events"))?;
        let line = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.context("no oom_kill")?.trim().parse()?)
    };
    let before = kills()?;
    let tracer = Tracer::start("backend_oom_kill", method, ALL)?;
    backend.want_memory()?;
    wait_for("the kernel kills", || {
        (kills().ok()? > before).then_some(())
    })?;
    server.wait_until_killed(backend.pid)?;
    let said = tracer.stop()?;
    fs::write(cgroup.join("memory.max"), "max")?;
    let kill = said
        .of("oom_kill")
        .into_iter()
        .find(|kill| kill["victim"]["pid"] == backend.pid);
    attribution::report("memcg_oom_kill", said.method(), kill, true);
    let kill = kill.with_context(|| format!("not reported: {:#?}", said.of("oom_kill")))?;
    expect_eq!(kill["cause"], "memcg_oom_kill", "cause");
    expect_eq!(kill["postmaster"]["pid"], server.pid, "whose");
    if sees_requests(method) {
        expect_eq!(kill["evidence"]["oom_cgroup"], "/pgtest-memory", "cgroup");
        expect_eq!(kill["evidence"]["limit_bytes"], 64 * MIB, "limit");
    }
    server.wait_until_ready()
}

/// A backend is sent SIGKILL: by whom is said.
pub(crate) fn killed(server: &mut Server, method: &str) -> Result<()> {
    let backend = Backend::start(server)?;
    let tracer = Tracer::start("backend_killed", method, ALL)?;
    // SAFETY: a signal to a process of the server's.
    let sent = unsafe { libc::kill(i32::try_from(backend.pid)?, libc::SIGKILL) };
    ensure!(sent == 0, "kill: {}", std::io::Error::last_os_error());
    server.wait_until_killed(backend.pid)?;
    let said = tracer.stop()?;
    let of_it: Vec<&Value> = said
        .of("killed")
        .into_iter()
        .filter(|killed| killed["target"]["pid"] == backend.pid)
        .collect();
    expect_eq!(of_it.len(), 1, "lines about the kill");
    expect_eq!(of_it[0]["by"], "signal", "by what");
    expect_eq!(of_it[0]["sender"]["pid"], std::process::id(), "by whom");
    server.wait_until_ready()
}

/// Leaves room for `more` tasks, and collects what is said until the server's log has one more
/// line with `refused`.
fn with_room_for(
    server: &Server,
    (name, method): (&str, &str),
    more: u64,
    refused: &str,
    act: impl FnOnce() -> Result<()>,
) -> Result<Said> {
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let tracer = Tracer::start(name, method, ALL)?;
    let refusals = || server.log().matches(refused).count();
    let before = refusals();
    let tasks = number(cgroups.inner.join("pids.current"))?;
    fs::write(cgroups.inner.join("pids.max"), (tasks + more).to_string())?;
    act()?;
    wait_for("the server logs the refusal", || {
        (refusals() > before).then_some(())
    })?;
    cgroups.open()?;
    tracer.stop()
}

/// The refusal of a child of the server's: what it says of the child is given back.
fn refused_child(
    server: &Server,
    said: &Said,
    is_it: impl Fn(&Value) -> bool,
) -> Result<Option<Value>> {
    let refusal = said
        .of("refusal")
        .into_iter()
        .find(|refusal| is_it(&refusal["process"]));
    let visible = sees_forks(said.method());
    attribution::report("pids_cgroup_max", said.method(), refusal, visible);
    let Some(refusal) = refusal else {
        ensure!(!visible, "nothing was reported");
        return Ok(None);
    };
    expect_eq!(refusal["cause"], "pids_cgroup_max", "cause");
    expect_eq!(refusal["postmaster"]["pid"], server.pid, "whose");
    expect_eq!(refusal["errno"]["name"], "EAGAIN", "errno");
    Ok(Some(refusal["process"].clone()))
}

/// A backend is refused the shell that `COPY ... TO PROGRAM` wants, and then that shell a child.
pub(crate) fn copy_program(server: &mut Server, method: &str) -> Result<()> {
    let mut backend = Backend::start(server)?;
    let pid = backend.pid;
    let named = ("copy_program", method);
    let no_shell = "could not execute command \"cat > /dev/null\"";
    let said = with_room_for(server, named, 0, no_shell, || {
        let copy = "copy (select 1) to program 'cat > /dev/null';";
        backend.client.say(copy)
    })?;
    if let Some(process) = refused_child(server, &said, |process| process["pid"] == pid)? {
        expect_eq!(process["comm"], "postgres", "comm");
        expect_eq!(process["role"], "client_backend", "role");
        let title = process["title"].as_str().unwrap_or_default();
        ensure!(title.contains("[local]"), "title: {title}");
    }
    let program = "cat > /dev/null; cat > /dev/null; true";
    let no_child = format!("program \"{program}\" failed");
    let said = with_room_for(server, named, 1, &no_child, || {
        let copy = format!("copy (select 1) to program '{program}';");
        backend.client.say(&copy)
    })?;
    let process = refused_child(server, &said, |process| process["comm"] == "sh")?;
    is_program(process.as_ref(), "COPY")
}

/// The shell of `archive_command` is refused a child.
pub(crate) fn archive_command(server: &mut Server, method: &str) -> Result<()> {
    let command = "cat %p > /dev/null; cat %p > /dev/null; true";
    server.query("alter system set archive_mode = on")?;
    server.query(&format!("alter system set archive_command = '{command}'"))?;
    server.restart()?;
    let outcome = archiver_refused(server, method);
    server.query("alter system reset all")?;
    server.restart()?;
    outcome
}

fn archiver_refused(server: &Server, method: &str) -> Result<()> {
    let mut backend = Backend::start(server)?;
    let named = ("archive_command", method);
    let said = with_room_for(server, named, 1, "archive command failed", || {
        let client = &mut backend.client;
        client.say("create table pgtest_wal (); drop table pgtest_wal;")?;
        client.say("select pg_switch_wal();")
    })?;
    let process = refused_child(server, &said, |process| process["comm"] == "sh")?;
    is_program(process.as_ref(), "archive_command")
}

/// A shell that is refused a child ends at once: what it was started for is said only where it
/// could still be read.
fn is_program(process: Option<&Value>, of: &str) -> Result<()> {
    let Some(process) = process.filter(|process| process.get("role").is_some()) else {
        return Ok(());
    };
    expect_eq!(process["role"], "program", "role");
    let job = process["job"].as_str().unwrap_or_default();
    ensure!(job.contains(of), "job: {job}");
    Ok(())
}

/// A parallel query asks for a worker, and its fork is refused: no client's, and the server's own
/// log says what it was to be.
pub(crate) fn parallel_worker(server: &mut Server, method: &str) -> Result<()> {
    let cgroups = Cgroups::make()?;
    let mut backend = Backend::start(server)?;
    backend.works_in_parallel(server)?;
    server.enter(&cgroups.inner)?;
    let tracer = Tracer::start("parallel_worker", method, &[])?;
    // "worker process" to version 16, "background worker process" since.
    let refused = || {
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains("could not fork"));
        lines.filter(|line| line.contains("worker process")).count()
    };
    let before = refused();
    fs::write(
        cgroups.inner.join("pids.max"),
        number(cgroups.inner.join("pids.current"))?.to_string(),
    )?;
    for times in 1..=2 {
        backend.client.say(IN_PARALLEL)?;
        wait_for("the server logs the refusal", || {
            (refused() >= before + times).then_some(())
        })?;
    }
    cgroups.open()?;
    let said = tracer.stop()?;
    expect_eq!(refused() - before, 2, "refusals in the log");
    let refusals = said.of("refusal");
    expect_eq!(refusals.len(), 2, "refusals");
    for refusal in refusals {
        attribution::report("pids_cgroup_max", said.method(), Some(refusal), true);
        expect_eq!(refusal["cause"], "pids_cgroup_max", "cause");
        ensure!(refusal["client"].is_null(), "a client: {refusal}");
        let child = &refusal["child"];
        // The line of the log may come after the record; then the kernel's word stands alone.
        let sure = child["kind"] == "background_worker" && child["certainty"] == "observed";
        let less = child["kind"] == "worker" && child["certainty"] == "deduced";
        ensure!(sure || less, "child: {child}");
    }
    expect_eq!(
        said.only("totals")?["server_log"],
        serde_json::json!({"could_not_fork": {"background_worker": 2}}),
        "what the log said"
    );
    Ok(())
}
