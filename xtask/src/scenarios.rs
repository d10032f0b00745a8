//! Guests for the scenarios of `tests/`: which kernels, servers and cgroups, and how they went.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    dist,
    headroom::Headroom,
    matrix::Matrix,
    process::{check_interrupt, run},
    progress::say,
    vm::{self, Cgroup, CopyIn, Init, Postgres, Series, VmSpec},
};

const METHODS: &str = "fexit,kprobe,tracepoint";
/// Those of the fixtures, which make system calls of their own.
const ALL_METHODS: &str = "fexit,kprobe,tracepoint,syscalls";
/// Instead of methods: what `check` predicts against what then happens.
const HEADROOM: &str = "headroom";
/// Instead of scenarios with a server: a fixture process for each way to be refused, all methods.
const FIXTURES: &str = "fixtures";
/// Instead of methods: what `cargo xtask demo` shows, for each cause.
const DEMO: &str = "demo";
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
    /// Word for the kernel's command line.
    append: Option<&'static str>,
}

const fn job(kernel: Series, postgres: Postgres, methods: &'static str) -> Job {
    Job {
        kernel,
        postgres,
        cgroup: Cgroup::V2,
        init: Init::Plain,
        methods,
        scenarios: &[],
        append: None,
    }
}

/// Fixtures that need cgroup v1, and what it shares with v2.
const FIXTURES_V1: &[&str] = &[
    "control",
    "pids_cgroup_max",
    "memcg_no_victim",
    "memcg_oom_kill_disabled",
    "memcg_kmem_limit_v1",
];
/// What a server shows of the method that watches system calls: counts, restarts, descendants.
const SYSCALLS: &[&str] = &[
    "control",
    "commit_limit_ratio",
    "pids_leaf",
    "signals",
    "storm",
    "copy_program",
];
const V1: &[&str] = &["control", "pids_leaf", "pids_ancestor", "rlimit_nproc"];

/// What may differ from one version of the server to another.
const SERVER: &[&str] = &[
    "control",
    "pids_leaf",
    "pids_ancestor",
    "rlimit_nproc",
    "commit_limit_ratio",
    "commit_limit_kbytes",
    "client",
    "backend_rlimit_as",
    "backend_shm_full",
    "parallel_worker",
    "copy_program",
    "storm",
    "restart",
    "restart_refused",
    "postmasters",
];

const TASKS_MAX: &[&str] = &["tasks_max", "tasks_max_slice"];

/// The whole matrix: every kernel by every method, every server version, cgroup v1, systemd,
/// fixtures, and the predictions of `check`. The longest first: it ends sooner.
pub(crate) const MATRIX: &[Job] = &[
    job(Series::V5_10, Postgres::V15, METHODS),
    job(Series::V6_1, Postgres::V15, METHODS),
    job(Series::V6_12, Postgres::V15, METHODS),
    job(Series::V6_18, Postgres::V15, METHODS),
    job(Series::V7_2, Postgres::V15, METHODS),
    job(Series::V5_10, Postgres::V15, FIXTURES),
    job(Series::V6_1, Postgres::V15, FIXTURES),
    job(Series::V6_12, Postgres::V15, FIXTURES),
    job(Series::V6_18, Postgres::V15, FIXTURES),
    job(Series::V7_2, Postgres::V15, FIXTURES),
    Job {
        cgroup: Cgroup::V1,
        scenarios: FIXTURES_V1,
        ..job(Series::V5_10, Postgres::V15, FIXTURES)
    },
    Job {
        cgroup: Cgroup::V1,
        scenarios: FIXTURES_V1,
        ..job(Series::V6_1, Postgres::V15, FIXTURES)
    },
    // Later kernels have BPF programs among their security modules by default.
    Job {
        append: Some("lsm=lockdown,yama,apparmor,tomoyo,bpf"),
        scenarios: &["control", "lsm_denied"],
        ..job(Series::V5_10, Postgres::V15, FIXTURES)
    },
    job(Series::V5_10, Postgres::V13, HEADROOM),
    job(Series::V6_1, Postgres::V15, HEADROOM),
    job(Series::V6_12, Postgres::V17, HEADROOM),
    job(Series::V6_18, Postgres::V15, HEADROOM),
    job(Series::V7_2, Postgres::V18, HEADROOM),
    Job {
        cgroup: Cgroup::V1,
        ..job(Series::V5_10, Postgres::V15, HEADROOM)
    },
    Job {
        cgroup: Cgroup::V1,
        ..job(Series::V6_1, Postgres::V15, HEADROOM)
    },
    Job {
        scenarios: SERVER,
        ..job(Series::V5_10, Postgres::V13, "auto")
    },
    Job {
        scenarios: SERVER,
        ..job(Series::V6_12, Postgres::V17, "auto")
    },
    Job {
        scenarios: SERVER,
        ..job(Series::V7_2, Postgres::V18, "auto,tracepoint")
    },
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
        scenarios: SYSCALLS,
        ..job(Series::V6_1, Postgres::V17, "syscalls")
    },
    Job {
        cgroup: Cgroup::V1,
        scenarios: V1,
        ..job(Series::V7_2, Postgres::V15, "auto")
    },
    Job {
        init: Init::Systemd,
        scenarios: TASKS_MAX,
        ..job(Series::V6_1, Postgres::V15, METHODS)
    },
    Job {
        init: Init::Systemd,
        scenarios: TASKS_MAX,
        ..job(Series::V7_2, Postgres::V18, "auto")
    },
    Job {
        cgroup: Cgroup::V1,
        init: Init::Systemd,
        scenarios: TASKS_MAX,
        ..job(Series::V6_1, Postgres::V15, "auto")
    },
    Job {
        append: Some("lockdown=confidentiality"),
        scenarios: &["locked_down"],
        ..job(Series::V6_1, Postgres::V15, "auto")
    },
    job(Series::V6_1, Postgres::V15, DEMO),
];

/// Where the fixtures of each kernel left what they wrote.
pub(crate) fn fixture_outs(out: &Path) -> Vec<(Series, PathBuf)> {
    MATRIX
        .iter()
        .filter(|job| job.methods == FIXTURES && job.scenarios.is_empty())
        .map(|job| (job.kernel, job.out(out)))
        .collect()
}

/// A guest whose command never ends is ended, and what it and its console said is told.
pub(crate) fn hung() -> Result<()> {
    let script = "echo said before; echo the console has this > /dev/kmsg; sleep 6000";
    let error = vm::run(&VmSpec {
        memory_mib: 512,
        timeout: Duration::from_secs(100),
        ..VmSpec::new(Series::V6_1, Postgres::V15, ["sh", "-c", script])
    })
    .err()
    .context("it was not ended")?;
    let text = format!("{error:#}");
    for words in [
        "the command did not end within 100 s",
        "said before",
        "last lines of the guest's console",
        "the console has this",
    ] {
        ensure!(text.contains(words), "{words:?} is missing in: {text}");
    }
    Ok(())
}

/// One kernel, every method.
pub(crate) const QUICK: &[Job] = &[
    job(Series::V6_1, Postgres::V15, METHODS),
    job(Series::V6_1, Postgres::V15, FIXTURES),
];

impl Job {
    fn out(&self, out: &Path) -> PathBuf {
        out.join(self.name().replace(' ', "-"))
    }

    /// Head of its column in the table of predictions.
    fn column(&self) -> String {
        let cgroup = match self.cgroup {
            Cgroup::V1 => ", cgroup v1",
            Cgroup::V2 => "",
        };
        format!(
            "{}, PG {}{cgroup}",
            self.kernel.name(),
            self.postgres.major()
        )
    }

    fn name(&self) -> String {
        let cgroup = match self.cgroup {
            Cgroup::V1 => " cgroup v1",
            Cgroup::V2 => "",
        };
        let init = match self.init {
            Init::Plain => "",
            Init::Systemd => " systemd",
        };
        let what = match self.methods {
            HEADROOM => " headroom",
            FIXTURES => " fixtures",
            DEMO => " demo",
            _ => "",
        };
        let append = self
            .append
            .map_or_else(String::new, |word| format!(" {word}"));
        format!(
            "kernel {} PostgreSQL {}{cgroup}{init}{what}{append}",
            self.kernel.name(),
            self.postgres.major()
        )
    }
}

/// Numbers of tests, and what went wrong.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) skipped: usize,
    /// Which failed and why, said once more at the end: CI may keep no more than that.
    pub(crate) failures: Vec<String>,
    /// Passed and all, by guest and scenario.
    table: BTreeMap<(String, String), Vec<(String, bool)>>,
    /// Causes named, by cause, kernel and method.
    pub(crate) matrix: Matrix,
    /// What `check` predicted, by limit and guest.
    pub(crate) headroom: Headroom,
}

/// The programs that run inside the guests.
pub(crate) struct Programs {
    /// The product.
    pub(crate) product: PathBuf,
    /// Runs the scenarios; static, for any root filesystem.
    pub(crate) guest: PathBuf,
    /// Is refused; with a C library, for one method looks at that.
    pub(crate) fixture: PathBuf,
}

/// Builds the program that runs the scenarios.
pub(crate) fn build_guest() -> Result<PathBuf> {
    let flags = "-C target-feature=+crt-static -C relocation-model=static";
    build("pgfork-trace-guest", "guest", flags)
}

/// Builds the fixtures.
pub(crate) fn build_fixture() -> Result<PathBuf> {
    build("pgfork-trace-fixture", "fixture", "")
}

fn build(program: &str, directory: &str, flags: &str) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let directory = dist::workspace().join("target").join(directory);
    run(Command::new("cargo")
        .current_dir(dist::workspace())
        .args(["build", "--quiet", "--locked", "-p", "pgfork-trace-tests"])
        .args(["--bin", program, "--target", &target, "--target-dir"])
        .arg(&directory)
        .env("RUSTFLAGS", flags))?;
    Ok(directory.join(target).join("debug").join(program))
}

/// Runs all jobs, some at a time; what each said is printed whole when it has ended.
pub(crate) fn run_all(jobs: &[Job], programs: &Programs, out: &Path) -> Result<Tally> {
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
                        let report = one(job, programs, out);
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

/// What a guest said, and how its runner ended.
struct Report {
    release: String,
    status: u8,
    text: String,
    errors: String,
}

fn one(job: &Job, programs: &Programs, out: &Path) -> Result<Report> {
    let copy = |source: &Path| CopyIn {
        source: source.to_owned(),
        target: None,
    };
    let mut command = vec!["pgfork-trace-guest"];
    match job.methods {
        HEADROOM => command.push(HEADROOM),
        DEMO => command.extend([DEMO, "all"]),
        FIXTURES => command.extend([FIXTURES, "--methods", ALL_METHODS]),
        methods => command.extend(["--methods", methods]),
    }
    command.extend(job.scenarios);
    let spec = VmSpec {
        cgroup: job.cgroup,
        init: job.init,
        kernel_arguments: job.append.map(str::to_owned).into_iter().collect(),
        copy: [&programs.product, &programs.guest, &programs.fixture]
            .map(|program| copy(program))
            .into(),
        out: Some(job.out(out)),
        timeout: Duration::from_secs(1500),
        ..VmSpec::new(job.kernel, job.postgres, command)
    };
    let outcome = vm::run(&spec)?;
    Ok(Report {
        release: outcome.kernel.release.clone(),
        status: outcome.status,
        text: String::from_utf8_lossy(&outcome.stdout).into_owned(),
        errors: String::from_utf8_lossy(&outcome.stderr).into_owned(),
    })
}

impl Tally {
    fn take(&mut self, job: &Job, report: Result<Report>) {
        let name = job.name();
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                say(format_args!("{name}: the guest failed: {error:#}"));
                self.failures
                    .push(format!("{name}: the guest failed: {error:#}"));
                return;
            }
        };
        println!("--- {name} ({})", report.release);
        let (mut planned, mut tests, mut failed) = (None, 0, 0);
        for line in report.text.lines() {
            if let Some(verdict) = line.strip_prefix("verdict ") {
                self.matrix.take(job.kernel, verdict);
                continue;
            }
            if let Some(number) = line.strip_prefix("plan ") {
                planned = number.parse::<usize>().ok();
                continue;
            }
            println!("{line}");
            if let Some(prediction) = line.strip_prefix("headroom ") {
                self.headroom.take(&job.column(), prediction);
                continue;
            }
            let Some((test, result)) = line
                .strip_prefix("test ")
                .and_then(|line| line.split_once(" ... "))
            else {
                continue;
            };
            let (scenario, method) = test.split_once(' ').unwrap_or((test, ""));
            let ok = result.starts_with("ok");
            tests += 1;
            if !ok {
                failed += 1;
                self.failures.push(format!("{name}: {test}: {result}"));
            }
            self.table
                .entry((name.clone(), scenario.to_owned()))
                .or_default()
                .push((method.to_owned(), ok));
        }
        self.passed += tests - failed;
        if let Some(why) = incomplete(planned, tests, failed, report.status) {
            println!(
                "test {name} ... FAILED: {why}\n{}",
                report.errors.trim_end()
            );
            self.failures.push(format!("{name}: {why}"));
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
        print!("{}", self.matrix.text());
        print!("{}", self.headroom.text());
    }
}

/// Why a guest's report is not that of a runner that came to its end: the number of tests is not
/// the planned one, or the exit status is not what the results make it.
fn incomplete(planned: Option<usize>, tests: usize, failed: usize, status: u8) -> Option<String> {
    let Some(planned) = planned else {
        return Some(format!(
            "the runner ended with status {status} before it said how many tests it would run"
        ));
    };
    let expected = u8::from(failed > 0);
    if planned == tests && status == expected && tests > 0 {
        return None;
    }
    Some(format!(
        "{tests} of {planned} tests ran, {failed} failed, and the runner ended with status {status}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: u8, text: &str) -> Tally {
        let mut tally = Tally::default();
        let report = Report {
            release: "6.1.0-56".to_owned(),
            status,
            text: text.to_owned(),
            errors: "thread 'main' panicked".to_owned(),
        };
        tally.take(&MATRIX[0], Ok(report));
        tally
    }

    #[test]
    fn a_guest_that_ran_everything_counts_its_tests() {
        let tally = report(
            0,
            "plan 2\ntest a fexit ... ok (1 s)\ntest b fexit ... ok (1 s)\n",
        );
        assert_eq!((tally.passed, tally.failures.len()), (2, 0));
        let tally = report(
            1,
            "plan 2\ntest a fexit ... ok\ntest b fexit ... FAILED: x\n",
        );
        assert_eq!((tally.passed, tally.failures.len()), (1, 1));
    }

    #[test]
    fn a_runner_that_died_on_the_way_is_a_failure() {
        for (status, text) in [
            (101, "plan 2\ntest a fexit ... ok\n"),
            (137, "plan 1\ntest a fexit ... ok\n"),
            (0, "plan 2\ntest a fexit ... ok\n"),
            (0, "test a fexit ... ok\n"),
        ] {
            let tally = report(status, text);
            assert_eq!(
                (tally.passed, tally.failures.len()),
                (1, 1),
                "{status} {text}"
            );
        }
        for (status, text) in [(0, ""), (0, "plan 0\n"), (139, "")] {
            let tally = report(status, text);
            assert_eq!(
                (tally.passed, tally.failures.len()),
                (0, 1),
                "{status} {text}"
            );
        }
    }

    #[test]
    fn a_guest_that_failed_is_a_failure() {
        let mut tally = Tally::default();
        tally.take(&MATRIX[0], Err(anyhow::anyhow!("it hangs")));
        assert_eq!((tally.passed, tally.failures.len()), (0, 1));
    }
}
