//! Guests for the scenarios of `tests/`: which kernels, servers and cgroups, and how they went.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{
    dist,
    process::{check_interrupt, run},
    progress::say,
    vm::{self, Cgroup, CopyIn, Init, Postgres, Series, VmSpec},
};

const METHODS: &str = "fexit,kprobe,tracepoint";
/// Instead of methods: what `check` predicts against what then happens.
const HEADROOM: &str = "headroom";
/// Guests at a time: each needs a core and 2 GiB.
const AT_ONCE: usize = 2;

/// One guest.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    kernel: Series,
    postgres: Postgres,
    cgroup: Cgroup,
    init: Init,
    methods: &'static str,
    scenarios: &'static [&'static str],
}

const fn job(kernel: Series, postgres: Postgres, methods: &'static str) -> Job {
    Job {
        kernel,
        postgres,
        cgroup: Cgroup::V2,
        init: Init::Plain,
        methods,
        scenarios: &[],
    }
}

const V1: &[&str] = &["control", "pids_leaf", "pids_ancestor", "rlimit_nproc"];

/// The whole matrix: every kernel by every method, every server version, cgroup v1, systemd,
/// and the predictions of `check`.
pub(crate) const MATRIX: &[Job] = &[
    job(Series::V5_10, Postgres::V15, METHODS),
    job(Series::V6_1, Postgres::V15, METHODS),
    job(Series::V6_12, Postgres::V15, METHODS),
    job(Series::V6_18, Postgres::V15, METHODS),
    job(Series::V7_2, Postgres::V15, METHODS),
    job(Series::V5_10, Postgres::V13, HEADROOM),
    job(Series::V6_1, Postgres::V15, HEADROOM),
    job(Series::V6_12, Postgres::V17, HEADROOM),
    job(Series::V6_18, Postgres::V15, HEADROOM),
    job(Series::V7_2, Postgres::V18, HEADROOM),
    job(Series::V5_10, Postgres::V13, "auto"),
    job(Series::V6_12, Postgres::V17, "auto"),
    job(Series::V7_2, Postgres::V18, "auto,tracepoint"),
    Job {
        cgroup: Cgroup::V1,
        scenarios: V1,
        ..job(Series::V5_10, Postgres::V13, METHODS)
    },
    Job {
        cgroup: Cgroup::V1,
        scenarios: V1,
        ..job(Series::V6_1, Postgres::V15, "auto")
    },
    Job {
        init: Init::Systemd,
        scenarios: &["tasks_max"],
        ..job(Series::V6_1, Postgres::V15, METHODS)
    },
    Job {
        init: Init::Systemd,
        scenarios: &["tasks_max"],
        ..job(Series::V7_2, Postgres::V18, "auto")
    },
];

/// One kernel, every method.
pub(crate) const QUICK: &[Job] = &[job(Series::V6_1, Postgres::V15, METHODS)];

impl Job {
    fn name(&self) -> String {
        let cgroup = match self.cgroup {
            Cgroup::V1 => " cgroup v1",
            Cgroup::V2 => "",
        };
        let init = match self.init {
            Init::Plain => "",
            Init::Systemd => " systemd",
        };
        let what = if self.methods == HEADROOM {
            " headroom"
        } else {
            ""
        };
        format!(
            "kernel {} PostgreSQL {}{cgroup}{init}{what}",
            self.kernel.name(),
            self.postgres.major()
        )
    }
}

/// Numbers of tests, and what went wrong.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Passed and all, by guest and scenario.
    table: BTreeMap<(String, String), Vec<(String, bool)>>,
}

/// Builds the program that runs inside the guests.
pub(crate) fn build_guest() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let directory = dist::workspace().join("target/guest");
    run(Command::new("cargo")
        .current_dir(dist::workspace())
        .args([
            "build",
            "--quiet",
            "--locked",
            "-p",
            "pgfork-trace-tests",
            "--bin",
            "pgfork-trace-guest",
        ])
        .args(["--target", &target, "--target-dir"])
        .arg(&directory)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        ))?;
    Ok(directory.join(target).join("debug/pgfork-trace-guest"))
}

/// Runs all jobs, some at a time; what each said is printed whole when it has ended.
pub(crate) fn run_all(jobs: &[Job], product: &Path, guest: &Path, out: &Path) -> Result<Tally> {
    let queue = Mutex::new(jobs.iter());
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE.min(jobs.len()))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let next = queue
                            .lock()
                            .map_err(|_| anyhow::anyhow!("a worker panicked"))?
                            .next();
                        let Some(job) = next else { return Ok(()) };
                        check_interrupt()?;
                        let report = one(job, product, guest, out);
                        tally
                            .lock()
                            .map_err(|_| anyhow::anyhow!("a worker panicked"))?
                            .take(job, report);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    tally
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a worker panicked"))
}

fn one(job: &Job, product: &Path, guest: &Path, out: &Path) -> Result<(String, String)> {
    let copy = |source: &Path| CopyIn {
        source: source.to_owned(),
        target: None,
    };
    let mut command = vec!["pgfork-trace-guest"];
    match job.methods {
        HEADROOM => command.push(HEADROOM),
        methods => command.extend(["--methods", methods]),
    }
    command.extend(job.scenarios);
    let spec = VmSpec {
        cgroup: job.cgroup,
        init: job.init,
        copy: vec![copy(product), copy(guest)],
        out: Some(out.join(job.name().replace(' ', "-"))),
        timeout: Duration::from_secs(900),
        ..VmSpec::new(job.kernel, job.postgres, command)
    };
    let outcome = vm::run(&spec)?;
    Ok((
        outcome.kernel.release.clone(),
        String::from_utf8_lossy(&outcome.stdout).into_owned(),
    ))
}

impl Tally {
    fn take(&mut self, job: &Job, report: Result<(String, String)>) {
        let name = job.name();
        let (release, text) = match report {
            Ok(report) => report,
            Err(error) => {
                say(format_args!("{name}: the guest failed: {error:#}"));
                self.failed += 1;
                return;
            }
        };
        println!("--- {name} ({release})");
        let mut tests = 0;
        for line in text.lines() {
            println!("{line}");
            let Some((test, result)) = line
                .strip_prefix("test ")
                .and_then(|line| line.split_once(" ... "))
            else {
                continue;
            };
            let (scenario, method) = test.split_once(' ').unwrap_or((test, ""));
            let ok = result.starts_with("ok");
            tests += 1;
            self.passed += usize::from(ok);
            self.failed += usize::from(!ok);
            self.table
                .entry((name.clone(), scenario.to_owned()))
                .or_default()
                .push((method.to_owned(), ok));
        }
        if tests == 0 {
            println!("no test ran");
            self.failed += 1;
        }
    }

    /// Which verdicts were right, by guest, scenario and method.
    pub(crate) fn print(&self) {
        println!("--- verdicts, by guest and scenario");
        for ((guest, scenario), methods) in &self.table {
            let results: Vec<String> = methods
                .iter()
                .map(|(method, ok)| format!("{method} {}", if *ok { "right" } else { "WRONG" }))
                .collect();
            println!("{guest:<44} {scenario:<20} {}", results.join(", "));
        }
    }
}
