//! `pgfork-trace check` predicts how many more backends fit under a limit; then connections are
//! opened to the first one that fails, and both numbers are compared.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
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
    /// Brings the limit close; what it returns lifts it again when dropped.
    close: fn(&Server) -> Result<Lifted>,
}

const ALL: &[Scenario] = &[
    Scenario {
        name: "max_connections",
        limit: "max_connections",
        exact: true,
        close: |_| Ok(Lifted::default()),
    },
    Scenario {
        name: "pids_leaf",
        limit: "pids_cgroup_max",
        exact: true,
        close: |server| pids(server, true),
    },
    Scenario {
        name: "pids_ancestor",
        limit: "pids_cgroup_max",
        exact: true,
        close: |server| pids(server, false),
    },
    Scenario {
        name: "rlimit_nproc",
        limit: "rlimit_nproc",
        exact: true,
        close: nproc,
    },
    Scenario {
        name: "threads_max",
        limit: "threads_max",
        exact: true,
        close: threads_max,
    },
    Scenario {
        name: "pid_max",
        limit: "pid_space_exhausted",
        exact: true,
        close: pid_max,
    },
    Scenario {
        name: "commit_limit",
        limit: "commit_limit",
        exact: false,
        close: commit_limit,
    },
    Scenario {
        name: "memory_max",
        limit: "memcg_oom_kill",
        exact: false,
        close: memory_max,
    },
];

/// Runs the scenarios named, or all; how many predictions were wrong.
pub(crate) fn run(names: &[String]) -> Result<usize> {
    let chosen: Vec<&Scenario> = ALL
        .iter()
        .filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name))
        .collect();
    crate::plan(chosen.len());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let memory = memory_cgroup()?;
    // Memory stays charged where it was used first: programs and files to the root by this start,
    // so that the server's cgroup does not spend its last room on reading them again; the
    // server's own memory to its cgroup by the next.
    let mut server = Server::start().context("cannot start PostgreSQL")?;
    fs::write(memory.join("cgroup.procs"), "0")?;
    server.restart()?;
    let _ = fs::write(root_of("memory").join("cgroup.procs"), "0");
    server.query(&format!("create role {ROLE} login"))?;
    let mut failed = 0;
    for scenario in chosen {
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
        if scenario.limit == "memcg_oom_kill" {
            // The OOM killer has ended something: all backends go with it.
            let _ = server.restart();
        }
    }
    Ok(failed)
}

fn one(server: &Server, scenario: &Scenario) -> Result<String> {
    let mut sessions = Vec::new();
    for _ in 0..WARM {
        sessions.push(Session::open().context("before any limit is close")?);
    }
    let lifted = (scenario.close)(server)?;
    let killed = oom_kills();
    let (predicted, first) = predict(scenario.limit)?;
    let mut real = 0;
    let why = loop {
        ensure!(real < MOST, "{MOST} connections and none refused");
        match Session::open() {
            Ok(_) if oom_kills() > killed => break "a process was killed".to_owned(),
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
        let mut stream = UnixStream::connect("/var/run/postgresql/.s.PGSQL.5432")?;
        stream.set_read_timeout(Some(PATIENCE))?;
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
            stream.read_exact(&mut kind).context("no answer")?;
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

fn memory_cgroup() -> Result<PathBuf> {
    let cgroup = root_of("memory").join("pgmemory");
    fs::create_dir_all(&cgroup)?;
    Ok(cgroup)
}

fn memory_files() -> Result<(PathBuf, PathBuf)> {
    let cgroup = memory_cgroup()?;
    let [max, current] = if cgroup.join("memory.max").exists() {
        ["memory.max", "memory.current"]
    } else {
        ["memory.limit_in_bytes", "memory.usage_in_bytes"]
    };
    Ok((cgroup.join(max), cgroup.join(current)))
}

fn memory_max(_: &Server) -> Result<Lifted> {
    const BACKEND: u64 = 2 << 20;
    let (max, current) = memory_files()?;
    wait_for("a limit is accepted", || {
        let used = number(&current).ok()?;
        fs::write(&max, (used + ROOM * BACKEND).to_string()).ok()
    })?;
    let v2 = max.ends_with("memory.max");
    Ok(Lifted::by(move || {
        let _ = fs::write(&max, if v2 { "max" } else { "-1" });
    }))
}

/// Times that the OOM killer has ended a process in the server's memory cgroup.
fn oom_kills() -> u64 {
    let Ok(cgroup) = memory_cgroup() else {
        return 0;
    };
    let text = ["memory.events", "memory.oom_control"]
        .iter()
        .find_map(|file| fs::read_to_string(cgroup.join(file)).ok())
        .unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}
