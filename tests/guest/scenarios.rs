//! One scenario for each way to be refused, and one without a refusal.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    attribution, causes, children,
    forker::Forker,
    kills,
    limits::{self, Cgroups, Hog, Restored, meminfo, number, pids_events, set_sysctl, sysctl},
    postmasters, promise,
    server::{Server, wait_for},
    tasks_max, together,
    tracer::{SYSCALLS, Said, Tracer, is_tracepoint},
};

pub(crate) const EAGAIN: &str = "Resource temporarily unavailable";
pub(crate) const ENOMEM: &str = "Cannot allocate memory";
const KIB: u64 = 1024;

/// A named scenario.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// Name.
    pub(crate) name: &'static str,
    /// Runs only when it is named: it needs a guest of its own kind.
    pub(crate) special: bool,
    /// Does everything; an error is a failed test.
    pub(crate) run: fn(&mut Server, &str) -> Result<()>,
}

const fn usual(name: &'static str, run: fn(&mut Server, &str) -> Result<()>) -> Scenario {
    Scenario {
        name,
        special: false,
        run,
    }
}

/// All scenarios.
pub(crate) const ALL: &[Scenario] = &[
    usual("control", control),
    usual("pids_leaf", pids_leaf),
    usual("pids_ancestor", pids_ancestor),
    usual("rlimit_nproc", rlimit_nproc),
    usual("commit_limit_ratio", commit_limit_ratio),
    usual("commit_limit_kbytes", commit_limit_kbytes),
    usual("threads_max", causes::threads_max),
    usual("pid_space_exhausted", causes::pid_space_exhausted),
    usual("sched_deadline", causes::sched_deadline),
    usual("perf_inherit_failed", causes::perf_inherit),
    usual("two_causes", together::two_causes),
    usual("storm_mixed", together::storm_mixed),
    usual("client", causes::client),
    usual("control_all", children::control_all),
    usual("backend_rlimit_as", children::rlimit_as),
    usual("backend_rlimit_data", children::rlimit_data),
    usual("backend_shm_full", children::shm_full),
    usual("backend_oom_kill", children::oom_kill),
    usual("backend_killed", children::killed),
    usual("global_oom_kill", kills::global_oom),
    usual("postmaster_killed", kills::postmaster),
    usual("kill_ignored", kills::ignored),
    usual("copy_program", children::copy_program),
    usual("parallel_worker", children::parallel_worker),
    usual("archive_command", children::archive_command),
    usual("selftest", causes::selftest),
    usual("storm", storm),
    usual("signals", signals),
    usual("restart", restart),
    usual("postmasters", postmasters::postmasters),
    usual("half_attached", postmasters::half_attached),
    usual("restart_refused", crate::outage::restart_refused),
    usual("killed", killed),
    usual("outage_commit", crate::outage::commit),
    usual("outage_private", crate::outage::private),
    usual("outage_pids", crate::outage::pids),
    usual("outage_memory", crate::outage::memory),
    Scenario {
        name: "tasks_max",
        special: true,
        run: tasks_max::of_the_unit,
    },
    Scenario {
        name: "tasks_max_slice",
        special: true,
        run: tasks_max::of_the_slice,
    },
    Scenario {
        name: "locked_down",
        special: true,
        run: postmasters::locked_down,
    },
];

macro_rules! expect_eq {
    ($actual:expr, $expected:expr, $what:expr) => {{
        let (actual, expected) = (&$actual, &$expected);
        ensure!(
            *actual == *expected,
            "{}: {actual:?}, expected {expected:?}",
            $what
        );
    }};
}
pub(crate) use expect_eq;

/// Lets one connection be refused and returns what the tracer said of it.
pub(crate) fn refuse_one(
    server: &Server,
    scenario: &str,
    method: &str,
    strerror: &str,
) -> Result<Said> {
    refuse_by(server, scenario, method, strerror, |server, _| {
        let error = server
            .connect()
            .err()
            .context("the connection was not refused")?;
        // The client may see the socket closed first; the server's log is the proof.
        drop(error);
        Ok(())
    })
}

pub(crate) fn refuse_by(
    server: &Server,
    scenario: &str,
    method: &str,
    strerror: &str,
    act: impl FnOnce(&Server, &Tracer) -> Result<()>,
) -> Result<Said> {
    let tracer = Tracer::start(scenario, method, &[])?;
    let before = server.refused_in_log(strerror);
    act(server, &tracer)?;
    let logged = wait_for("the server logs the refusal", || {
        let logged = server.refused_in_log(strerror) - before;
        (logged > 0).then_some(logged)
    })?;
    wait_for("pgfork-trace reports it", || {
        (tracer.refusals() >= logged).then_some(())
    })?;
    // An old client tries twice; whatever it did, both sides must count the same.
    let logged = server.refused_in_log(strerror) - before;
    let said = tracer.stop()?;
    expect_eq!(said.of("refusal").len(), logged, "refusals reported");
    expect_eq!(said.status, 1, "exit status");
    expect_eq!(said.only("end")?["accounted"], true, "accounted");
    let totals = said.only("totals")?;
    expect_eq!(totals["refused"], logged, "totals");
    Ok(said)
}

pub(crate) fn first(said: &Said) -> Result<&Value> {
    said.of("refusal").into_iter().next().context("no refusal")
}

/// The certainty that a method can give for a check.
pub(crate) fn certainty(method: &str, inline_here: bool) -> &'static str {
    if is_tracepoint(method) || inline_here {
        "deduced"
    } else {
        "observed"
    }
}

pub(crate) fn check_common(
    server: &Server,
    refusal: &Value,
    errno: &str,
    cause: &str,
    certainty: &str,
) -> Result<()> {
    // Only that one tells the system call.
    let method = match refusal["syscall"].as_str() {
        Some(_) => SYSCALLS,
        None => refusal["method"].as_str().unwrap_or("?"),
    };
    attribution::report(cause, method, Some(refusal), true);
    expect_eq!(refusal["errno"]["name"], errno, "errno");
    expect_eq!(refusal["cause"], cause, "cause");
    expect_eq!(refusal["certainty"], certainty, "certainty");
    expect_eq!(refusal["postmaster"]["pid"], server.pid, "postmaster");
    expect_eq!(refusal["postmaster"]["port"], 5432, "port");
    expect_eq!(refusal["postmaster"]["version"], server.major(), "version");
    let data_dir = server.data_dir();
    expect_eq!(
        refusal["postmaster"]["data_dir"].as_str(),
        data_dir.to_str(),
        "data directory"
    );
    Ok(())
}

/// Applies the remedies that take effect at once, up to the first alternative, as printed.
pub(crate) fn apply(refusal: &Value, count: usize) -> Result<()> {
    for remedy in refusal["remedy"]
        .as_array()
        .context("no remedy")?
        .iter()
        .take(count)
    {
        let command = remedy["command"].as_str().context("no command")?;
        let output = Command::new("sh").args(["-c", command]).output()?;
        ensure!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn control(server: &mut Server, method: &str) -> Result<()> {
    let tracer = Tracer::start("control", method, &[])?;
    for _ in 0..3 {
        server.connect()?;
    }
    let said = tracer.stop()?;
    expect_eq!(said.status, 0, "exit status");
    expect_eq!(said.of("refusal").len(), 0, "refusals");
    let totals = said.only("totals")?;
    ensure!(
        totals["forks"].as_u64() >= Some(3),
        "three connections are three forks: {totals}"
    );
    expect_eq!(totals["refused"], 0, "refused");
    let time = &totals["fork_time_ns"];
    ensure!(
        time["p50"].as_u64() > Some(0) && time["p99"].as_u64() >= time["p50"].as_u64(),
        "fork time: {time}"
    );
    expect_eq!(said.only("end")?["accounted"], true, "accounted");
    let start = said.only("start")?;
    if method != "auto" {
        let method = if is_tracepoint(method) {
            "tracepoint"
        } else {
            method
        };
        expect_eq!(start["method"], method, "method");
    }
    ensure!(
        said.text.contains("port 5432"),
        "the header names the server: {}",
        said.text
    );
    Ok(())
}

fn pids_leaf(server: &mut Server, method: &str) -> Result<()> {
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let outcome = pids(server, method, "pids_leaf", &cgroups, &cgroups.inner, 0);
    cgroups.open()?;
    outcome
}

fn pids_ancestor(server: &mut Server, method: &str) -> Result<()> {
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let outcome = pids(server, method, "pids_ancestor", &cgroups, &cgroups.outer, 1);
    cgroups.open()?;
    outcome
}

fn pids(
    server: &Server,
    method: &str,
    name: &str,
    cgroups: &Cgroups,
    limited: &Path,
    ancestor: u64,
) -> Result<()> {
    let tasks = number(limited.join("pids.current"))?;
    fs::write(limited.join("pids.max"), tasks.to_string())?;
    let events = pids_events(&cgroups.inner) + pids_events(&cgroups.outer);
    let said = refuse_one(server, name, method, EAGAIN)?;
    let refusal = first(&said)?;
    check_common(
        server,
        refusal,
        "EAGAIN",
        "pids_cgroup_max",
        certainty(method, false),
    )?;
    let scope = &refusal["scope"];
    let path = if ancestor == 0 {
        "/pgtest/inner"
    } else {
        "/pgtest"
    };
    expect_eq!(scope["path"], path, "path");
    expect_eq!(scope["ancestor"], ancestor, "ancestor");
    let level = &refusal["evidence"]["pids"][usize::try_from(ancestor)?];
    expect_eq!(
        level["tasks"],
        number(limited.join("pids.current"))?,
        "tasks against pids.current"
    );
    expect_eq!(
        level["limit"],
        number(limited.join("pids.max"))?,
        "limit against pids.max"
    );
    // Whom the kernel blames differs by version; that it counted these refusals does not.
    let blamed = pids_events(&cgroups.inner) + pids_events(&cgroups.outer) - events;
    if cgroups.inner.join("pids.events").exists() {
        expect_eq!(blamed, said.of("refusal").len() as u64, "pids.events");
    }
    if !is_tracepoint(method) {
        expect_eq!(refusal["trail"][0]["function"], "pids_can_fork", "trail");
        expect_eq!(refusal["trail"][0]["returned"], "-EAGAIN", "trail");
    }
    apply(refusal, usize::MAX)?;
    promise::room_for_tasks(server, refusal).context("after the remedy")
}

fn rlimit_nproc(server: &mut Server, method: &str) -> Result<()> {
    let (uid, tasks) = limits::tasks_of_user_of(server.pid)?;
    limits::set_nproc(server.pid, tasks)?;
    let outcome = nproc_refused(server, method, uid, tasks);
    limits::set_nproc(server.pid, 4096)?;
    outcome
}

fn nproc_refused(server: &Server, method: &str, uid: u64, tasks: u64) -> Result<()> {
    let said = refuse_one(server, "rlimit_nproc", method, EAGAIN)?;
    let refusal = first(&said)?;
    let inline = !symbol_exists("is_rlimit_overlimit")?;
    check_common(
        server,
        refusal,
        "EAGAIN",
        "rlimit_nproc",
        certainty(method, inline),
    )?;
    expect_eq!(refusal["scope"]["uid"], uid, "uid");
    let level = &refusal["evidence"]["nproc"]["levels"][0];
    expect_eq!(level["limit"], tasks, "limit");
    expect_eq!(
        level["tasks"],
        limits::tasks_of_user_of(server.pid)?.1,
        "tasks against /proc"
    );
    if !inline && !is_tracepoint(method) {
        let trail = &refusal["trail"][0];
        expect_eq!(trail["function"], "is_rlimit_overlimit", "trail");
    }
    ensure!(
        said.text.contains("and asked for 1 more"),
        "what was asked for: {}",
        said.text
    );
    ensure!(
        refusal["evidence"]["nproc"]["user_tasks"][0]["comm"] == "postgres",
        "whose tasks: {refusal}"
    );
    apply(refusal, 1)?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid))?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max processes"))
        .context("limits")?;
    expect_eq!(
        line.split_ascii_whitespace().nth(1),
        Some("unlimited"),
        "the hard limit is left alone"
    );
    promise::room_for_tasks(server, refusal).context("after the remedy")
}

fn symbol_exists(name: &str) -> Result<bool> {
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    Ok(symbols
        .lines()
        .any(|line| line.split_ascii_whitespace().nth(2) == Some(name)))
}

/// Strict overcommit with `vm.overcommit_ratio`; a mapping of this program takes what is free.
fn commit_limit_ratio(server: &mut Server, method: &str) -> Result<()> {
    let _mode = Restored::remember("vm/overcommit_memory")?;
    let _ratio = Restored::remember("vm/overcommit_ratio")?;
    let _reserve = Restored::remember("vm/admin_reserve_kbytes")?;
    let left = limits::widen_admin_reserve()?;
    // Two thirds of RAM: far above what is promised, and below what RAM gives. The mode is in
    // force before anything is watched.
    set_sysctl("vm/overcommit_ratio", 66)?;
    set_sysctl("vm/overcommit_memory", 2)?;
    commit_limit(
        server,
        method,
        "commit_limit_ratio",
        "sysctl vm.overcommit_ratio=",
        || {
            let free = meminfo("CommitLimit")? - meminfo("Committed_AS")?;
            Ok(Some(Hog::map(free - left)?))
        },
    )
}

/// The same with `vm.overcommit_kbytes`, switched on while it is watched.
fn commit_limit_kbytes(server: &mut Server, method: &str) -> Result<()> {
    let _mode = Restored::remember("vm/overcommit_memory")?;
    // Setting the ratio is what resets overcommit_kbytes.
    let _ratio = Restored::remember("vm/overcommit_ratio")?;
    let _reserve = Restored::remember("vm/admin_reserve_kbytes")?;
    let left = limits::widen_admin_reserve()?;
    commit_limit(
        server,
        method,
        "commit_limit_kbytes",
        "sysctl vm.overcommit_kbytes=",
        || {
            set_sysctl(
                "vm/overcommit_kbytes",
                (meminfo("Committed_AS")? + left) / KIB,
            )?;
            Ok(None)
        },
    )
}

fn commit_limit(
    server: &Server,
    method: &str,
    name: &str,
    command: &str,
    limit: impl FnOnce() -> Result<Option<Hog>>,
) -> Result<()> {
    let mut hog = None;
    let said = refuse_by(server, name, method, ENOMEM, |server, tracer| {
        hog = limit()?;
        if sysctl("vm/overcommit_memory")? != 2 {
            set_sysctl("vm/overcommit_memory", 2)?;
            tracer.watches_strict(method)?;
        }
        server
            .connect()
            .err()
            .context("the connection was not refused")?;
        Ok(())
    })?;
    let refusal = first(&said)?;
    check_common(
        server,
        refusal,
        "ENOMEM",
        "commit_limit",
        certainty(method, false),
    )?;
    expect_eq!(refusal["scope"]["kind"], "host", "scope");
    check_commit_numbers(server, &refusal["evidence"]["overcommit"], method)?;
    let remedy = refusal["remedy"][0]["command"].as_str().unwrap_or_default();
    ensure!(remedy.starts_with(command), "remedy: {remedy}");
    if !is_tracepoint(method) {
        expect_eq!(
            refusal["trail"][0]["function"],
            "__vm_enough_memory",
            "trail"
        );
    }
    apply(refusal, 1)?;
    promise::room_for_backends(server, refusal).context("after the remedy")
}

/// The numbers are the kernel's, and they add up to a refusal.
fn check_commit_numbers(server: &Server, evidence: &Value, method: &str) -> Result<()> {
    let bytes = |key: &str| {
        evidence[key]
            .as_u64()
            .with_context(|| format!("no {key}: {evidence}"))
    };
    expect_eq!(
        bytes("commit_limit_bytes")?,
        meminfo("CommitLimit")?,
        "CommitLimit"
    );
    expect_eq!(
        bytes("admin_reserve_bytes")?,
        sysctl("vm/admin_reserve_kbytes")? * KIB,
        "admin_reserve"
    );
    let statm = fs::read_to_string(format!("/proc/{}/statm", server.pid))?;
    let total_vm: u64 = statm.split(' ').next().unwrap_or_default().parse()?;
    let user_reserve = (total_vm / 32 * 4096).min(sysctl("vm/user_reserve_kbytes")? * KIB);
    let close = bytes("user_reserve_bytes")?.abs_diff(user_reserve);
    ensure!(
        close <= 64 * KIB,
        "user_reserve {} against {user_reserve} of /proc",
        bytes("user_reserve_bytes")?
    );
    let usable = bytes("usable_bytes")?;
    expect_eq!(
        usable,
        bytes("commit_limit_bytes")? - bytes("admin_reserve_bytes")? - bytes("user_reserve_bytes")?,
        "usable"
    );
    let skew = bytes("counter_skew_bytes")?;
    let committed = bytes("committed_bytes").or_else(|_| bytes("committed_after_bytes"))?;
    let asked = if is_tracepoint(method) {
        bytes("fork_charge_bytes")?
    } else {
        bytes("requested_bytes")?
    };
    ensure!(
        committed + asked + skew >= usable,
        "{committed} + {asked} does not reach {usable} (skew {skew})"
    );
    ensure!(
        is_tracepoint(method) || committed + skew >= usable,
        "{committed} does not reach {usable} without what was asked for (skew {skew})"
    );
    let now = meminfo("Committed_AS")?;
    let apart = committed.abs_diff(now);
    ensure!(
        apart <= skew + 16 * 1024 * KIB,
        "committed {committed}, and {now} in meminfo now"
    );
    Ok(())
}

pub(crate) fn tasks_now() -> Result<u64> {
    let loadavg = fs::read_to_string("/proc/loadavg")?;
    let field = loadavg
        .split(' ')
        .nth(3)
        .and_then(|field| field.split_once('/'))
        .context("loadavg")?;
    Ok(field.1.parse()?)
}

/// Many refusals: text folds them, totals are exact.
fn storm(server: &mut Server, method: &str) -> Result<()> {
    const CONNECTIONS: usize = 12;
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let tracer = Tracer::start("storm", method, &[])?;
    let before = server.refused_in_log(EAGAIN);
    fs::write(
        cgroups.inner.join("pids.max"),
        number(cgroups.inner.join("pids.current"))?.to_string(),
    )?;
    for _ in 0..CONNECTIONS {
        ensure!(server.connect().is_err(), "a connection was not refused");
    }
    cgroups.open()?;
    server.connect()?;
    let logged = server.refused_in_log(EAGAIN) - before;
    ensure!(logged >= CONNECTIONS, "the server logged {logged}");
    wait_for("pgfork-trace reports all", || {
        (tracer.refusals() >= logged).then_some(())
    })?;
    let said = tracer.stop()?;
    let totals = said.only("totals")?;
    expect_eq!(totals["refused"], logged, "refused");
    expect_eq!(
        totals["refused_by_cause"]["pids_cgroup_max"],
        logged,
        "by cause"
    );
    expect_eq!(said.of("refusal").len(), logged, "JSON keeps every record");
    let whole = said.text.matches("REFUSED").count();
    expect_eq!(whole, 1, "one whole block in the text");
    ensure!(
        said.text.contains("same cause"),
        "the others are folded: {}",
        said.text
    );
    Ok(())
}

/// A process that is no postmaster forks under a storm of signals: the kernel restarts some
/// forks (-ERESTARTNOINTR), and refuses none.
fn signals(_: &mut Server, method: &str) -> Result<()> {
    /// A signal must come in the few microseconds before the kernel looks: tried so often.
    const ROUNDS: usize = 20;
    let mut forker = Forker::start()?;
    let pid = forker.pid().to_string();
    if method == "tracepoint" {
        // This program is static: it has no C library whose fork could be watched, and that is said.
        let error = Tracer::start("signals", method, &["--pid", &pid]).err();
        let text = error.context("it was watched")?.to_string();
        ensure!(text.contains("no C library is mapped"), "{text}");
        return Ok(());
    }
    for _ in 0..ROUNDS {
        let tracer = Tracer::start("signals", method, &["--pid", &pid])?;
        forker.fork_now()?;
        let said = tracer.stop()?;
        expect_eq!(said.of("refusal").len(), 0, "refusals");
        expect_eq!(said.status, 0, "exit status");
        let totals = said.only("totals")?;
        expect_eq!(totals["forks"], Forker::FORKS, "forks");
        expect_eq!(totals["postmaster"]["kind"], "process", "kind");
        expect_eq!(said.only("end")?["accounted"], true, "accounted");
        if totals["restarted"].as_u64() > Some(0) {
            return Ok(());
        }
    }
    bail!("no signal came at the moment of a fork, in {ROUNDS} rounds")
}

/// The server restarts while it is watched.
fn restart(server: &mut Server, method: &str) -> Result<()> {
    let tracer = Tracer::start("restart", method, &[])?;
    let old = server.pid;
    server.restart()?;
    let new = server.pid;
    wait_for("the new postmaster is watched", || {
        tracer
            .lines()
            .iter()
            .any(|line| line["type"] == "postmaster" && line["postmaster"]["pid"] == new)
            .then_some(())
    })?;
    server.connect()?;
    let said = tracer.stop()?;
    let events: Vec<(&str, u64)> = said
        .of("postmaster")
        .into_iter()
        .filter_map(|line| Some((line["event"].as_str()?, line["postmaster"]["pid"].as_u64()?)))
        .collect();
    expect_eq!(
        events,
        [("gone", u64::from(old)), ("restarted", u64::from(new))],
        "events"
    );
    let forks = said
        .of("totals")
        .into_iter()
        // The new one may have the old one's pid.
        .rfind(|totals| totals["postmaster"]["pid"] == new)
        .and_then(|totals| totals["forks"].as_u64());
    ensure!(
        forks >= Some(1),
        "the new one's forks are counted: {forks:?}"
    );
    let connects: u64 = said
        .of("totals")
        .into_iter()
        .filter_map(|totals| totals["connections"]["connects"].as_u64())
        .sum();
    expect_eq!(connects, 1, "each connection counts for one of them");
    Ok(())
}

/// SIGKILL leaves nothing in the kernel, and the server goes on.
fn killed(server: &mut Server, method: &str) -> Result<()> {
    let before = hooked_functions()?;
    let tracer = Tracer::start("killed", method, &[])?;
    let during = hooked_functions()?;
    if !is_tracepoint(method) {
        ensure!(
            during > before,
            "hooks are not seen: {before} before, {during} while watching"
        );
    }
    // Dropping it is a SIGKILL.
    drop(tracer);
    wait_for("the kernel has taken the hooks down", || {
        (hooked_functions().ok()? == before).then_some(())
    })?;
    server.connect()
}

/// Kernel functions that are hooked by anybody, as the function tracer lists them.
fn hooked_functions() -> Result<usize> {
    let list = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .iter()
        .map(|tracing| Path::new(tracing).join("enabled_functions"))
        .find(|list| list.exists())
        .context("tracefs is not mounted")?;
    Ok(fs::read_to_string(list)?.lines().count())
}
