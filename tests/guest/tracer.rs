//! `pgfork-trace` as a user runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::server::wait_for;

const OUT: &str = "/out";
/// Stands for the tracepoint method with `--syscalls`.
pub(crate) const SYSCALLS: &str = "syscalls";
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A running tracer.
pub(crate) struct Tracer {
    child: Child,
    json: PathBuf,
    text: PathBuf,
    syscalls: bool,
}

/// The options for a method; `syscalls` is the tracepoint method with that option.
pub(crate) fn options(method: &str) -> Vec<&str> {
    match method {
        SYSCALLS => vec!["--method", "tracepoint", "--syscalls"],
        method => vec!["--method", method],
    }
}

/// Whether a method hooks nothing in the kernel's fork path.
pub(crate) fn is_tracepoint(method: &str) -> bool {
    ["tracepoint", SYSCALLS].contains(&method)
}

/// What it said.
pub(crate) struct Said {
    /// Exit status.
    pub(crate) status: i32,
    /// JSON lines.
    pub(crate) lines: Vec<Value>,
    /// Text.
    pub(crate) text: String,
    syscalls: bool,
}

impl Tracer {
    /// Starts it and waits until it watches.
    pub(crate) fn start(scenario: &str, method: &str, arguments: &[&str]) -> Result<Self> {
        Self::launch(scenario, method, arguments, &[], None, None)
    }

    /// The same with these variables in its environment.
    pub(crate) fn start_with(
        scenario: &str,
        method: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        Self::launch(scenario, method, arguments, environment, None, None)
    }

    /// The same with another description of the kernel's types.
    pub(crate) fn start_with_btf(scenario: &str, method: &str, btf: &Path) -> Result<Self> {
        Self::launch(scenario, method, &[], &[], None, Some(btf))
    }

    /// The same in a cgroup.
    pub(crate) fn start_in(scenario: &str, method: &str, cgroup: &Path) -> Result<Self> {
        let path = cgroup.to_str().context("the path of a cgroup")?;
        let enter = ["echo $$ > \"$1/cgroup.procs\"", path];
        Self::launch(scenario, method, &[], &[], Some(enter), None)
    }

    /// The same with that much private memory and no more.
    pub(crate) fn start_within(scenario: &str, method: &str, kib: u64) -> Result<Self> {
        let limit = ["ulimit -d \"$1\"", &kib.to_string()];
        Self::launch(scenario, method, &[], &[], Some(limit), None)
    }

    fn launch(
        scenario: &str,
        method: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        first: Option<[&str; 2]>,
        btf: Option<&Path>,
    ) -> Result<Self> {
        const PROGRAM: &str = "/usr/local/bin/pgfork-trace";
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = format!("{OUT}/{number:02}-{scenario}-{method}");
        let (json, text) = (
            PathBuf::from(format!("{base}.json")),
            PathBuf::from(format!("{base}.txt")),
        );
        let output = fs::File::create(&text)?;
        let mut command = match first {
            None => Command::new(PROGRAM),
            Some([step, argument]) => {
                // The shell takes this step and becomes the program.
                let mut shell = Command::new("sh");
                let script = format!("{step} && shift && exec \"$@\"");
                shell.args(["-c", &script, "sh", argument, PROGRAM]);
                shell
            }
        };
        if let Some(btf) = btf {
            command.env("PGFORK_TRACE_BTF", btf);
        }
        let child = command
            .args(options(method))
            .args(["--for", "1500s", "-o"])
            .arg(&json)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start pgfork-trace")?;
        let syscalls = method == SYSCALLS;
        let mut tracer = Self {
            child,
            json,
            text,
            syscalls,
        };
        wait_for("pgfork-trace watches", || {
            let ended = tracer.child.try_wait().ok().flatten().is_some();
            (ended || tracer.lines().iter().any(|line| line["type"] == "start")).then_some(())
        })?;
        ensure!(
            tracer.child.try_wait()?.is_none(),
            "pgfork-trace ended at once: {}",
            fs::read_to_string(&tracer.text).unwrap_or_default()
        );
        Ok(tracer)
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lines written so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        fs::read_to_string(&self.json)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Refusals reported so far.
    pub(crate) fn refusals(&self) -> usize {
        self.lines()
            .iter()
            .filter(|line| line["type"] == "refusal")
            .count()
    }

    /// Whether it has given this notice.
    pub(crate) fn noticed(&self, code: &str) -> Option<()> {
        let lines = self.lines();
        let mut notices = lines.iter().filter(|line| line["type"] == "notice");
        notices.any(|line| line["code"] == code).then_some(())
    }

    /// Waits until what refuses in strict overcommit is hooked, as it is once that is in force.
    pub(crate) fn watches_strict(&self, method: &str) -> Result<()> {
        if is_tracepoint(method) {
            return Ok(());
        }
        wait_for("strict overcommit is watched", || {
            self.noticed("strict_watched")
        })
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: sends a signal to a child that has not been waited for.
        let sent = unsafe { libc::kill(pid, signal) };
        ensure!(sent == 0, "pgfork-trace is gone");
        Ok(())
    }

    /// Ends it as Ctrl-C does, and collects what it said.
    pub(crate) fn stop(mut self) -> Result<Said> {
        self.signal(libc::SIGINT)?;
        let status = wait_for("pgfork-trace ends", || self.child.try_wait().ok().flatten())?;
        Ok(Said {
            status: status.code().unwrap_or(-1),
            lines: self.lines(),
            text: fs::read_to_string(&self.text)?,
            syscalls: self.syscalls,
        })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Said {
    /// All lines of one type.
    pub(crate) fn of(&self, kind: &str) -> Vec<&Value> {
        self.lines
            .iter()
            .filter(|line| line["type"] == kind)
            .collect()
    }

    /// The method that was in use.
    pub(crate) fn method(&self) -> &str {
        if self.syscalls {
            return SYSCALLS;
        }
        self.of("start")
            .first()
            .and_then(|start| start["method"].as_str())
            .unwrap_or("?")
    }

    /// The only line of one type.
    pub(crate) fn only(&self, kind: &str) -> Result<&Value> {
        let lines = self.of(kind);
        ensure!(
            lines.len() == 1,
            "{} lines of type {kind}, not 1: {:#?}",
            lines.len(),
            lines
        );
        Ok(lines[0])
    }
}
