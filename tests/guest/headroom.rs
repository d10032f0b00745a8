//! `pgfork-trace check` predicts how many more backends fit under a limit; then connections are
//! opened to the first one that fails, and both numbers are compared.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    limits::{self, Cgroups, Restored, meminfo, number, set_sysctl},
    server::{PATIENCE, Server, wait_for},
};

/// Backends that run before the prediction, so that their cost can be measured.
const WARM: usize = 6;
/// Backends that the limits leave room for, about.
const ROOM: u64 = 12;
/// More connections than any scenario allows.
const MOST: u64 = 400;
/// A role without special rights.
const ROLE: &str = "app";

/// One limit that is brought close.
struct Scenario {
    /// Its name.
    name: &'static str,
    /// Id of the limit in the report.
    limit: &'static str,
    /// The prediction has to be exact; else within 10 % or 2 backends.
    exact: bool,
    /// This kernel and server have the limit.
    here: fn(&Server) -> bool,
    /// What the server is restarted with.
    settings: &'static [&'static str],
    /// Brings the limit close; what it returns lifts it again when dropped.
    close: fn(&Server) -> Result<Lifted>,
}

impl Scenario {
    /// Every task of the host counts.
    fn of_host(&self) -> bool {
        ["threads_max", "pid_max"].contains(&self.name)
    }
}

/// One whose prediction is of memory.
const fn memory(
    name: &'static str,
    limit: &'static str,
    close: fn(&Server) -> Result<Lifted>,
) -> Scenario {
    Scenario {
        name,
        limit,
        exact: false,
        here: |_| true,
        settings: &[],
        close,
    }
}

const ALL: &[Scenario] = &[
    Scenario {
        name: "max_connections",
        limit: "max_connections",
        exact: true,
        here: |_| true,
        settings: &[],
        close: |_| Ok(Lifted::default()),
    },
    Scenario {
        name: "pids_leaf",
        limit: "pids_cgroup_max",
        exact: true,
        here: |_| true,
        settings: &[],
        close: |server| pids(server, true),
    },
    Scenario {
        name: "pids_ancestor",
        limit: "pids_cgroup_max",
        exact: true,
        here: |_| true,
        settings: &[],
        close: |server| pids(server, false),
    },
    Scenario {
        name: "rlimit_nproc",
        limit: "rlimit_nproc",
        exact: true,
        here: |_| true,
        settings: &[],
        close: nproc,
    },
    Scenario {
        name: "threads_max",
        limit: "threads_max",
        exact: true,
        here: |_| true,
        settings: &[],
        close: threads_max,
    },
    Scenario {
        name: "pid_max",
        limit: "pid_space_exhausted",
        exact: true,
        here: |_| true,
        settings: &[],
        close: pid_max,
    },
    Scenario {
        name: "reserved_connections",
        limit: "max_connections",
        exact: true,
        here: |server| server.major_number() >= 16,
        settings: &[
            "alter system set reserved_connections = 7",
            "alter system set max_connections = 40",
        ],
        close: |_| Ok(Lifted::default()),
    },
    memory("commit_limit", "commit_limit", commit_limit),
    memory("memory_max", "memcg_oom_kill", |_| memory_max(false)),
    memory("memory_ancestor", "memcg_oom_kill", |_| memory_max(true)),
    memory("memory_no_victim", "memcg_no_victim", no_victim),
    Scenario {
        here: |_| memory_is_v1(),
        ..memory(
            "memory_oom_kill_off",
            "memcg_oom_kill_disabled",
            oom_kill_off,
        )
    },
    Scenario {
        // From 5.16 on such a limit has no effect.
        here: |_| memory_is_v1() && kernel_memory_has_a_limit(),
        ..memory("kernel_memory_v1", "memcg_kmem_limit_v1", kernel_memory)
    },
];

/// Runs the scenarios named, or all; how many predictions were wrong.
pub(crate) fn run(names: &[String]) -> Result<usize> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // Memory stays charged where it was used first: programs and files to the root by this start,
    // so that the server's cgroup does not spend its last room on reading them again; the
    // server's own memory to its cgroup by the next.
    let mut server = Server::start().context("cannot start PostgreSQL")?;
    restart(&mut server)?;
    server.query(&format!("create role {ROLE} login"))?;
    let chosen: Vec<&Scenario> = ALL
        .iter()
        .filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name))
        .filter(|scenario| (scenario.here)(&server))
        .collect();
    crate::plan(chosen.len());
    let mut failed = 0;
    for scenario in chosen {
        for setting in scenario.settings {
            server.query(setting)?;
        }
        if !scenario.settings.is_empty() {
            restart(&mut server)?;
        }
        let outcome = server.settle().and_then(|()| one(&server, scenario));
        let report = match &outcome {
            Ok(report) => report.clone(),
            Err(error) => format!("FAILED: {error:#}"),
        };
        println!(
            "headroom {:<22} {:<16} {report}",
            kernel.trim(),
            scenario.name
        );
        let right = outcome.is_ok() && !report.contains("FAILED");
        failed += usize::from(!right);
        println!(
            "test headroom_{} check ... {}",
            scenario.name,
            if right { "ok" } else { "FAILED" }
        );
        if !scenario.settings.is_empty() {
            server.query("alter system reset all")?;
        }
        if scenario.limit.starts_with("memcg") || !scenario.settings.is_empty() {
            // The OOM killer has ended something, and all backends go with it; or nothing may be
            // ended.
            restart(&mut server)?;
        }
    }
    Ok(failed)
}

/// In its memory cgroup.
fn restart(server: &mut Server) -> Result<()> {
    let members = memory_cgroup()?.join("cgroup.procs");
    // What met a limit in there may still ask for somebody to kill.
    server.end()?;
    wait_for("the server's cgroup is empty", || {
        fs::read_to_string(&members).ok()?.is_empty().then_some(())
    })?;
    fs::write(&members, "0")?;
    let restarted = server.start_again();
    let _ = fs::write(root_of("memory").join("cgroup.procs"), "0");
    restarted
}

/// Prediction against reality. Where every task of the host counts it says something only while
/// none comes or goes, such as threads of the kernel: it is made again then.
fn one(server: &Server, scenario: &Scenario) -> Result<String> {
    const TRIES: usize = 5;
    if !scenario.of_host() {
        return once(server, scenario);
    }
    for _ in 0..TRIES {
        let (others, report) = (of_others(server)?, once(server, scenario)?);
        server.settle()?;
        if others == of_others(server)? {
            return Ok(report);
        }
        println!(
            "headroom {}: tasks of others came or went: {report}",
            scenario.name
        );
    }
    bail!("tasks of others came or went each time");
}

/// Tasks that are neither the server's nor this program's.
fn of_others(server: &Server) -> Result<Vec<String>> {
    let own = server.processes();
    let is_own = |pid: u32| own.contains(&pid) || pid == std::process::id();
    let mut others: Vec<String> = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.parse().is_ok_and(|pid| !is_own(pid)))
        .collect();
    others.sort_unstable();
    Ok(others)
}

fn once(server: &Server, scenario: &Scenario) -> Result<String> {
    let mut sessions = Vec::new();
    for _ in 0..WARM {
        sessions.push(Session::open().context("before any limit is close")?);
    }
    let lifted = (scenario.close)(server)?;
    let before = out_of_memory();
    let (predicted, first) = predict(scenario.limit)?;
    let mut real = 0;
    let why = loop {
        ensure!(real < MOST, "{MOST} connections and none refused");
        match Session::open_unless(|| out_of_memory() != before) {
            Ok(_) if out_of_memory() != before => break "out of memory".to_owned(),
            Ok(session) => sessions.push(session),
            Err(error) => break format!("{error:#}"),
        }
        real += 1;
    };
    drop(lifted);
    let off = predicted.abs_diff(real);
    let right = off == 0 || !scenario.exact && (off <= 2 || off * 10 <= real);
    Ok(format!(
        "predicted {predicted:>3}, real {real:>3} {} ({why}){}",
        if right { "ok" } else { "FAILED" },
        if first == scenario.limit {
            String::new()
        } else {
            format!(" FAILED: check says that {first} comes first")
        }
    ))
}

/// What `check` says: more backends under this limit, and which limit comes first.
fn predict(limit: &str) -> Result<(u64, String)> {
    let output = Command::new("pgfork-trace")
        .args(["check", "--json"])
        .output()?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "check said {:?}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })?;
    fs::write(format!("/out/check-{limit}.json"), &output.stdout)?;
    if let Ok(stat) = fs::read(memory_cgroup()?.join("memory.stat")) {
        fs::write(format!("/out/memory.stat-{limit}"), stat)?;
    }
    let server = &report["servers"][0];
    let rows = server["limits"].as_array().context("no limits")?;
    let fewest = rows
        .iter()
        .filter(|row| row["limit"] == limit)
        .filter_map(|row| row["backends"].as_u64())
        .min()
        .with_context(|| format!("no number of backends for {limit}: {rows:#?}"))?;
    let close = fewest <= 20;
    ensure!(
        !close || output.status.code() == Some(1),
        "{} though {limit} is close",
        output.status
    );
    let first = server["first"].as_u64().context("nothing comes first")?;
    let first = usize::try_from(first)?;
    Ok((
        fewest,
        rows[first]["limit"].as_str().unwrap_or_default().to_owned(),
    ))
}

/// A connection that is held open; nothing is forked for it on this side.
struct Session(#[expect(dead_code, reason = "held open")] UnixStream);

impl Session {
    /// Connects and waits until the server is ready for a query, or says why not.
    fn open() -> Result<Self> {
        Self::open_unless(|| false)
    }

    /// The same, until `stop`: where nothing may be killed, a server without memory waits for ever.
    fn open_unless(stop: impl Fn() -> bool) -> Result<Self> {
        let mut stream = UnixStream::connect("/var/run/postgresql/.s.PGSQL.5432")?;
        // To be interrupted by `stop`.
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let started = Instant::now();
        let mut packet = vec![0, 3, 0, 0];
        for word in ["user", ROLE, "database", "postgres", ""] {
            packet.extend(word.bytes());
            packet.push(0);
        }
        let length = u32::try_from(packet.len() + 4)?;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&packet)?;
        loop {
            let mut kind = [0];
            while let Err(error) = stream.read_exact(&mut kind) {
                let waits = error.kind() == ErrorKind::WouldBlock && started.elapsed() < PATIENCE;
                ensure!(!stop(), "out of memory");
                ensure!(waits, "no answer: {error}");
            }
            // What has begun comes to its end.
            stream.set_read_timeout(Some(PATIENCE))?;
            if kind == *b"E" {
                let mut text = [0; 300];
                let length = stream.read(&mut text)?;
                let text: String = String::from_utf8_lossy(&text[..length])
                    .chars()
                    .map(|c| if c.is_ascii_graphic() { c } else { ' ' })
                    .collect();
                bail!("{}", text.trim());
            }
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let rest = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
            std::io::copy(&mut (&stream).take(rest), &mut std::io::sink())?;
            if kind == *b"Z" {
                return Ok(Self(stream));
            }
            stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        }
    }
}

/// Lifts limits when dropped.
#[derive(Default)]
struct Lifted {
    actions: Vec<Box<dyn FnMut()>>,
    settings: Vec<Restored>,
}

impl Lifted {
    fn by(action: impl FnMut() + 'static) -> Self {
        Self {
            actions: vec![Box::new(action)],
            settings: Vec::new(),
        }
    }

    fn restoring(names: &[&'static str]) -> Result<Self> {
        let settings = names.iter().map(|name| Restored::remember(name));
        Ok(Self {
            actions: Vec::new(),
            settings: settings.collect::<Result<_>>()?,
        })
    }
}

impl Drop for Lifted {
    fn drop(&mut self) {
        self.settings.clear();
        for action in &mut self.actions {
            action();
        }
    }
}

fn pids(server: &Server, leaf: bool) -> Result<Lifted> {
    let cgroups = Cgroups::make()?;
    // On v2 the controllers share one tree: the server's memory is charged elsewhere meanwhile.
    let before = server_cgroup(server.pid)?;
    server.enter(&cgroups.inner)?;
    let limited = if leaf { &cgroups.inner } else { &cgroups.outer };
    let tasks = number(limited.join("pids.current"))?;
    fs::write(limited.join("pids.max"), (tasks + ROOM).to_string())?;
    let processes = server.processes();
    Ok(Lifted::by(move || {
        let _ = cgroups.open();
        for pid in &processes {
            let _ = fs::write(before.join("cgroup.procs"), pid.to_string());
        }
    }))
}

fn server_cgroup(pid: u32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let line = text
        .lines()
        .find(|line| line.contains(":pids:"))
        .or_else(|| text.lines().find(|line| line.starts_with("0::")))
        .context("no cgroup")?;
    let path = line.splitn(3, ':').nth(2).unwrap_or("/");
    Ok(root_of("pids").join(path.trim_start_matches('/')))
}

fn nproc(server: &Server) -> Result<Lifted> {
    let (_, tasks) = limits::tasks_of_user_of(server.pid)?;
    limits::set_nproc(server.pid, tasks + ROOM)?;
    let pid = server.pid;
    Ok(Lifted::by(move || {
        let _ = limits::set_nproc(pid, libc::RLIM_INFINITY);
    }))
}

fn threads_max(_: &Server) -> Result<Lifted> {
    let lifted = Lifted::restoring(&["kernel/threads-max"])?;
    let loadavg = fs::read_to_string("/proc/loadavg")?;
    let tasks: u64 = loadavg
        .split_ascii_whitespace()
        .nth(3)
        .and_then(|field| field.split_once('/')?.1.parse().ok())
        .context("/proc/loadavg")?;
    set_sysctl("kernel/threads-max", tasks + ROOM)?;
    Ok(lifted)
}

/// The lowest pid_max that leaves room: numbers that are taken lie above 300 and below it.
fn pid_max(_: &Server) -> Result<Lifted> {
    let lifted = Lifted::restoring(&["kernel/pid_max"])?;
    // A young guest still gives out numbers below 300, which are given out once only.
    while Command::new("true").spawn()?.wait().map(|_| last_pid())?? < 320 {}
    let mut taken: Vec<u64> = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid >= 300)
        .collect();
    taken.sort_unstable();
    let mut max = 301;
    while max - 300 - taken.iter().filter(|pid| **pid < max).count() as u64 <= ROOM {
        max += 1;
    }
    set_sysctl("kernel/pid_max", max)?;
    Ok(lifted)
}

/// The number given out last.
fn last_pid() -> Result<u64> {
    let loadavg = fs::read_to_string("/proc/loadavg")?;
    let last = loadavg.split_ascii_whitespace().nth(4);
    last.context("/proc/loadavg")?.parse().context("last pid")
}

fn commit_limit(server: &Server) -> Result<Lifted> {
    const BACKEND: u64 = 4 << 20;
    let lifted = Lifted::restoring(&["vm/overcommit_memory", "vm/overcommit_kbytes"])?;
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid))?;
    let size = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))
        .context("VmSize")?;
    let size: u64 = size.trim().trim_end_matches(" kB").parse()?;
    let reserves = limits::sysctl("vm/admin_reserve_kbytes")?
        + limits::sysctl("vm/user_reserve_kbytes")?.min(size / 32);
    let room = (meminfo("Committed_AS")? + ROOM * BACKEND) / 1024;
    set_sysctl("vm/overcommit_kbytes", room + reserves)?;
    set_sysctl("vm/overcommit_memory", 2)?;
    Ok(lifted)
}

fn root_of(controller: &str) -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup").join(controller);
    if v1.join("cgroup.procs").exists() {
        v1
    } else {
        PathBuf::from("/sys/fs/cgroup")
    }
}

/// An outer cgroup, and one in it that the server is in.
fn memory_cgroups() -> Result<[PathBuf; 2]> {
    let outer = root_of("memory").join("pgmemory");
    let inner = outer.join("server");
    fs::create_dir_all(&outer)?;
    if outer.join("cgroup.subtree_control").exists() {
        fs::write(outer.join("cgroup.subtree_control"), "+memory")?;
    }
    // v1 before 5.11: else a parent does not count what is below it.
    if !inner.exists() && outer.join("memory.use_hierarchy").exists() {
        fs::write(outer.join("memory.use_hierarchy"), "1")?;
    }
    fs::create_dir_all(&inner)?;
    Ok([outer, inner])
}

fn memory_cgroup() -> Result<PathBuf> {
    let [_, inner] = memory_cgroups()?;
    Ok(inner)
}

fn memory_is_v1() -> bool {
    root_of("memory").ends_with("memory")
}

fn kernel_memory_has_a_limit() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|it| it.starts_with("5.10."))
}

/// Leaves room for about so much above what is in use.
fn limit(cgroup: &Path, v1: &str, v2: &str, room: u64) -> Result<Lifted> {
    let [max, current, none] = if memory_is_v1() {
        [
            format!("{v1}.limit_in_bytes"),
            format!("{v1}.usage_in_bytes"),
            "-1".to_owned(),
        ]
    } else {
        [
            format!("{v2}.max"),
            format!("{v2}.current"),
            "max".to_owned(),
        ]
    };
    let (max, current) = (cgroup.join(max), cgroup.join(current));
    wait_for("a limit is accepted", || {
        let used = number(&current).ok()?;
        fs::write(&max, (used + room).to_string()).ok()
    })?;
    Ok(Lifted::by(move || {
        let _ = fs::write(&max, &none);
    }))
}

/// Memory of a backend, about.
const BACKEND: u64 = 2 << 20;

fn memory_max(ancestor: bool) -> Result<Lifted> {
    let [outer, inner] = memory_cgroups()?;
    let limited = if ancestor { outer } else { inner };
    limit(&limited, "memory", "memory", ROOM * BACKEND)
}

/// Nothing of the server may be killed; its children inherit that.
fn no_victim(server: &Server) -> Result<Lifted> {
    for pid in server.processes() {
        // A process may just have ended; the postmaster has not.
        let protected = fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000");
        if pid == server.pid {
            protected.context("the postmaster cannot be protected")?;
        }
    }
    limit(&memory_cgroup()?, "memory", "memory", ROOM * BACKEND)
}

fn oom_kill_off(_: &Server) -> Result<Lifted> {
    let cgroup = memory_cgroup()?;
    let switch = cgroup.join("memory.oom_control");
    fs::write(&switch, "1").context("memory.oom_control")?;
    let mut lifted = limit(&cgroup, "memory", "memory", ROOM * BACKEND)?;
    lifted.actions.push(Box::new(move || {
        let _ = fs::write(&switch, "0");
    }));
    Ok(lifted)
}

fn kernel_memory(_: &Server) -> Result<Lifted> {
    const TASK: u64 = 256 << 10;
    limit(&memory_cgroup()?, "memory.kmem", "memory", ROOM * TASK)
}

/// What the OOM killer has ended in the server's cgroup, and how often it or nobody could; or that
/// tasks of it wait now (v1).
fn out_of_memory() -> Vec<String> {
    let Ok(cgroup) = memory_cgroup() else {
        return Vec::new();
    };
    let text = ["memory.events", "memory.oom_control"]
        .iter()
        .find_map(|file| fs::read_to_string(cgroup.join(file)).ok())
        .unwrap_or_default();
    text.lines()
        .filter(|line| {
            ["oom_kill ", "oom ", "under_oom "]
                .iter()
                .any(|key| line.starts_with(key))
        })
        .map(str::to_owned)
        .collect()
}
