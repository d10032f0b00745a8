//! Guests: a Debian kernel, a root filesystem with a real PostgreSQL, one command.

mod archive;
pub(crate) mod cli;
mod guest;
mod kernel;
mod machine;
mod qemu;
mod rootfs;
mod series;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

pub(crate) use guest::CopyIn;
pub(crate) use kernel::Kernel;
pub(crate) use rootfs::Postgres;
pub(crate) use series::Series;

use crate::cache;
use crate::progress::say;
use crate::setup::{self, Need};

/// The cgroup hierarchy of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cgroup {
    /// One hierarchy per controller, as far as the kernel still offers them.
    V1,
    /// The unified hierarchy, with memory and pids enabled below the root.
    V2,
}

/// The first process of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Init {
    /// A script: mounts, loopback, command. The command runs in the root cgroup.
    Plain,
    /// The distribution's systemd; the command runs as a service.
    Systemd,
}

/// What a guest's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Clock {
    /// That of the host: two processors, as fast as they are emulated.
    Host,
    /// Instructions, of 4 ns each on one processor: whatever else the host does, the same work
    /// takes the same time. Caches and pipelines do not count.
    Instructions,
}

/// What to run, and where.
#[derive(Clone, Debug)]
pub(crate) struct VmSpec {
    /// The kernel.
    pub(crate) kernel: Series,
    /// The PostgreSQL of the root filesystem; its cluster `main` exists and is not started.
    pub(crate) postgres: Postgres,
    /// The cgroup hierarchy.
    pub(crate) cgroup: Cgroup,
    /// The first process.
    pub(crate) init: Init,
    /// Its time.
    pub(crate) clock: Clock,
    /// Memory of the guest.
    pub(crate) memory_mib: u32,
    /// More words for the kernel's command line.
    pub(crate) kernel_arguments: Vec<String>,
    /// Files to copy into the guest.
    pub(crate) copy: Vec<CopyIn>,
    /// Receives what the command leaves in `/out`.
    pub(crate) out: Option<PathBuf>,
    /// Receives the kernel's console.
    pub(crate) keep_console: Option<PathBuf>,
    /// Limit for the whole run.
    pub(crate) timeout: Duration,
    /// Whether the command's output also appears on the task's own.
    pub(crate) live: bool,
    /// Whether to get kernel and root filesystem anew.
    pub(crate) refresh: bool,
    /// The command, run as root in `/root`, with `PG_MAJOR` set and the server's programs on the
    /// path.
    pub(crate) command: Vec<String>,
}

impl VmSpec {
    /// A guest with unified cgroups, plain init and 2 GiB, whose output is only captured.
    pub(crate) fn new<S: Into<String>>(
        kernel: Series,
        postgres: Postgres,
        command: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            kernel,
            postgres,
            cgroup: Cgroup::V2,
            init: Init::Plain,
            clock: Clock::Host,
            memory_mib: 2048,
            kernel_arguments: Vec::new(),
            copy: Vec::new(),
            out: None,
            keep_console: None,
            timeout: Duration::from_secs(300),
            live: false,
            refresh: false,
            command: command.into_iter().map(Into::into).collect(),
        }
    }
}

/// A command that has ended in a guest.
#[derive(Clone, Debug)]
#[allow(
    dead_code,
    reason = "tasks that judge what a command printed read it here"
)]
pub(crate) struct VmOutcome {
    /// Its exit status (128 + N: ended by signal N).
    pub(crate) status: u8,
    /// Its standard output.
    pub(crate) stdout: Vec<u8>,
    /// Its standard error.
    pub(crate) stderr: Vec<u8>,
    /// The kernel it really ran on.
    pub(crate) kernel: Kernel,
    /// From power on to the start of the command.
    pub(crate) boot: Duration,
    /// From power on until everything had arrived.
    pub(crate) total: Duration,
}

/// Runs a command in a new guest. An error means that the guest failed, not the command.
pub(crate) fn run(spec: &VmSpec) -> Result<VmOutcome> {
    if spec.init == Init::Systemd && spec.cgroup == Cgroup::V1 && spec.postgres == Postgres::V18 {
        bail!("the systemd beside PostgreSQL 18 no longer supports cgroup v1: use --init plain");
    }
    setup::ensure(&[Need::Vm])?;
    let kernel = Kernel::get(spec.kernel, spec.refresh)?;
    let root = rootfs::get(spec.postgres, spec.refresh)?;
    let dir = tempfile::Builder::new()
        .prefix("pgfork-vm-")
        .tempdir()
        .context("cannot create a temporary directory")?;
    let files = machine::Files {
        kernel: kernel.image(),
        initrd: dir.path().join("initrd"),
        root,
        job: dir.path().join("job.tar"),
        console: dir.path().join("console"),
        dir: dir.path().to_owned(),
    };
    let token = guest::new_token(dir.path());
    guest::write_initrd(&kernel.initrd(), &files.initrd)?;
    guest::write_job(spec, &token, &files.job)?;
    let start = Instant::now();
    let result = qemu::run(spec, &files, &token);
    if let Some(path) = &spec.keep_console {
        fs::copy(&files.console, path)
            .with_context(|| format!("cannot write the console to {}", path.display()))?;
    }
    let outcome = result.with_context(|| {
        format!(
            "kernel {} with PostgreSQL {}",
            kernel.release,
            spec.postgres.major()
        )
    })?;
    if let Some(out) = &spec.out {
        unpack(&outcome, out)?;
    }
    Ok(VmOutcome {
        status: outcome.status,
        stdout: outcome.stdout,
        stderr: outcome.stderr,
        kernel,
        boot: outcome.boot,
        total: start.elapsed(),
    })
}

/// Puts every kernel and every root filesystem into the cache.
pub(crate) fn prepare(refresh: bool) -> Result<()> {
    setup::ensure(&[Need::Vm])?;
    for series in Series::value_variants() {
        let kernel = Kernel::get(*series, refresh)?;
        say(format_args!(
            "kernel {}: {} from {}",
            series.name(),
            kernel.version,
            kernel.suite
        ));
    }
    for postgres in Postgres::value_variants() {
        let path = rootfs::get(*postgres, refresh)?;
        say(format_args!(
            "PostgreSQL {}: {}",
            postgres.major(),
            path.display()
        ));
    }
    Ok(())
}

fn unpack(outcome: &qemu::Outcome, out: &Path) -> Result<()> {
    cache::create_dir(out)?;
    tar::Archive::new(&outcome.files[..])
        .unpack(out)
        .with_context(|| format!("cannot unpack the guest's /out into {}", out.display()))?;
    if !outcome.files_complete {
        say(format_args!(
            "WARNING: the guest could not send everything in its /out"
        ));
    }
    Ok(())
}
