//! `pgfork-trace` as it is measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Target;
use crate::server::wait_for;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A running tool; killed when dropped.
pub(super) struct Tool {
    child: Child,
    json: PathBuf,
}

/// Memory of the tool, in bytes.
pub(super) struct Memory {
    /// Most that was ever resident.
    pub(super) peak_resident: u64,
    /// Private writable memory, which counts towards the commit limit.
    pub(super) private: u64,
}

impl Tool {
    /// Starts it and waits until it watches the target.
    pub(super) fn start(
        program: &Path,
        directory: &Path,
        purpose: &str,
        method: &str,
        target: &Target,
    ) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let json = directory.join(format!("{number:03}-{purpose}-{method}.json"));
        let log = directory.join("tool.txt");
        let output = fs::File::create(&log)?;
        let child = Command::new(program)
            .args(["--method", method, "--pid", &target.pid.to_string(), "-o"])
            .arg(&json)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut tool = Self { child, json };
        wait_for("pgfork-trace watches", || {
            let ended = tool.child.try_wait().ok().flatten().is_some();
            (ended || tool.start_line().is_ok()).then_some(())
        })?;
        ensure!(
            tool.child.try_wait()?.is_none(),
            "pgfork-trace ended at once: {}",
            fs::read_to_string(&log).unwrap_or_default()
        );
        Ok(tool)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The `start` line.
    pub(super) fn start_line(&self) -> Result<Value> {
        lines(&self.json)
            .into_iter()
            .find(|line| line["type"] == "start")
            .context("no start line")
    }

    /// What it uses now.
    pub(super) fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let field = |key: &str| -> Result<u64> {
            let kib: u64 = status
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
                .and_then(|value| value.trim().strip_suffix(" kB"))
                .with_context(|| format!("no {key}"))?
                .parse()?;
            Ok(kib * 1024)
        };
        Ok(Memory {
            peak_resident: field("VmHWM")?,
            private: field("VmData")? + field("VmStk")?,
        })
    }

    /// Ends it as Ctrl-C does; returns all it said, and how long the end took.
    pub(super) fn stop(mut self) -> Result<(Vec<Value>, Duration)> {
        let asked = Instant::now();
        let pid = i32::try_from(self.pid())?;
        // SAFETY: sends a signal to a child that has not been waited for.
        let sent = unsafe { libc::kill(pid, libc::SIGINT) };
        ensure!(sent == 0, "pgfork-trace is gone");
        // Not by polling: the time is a figure.
        let status = self.child.wait()?;
        let took = asked.elapsed();
        ensure!(status.success(), "pgfork-trace ended with {status}");
        Ok((lines(&self.json), took))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}
