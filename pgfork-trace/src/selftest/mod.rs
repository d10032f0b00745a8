//! `pgfork-trace selftest`: shows that this host, kernel and method see and explain a refused fork.
//!
//! Throw-away children of this program are refused by limits that apply to nothing else: harmless
//! on a host in production, and no PostgreSQL is needed. What they meet is judged as `trace` does.

mod cgroup;
mod child;
mod filter;
mod report;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use jiff::Timestamp;
use pgfork_trace_common::{Attempt, valid};

pub use report::{Expected, Outcome, Report, SCHEMA, Said, Test};

use crate::{
    capture::{Capture, Record, Settings},
    gather::{Gatherer, text},
    host::{Root, process},
    kernel::plan::Method,
    output::{OutputOptions, selftest_document, selftest_summary, selftest_text},
    trace,
    verdict::{self, Verdict},
};
use cgroup::PidsCgroup;
use child::{Child, Setup};
use report::{Got, report};

/// How long the record of a refusal is waited for, once the child has met it.
const RECORD_WITHIN: Duration = Duration::from_secs(2);
/// First of the users that a child may become.
const FIRST_UID: u32 = 54_321;
/// Users tried, until one without a process is found.
const UIDS: u32 = 100;

/// What one run of `selftest` is told.
#[derive(Debug)]
pub struct Options {
    /// Method asked for.
    pub method: Option<Method>,
    /// Kernel side diagnostics.
    pub verbose: bool,
}

/// Runs all tests; returns how many were wrong or not seen.
///
/// # Errors
/// When tracing is not possible here, no test could run, or the output is gone.
pub fn run(options: &Options, output: &OutputOptions) -> Result<u64> {
    let root = Root::default();
    trace::check_pid_namespace(&root)?;
    let mut settings = Settings {
        method: options.method,
        verbose: options.verbose,
        ..Settings::default()
    };
    if let Some(path) = std::env::var_os("PGFORK_TRACE_BTF") {
        settings.btf = PathBuf::from(path);
    }
    let mut capture = Capture::start(&settings)?;
    let mut gatherer = Gatherer::new(root.clone());
    let mut reports = Vec::new();
    for test in Test::ALL {
        // Nothing may be left behind: a signal waits for the end of the test.
        let signals = child::BlockedSignals::block();
        let got = meet(test, &root, &mut capture, &mut gatherer);
        drop(signals);
        let method = capture.coverage().method;
        let report = report(test, method, &got, format!("{:.6}", Timestamp::now()));
        write(&report, output)?;
        reports.push(report);
    }
    if output.quiet == 0 && !output.json {
        io::stdout().write_all(selftest_summary(&reports).as_bytes())?;
    }
    if reports.iter().all(|it| it.outcome == Outcome::Skipped) {
        bail!("no test could run here");
    }
    let failed = reports.iter().filter(|it| it.outcome.is_failure());
    Ok(failed.count() as u64)
}

fn write(report: &Report, output: &OutputOptions) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if output.json {
        out.write_all(&selftest_document(report))?;
    } else if output.quiet == 0 || report.outcome.is_failure() {
        out.write_all(selftest_text(report).as_bytes())?;
    }
    out.flush()
}

/// Has a child be refused, and looks at what was seen of it.
fn meet(test: Test, root: &Root, capture: &mut Capture, gatherer: &mut Gatherer) -> Got {
    match try_to_meet(test, root, capture, gatherer) {
        Ok(got) => got,
        Err(why) => Got::skipped(why),
    }
}

fn try_to_meet(
    test: Test,
    root: &Root,
    capture: &mut Capture,
    gatherer: &mut Gatherer,
) -> Result<Got, String> {
    let setup = match test {
        Test::RlimitNproc => Setup::OneProcess {
            uid: unused_uid(root)?,
        },
        Test::PidsCgroup => Setup::Nothing,
        Test::PidNamespace => Setup::DyingPidNamespace,
        Test::Deadline => Setup::Deadline,
        Test::Seccomp => Setup::Filter,
    };
    // Removed after the child, which is in it.
    let cgroup = match test {
        Test::PidsCgroup => Some(PidsCgroup::make(root)?),
        _ => None,
    };
    let mut child = Child::start(setup)?;
    child.prepared()?;
    if let Some(cgroup) = &cgroup {
        cgroup.take(child.pid())?;
    }
    let pid = child.pid();
    let before_fork = capture
        .watch(pid, false)
        .map_err(|error| format!("the child could not be watched: {error}"))?;
    if let (Test::Seccomp, Some(error)) = (test, before_fork) {
        return Err(format!("what a filter refuses is not seen here: {error}"));
    }
    let ret = child.fork();
    let attempt = match ret {
        // Not refused: there is nothing to wait for.
        Ok(0) | Err(_) => None,
        Ok(_) => record_of(pid, capture),
    };
    // While the child is there to be read.
    let seen = attempt.map(|attempt| {
        let facts = gatherer.facts(&attempt, Instant::now());
        let verdict = verdict::judge(&attempt, &facts, capture.coverage());
        (attempt, verdict)
    });
    gatherer.forget(pid);
    capture.unwatch(pid);
    capture.take_totals(pid);
    drop(child);
    Ok(got(ret?, seen, cgroup.as_ref()))
}

fn got(ret: i32, seen: Option<(Box<Attempt>, Verdict)>, cgroup: Option<&PidsCgroup>) -> Got {
    Got {
        skipped: None,
        errno: ret,
        cgroup: cgroup.map(|cgroup| text(cgroup.path().as_os_str())),
        seen_errno: seen
            .as_ref()
            .filter(|(attempt, _)| attempt.valid & valid::RET != 0)
            .map(|(attempt, _)| -attempt.ret),
        verdict: seen.map(|(_, verdict)| verdict),
    }
}

/// The record of the child's refusal; those of others are passed over.
fn record_of(pid: u32, capture: &mut Capture) -> Option<Box<Attempt>> {
    let deadline = Instant::now() + RECORD_WITHIN;
    loop {
        while let Some(record) = capture.next_record() {
            match record {
                Record::Refusal(attempt) if attempt.tgid == pid => return Some(attempt),
                _ => {}
            }
        }
        if Instant::now() >= deadline {
            return None;
        }
        child::wait_readable(capture, Duration::from_millis(50));
    }
}

/// A user without any process: its limit concerns nobody.
fn unused_uid(root: &Root) -> Result<u32, String> {
    (FIRST_UID..FIRST_UID + UIDS)
        .find(|uid| process::tasks_of_uid(root, *uid, None).is_ok_and(|count| count.tasks == 0))
        .ok_or_else(|| "no user without a process was found".to_owned())
}
