//! Every way to be refused that needs no server: a fixture process for each, watched with `--pid`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    attribution::{self, Outcome},
    server::wait_for,
    tracer::{SYSCALLS, Said, Tracer, is_tracepoint},
};

mod armed;
mod cases;
pub(crate) mod numbers;
mod runs;

use cases::{Case, Certain, Kind};

/// A fixture process that is ready.
struct Fixture {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// What came of the call.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    /// errno, or 0.
    Errno(i32),
    /// The process was ended by a signal.
    Died,
}

impl Fixture {
    fn start(name: &str) -> Result<Self> {
        let mut child = Command::new("pgfork-trace-fixture")
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("pgfork-trace-fixture")?;
        let stdin = child.stdin.take().context("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self {
            child,
            stdin,
            stdout,
        })
    }

    fn prepare(&mut self) -> Result<()> {
        writeln!(self.stdin, "prepare")?;
        let line = self.line()?;
        ensure!(line == "ready", "the fixture said: {line}");
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Lets it make the call.
    fn go(&mut self) -> Result<Came> {
        writeln!(self.stdin, "go")?;
        let line = self.line()?;
        match line.strip_prefix("errno ") {
            Some(errno) => Ok(Came::Errno(errno.parse()?)),
            None if line.is_empty() => Ok(Came::Died),
            None => bail!("the fixture said: {line}"),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // It puts back what it set and ends its group; where it is dead, the group is ended here.
        let _ = writeln!(self.stdin, "end");
        let mut rest = String::new();
        let _ = self.stdout.read_line(&mut rest);
        if let Ok(group) = i32::try_from(self.child.id()) {
            // SAFETY: a group that the child made, and that nothing else can have before it is waited for.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.child.wait();
        // A scheduler goes a little after its process, and may refuse the next one's forks until then.
        linger(|| {
            let state = fs::read_to_string("/sys/kernel/sched_ext/state");
            state.is_ok_and(|state| state.trim() == "disabled") || !has_scheduler()
        });
    }
}

/// Runs all cases that this kernel has, or those named, by each method; returns how many failed.
pub(crate) fn run(arguments: &[String]) -> Result<usize> {
    let (methods, names) = match arguments {
        [word, methods, names @ ..] if word == "--methods" => (methods.as_str(), names),
        names => ("auto", names),
    };
    let chosen: Vec<&Case> = cases::ALL
        .iter()
        .filter(|case| names.is_empty() || names.iter().any(|name| name == case.fixture))
        .filter(|case| (case.here)())
        .collect();
    let arms =
        (names.is_empty() || names.iter().any(|name| name == "armed_and_back")) && !memory_is_v1();
    let runs: Vec<runs::Run> = runs::ALL
        .iter()
        .filter(|(run, _)| names.is_empty() || names.iter().any(|name| name == run))
        .copied()
        .collect();
    ensure!(
        arms || !chosen.is_empty() || !runs.is_empty(),
        "no such fixture here: {names:?}"
    );
    let methods: Vec<&str> = methods.split(',').collect();
    let arming = |method: &str| arms && !is_tracepoint(method);
    // Beside the cases of each method: what the verifier says, and whether all is accounted for.
    // Held to what bpftool says of it, outside.
    fs::copy("/sys/kernel/btf/vmlinux", "/out/vmlinux").context("the kernel's types")?;
    let armings = methods.iter().filter(|method| arming(method)).count();
    let by_each = if chosen.is_empty() {
        0
    } else {
        chosen.len() + 1
    };
    crate::plan(1 + methods.len() * (by_each + runs.len()) + armings);
    let mut failed = usize::from(!probes());
    for method in methods {
        if by_each > 0 {
            failed += all_by(method, &chosen)?;
        }
        failed += runs::each(&runs, method);
        if arming(method) {
            failed += usize::from(!armed::there_and_back(method));
        }
    }
    Ok(failed)
}

/// What can be hooked here, and what the verifier says: kept for the documentation.
fn probes() -> bool {
    let output = Command::new("pgfork-trace")
        .args(["probes", "--load", "--json"])
        .stdin(Stdio::null())
        .output()
        .context("pgfork-trace probes")
        .and_then(|output| {
            ensure!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            // Not a log of the tracer: those are held to its schema.
            fs::write("/out/probes.txt", &output.stdout)?;
            Ok(serde_json::from_slice::<Value>(&output.stdout)?)
        });
    let programs = output.and_then(|report| {
        let all = report["programs"].as_array().cloned().unwrap_or_default();
        let refused: Vec<&Value> = all.iter().filter(|it| it.get("error").is_some()).collect();
        ensure!(refused.is_empty() && !all.is_empty(), "{refused:#?}");
        Ok(all.len())
    });
    match &programs {
        Ok(count) => println!("test probes_load auto ... ok ({count} programs)"),
        Err(error) => println!("test probes_load auto ... FAILED: {error:?}"),
    }
    programs.is_ok()
}

/// One tracer watches all fixtures, which act one after the other.
fn all_by(method: &str, chosen: &[&Case]) -> Result<usize> {
    let mut fixtures = Vec::new();
    for case in chosen {
        let mut fixture = Fixture::start(case.fixture)?;
        if case.early {
            fixture.prepare()?;
        }
        fixtures.push(fixture);
    }
    let pids: Vec<u32> = fixtures.iter().map(|fixture| fixture.child.id()).collect();
    let watched: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut arguments = vec!["--all-children"];
    for pid in &watched {
        arguments.extend(["--pid", pid]);
    }
    let tracer = Tracer::start("fixtures", method, &arguments)?;
    let mut came = Vec::new();
    for ((case, fixture), pid) in chosen.iter().zip(fixtures).zip(&pids) {
        came.push(act(case, fixture, *pid, method, &tracer));
    }
    let said = tracer.stop()?;
    let mut failed = 0;
    for ((case, pid), came) in chosen.iter().zip(pids).zip(came) {
        let name = format!("fixture_{} {method}", case.fixture);
        match came.and_then(|()| judge(case, method, pid, &said)) {
            Ok(()) => println!("test {name} ... ok"),
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED: {error:?}");
            }
        }
    }
    let end = said.only("end")?;
    // A kernel may drop the return of a probed function (it has a bounded number of them in
    // flight): that is said and counted, and no reason to call the count whole. fexit has no such
    // loss.
    let returns: u64 = said
        .of("lost")
        .into_iter()
        .filter(|line| line["what"] == "returns")
        .filter_map(|line| line["count"].as_u64())
        .sum();
    // Of a process that is killed within it, the C library's `fork` does not return.
    let killed = chosen
        .iter()
        .filter(|case| case.kind == Kind::Fork && case.errno.is_none());
    let none_returns = method == "tracepoint" && returns < killed.count() as u64;
    let accounted = if method == "fexit" || end["lost"] == 0 {
        end["accounted"] == true
    } else {
        end["accounted"] == false && end["lost"] == returns
    } && !none_returns;
    failed += usize::from(!accounted);
    println!(
        "test fixtures_accounted {method} ... {}",
        if accounted {
            "ok".to_owned()
        } else {
            format!("FAILED: {end}")
        }
    );
    Ok(failed)
}

/// Lets one fixture be refused, and ends it when that was told, or is not going to be.
fn act(case: &Case, mut fixture: Fixture, pid: u32, method: &str, tracer: &Tracer) -> Result<()> {
    if !case.early {
        fixture.prepare()?;
    }
    let mut came = fixture.go()?;
    let told = |times: usize| said_of(case, pid, &tracer.lines()).len() >= times;
    if !case.cause.is_empty() && (case.visible)(method) {
        linger(|| told(1));
    }
    if case.early && method == SYSCALLS {
        // The first call that is seen to end may have begun before it was watched.
        came = fixture.go()?;
        linger(|| told(2));
    }
    if case.armed && !is_tracepoint(method) {
        // The first refusal is what has the checks on hot paths attached.
        wait_for("the checks on hot paths are attached", || {
            tracer.noticed("armed")
        })?;
        let before = said_of(case, pid, &tracer.lines()).len();
        came = fixture.go()?;
        linger(|| told(before + 1));
    }
    let expected = case.errno.map_or(Came::Died, Came::Errno);
    ensure!(came == expected, "{came:?} came of it, not {expected:?}");
    Ok(())
}

/// Waits a moment. What comes later is not missed: ending, the tracer reads all that there is.
fn linger(done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() && started.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(50));
    }
}

fn has_scheduler() -> bool {
    Path::new("/sys/kernel/sched_ext").exists()
}

/// The lines about the fixture.
fn said_of(case: &Case, pid: u32, lines: &[Value]) -> Vec<Value> {
    let (kind, process) = match case.kind {
        Kind::Fork => ("refusal", "process"),
        Kind::Memory => ("memory_refusal", "process"),
        Kind::OomKill => ("oom_kill", "victim"),
    };
    lines
        .iter()
        .filter(|line| line["type"] == kind && line[process]["pid"] == pid)
        .cloned()
        .collect()
}

fn judge(case: &Case, method: &str, pid: u32, said: &Said) -> Result<()> {
    let lines = said_of(case, pid, &said.lines);
    if case.cause.is_empty() {
        ensure!(
            lines.is_empty(),
            "a refusal where there was none: {lines:?}"
        );
        return Ok(());
    }
    let visible = (case.visible)(method);
    let by_state = case.by_state.filter(|_| is_tracepoint(method));
    let cause = by_state.unwrap_or(case.cause);
    let outcome = attribution::report(cause, method, lines.last(), visible);
    if outcome == Outcome::NotVisible {
        return Ok(());
    }
    let Some(line) = lines.last() else {
        bail!("nothing was reported");
    };
    if (case.open)(method) {
        ensure!(outcome == Outcome::Open, "it cannot be told: {line}");
        return Ok(());
    }
    ensure!(
        outcome == Outcome::Right,
        "the cause is {cause}, said is {}: {line}",
        line["cause"]
    );
    let expected = match case.kind {
        Kind::Fork if is_tracepoint(method) && case.certain != Certain::Unknown => "deduced",
        _ => case.certain.word(line),
    };
    ensure!(
        line["certainty"] == expected,
        "certainty {}, expected {expected}: {line}",
        line["certainty"]
    );
    if case.early && method == SYSCALLS {
        let because = line["because"].as_str().unwrap_or_default();
        ensure!(because.contains("was not entered"), "{line}");
    }
    if let Some(errno) = case.errno.filter(|_| case.kind == Kind::Fork) {
        ensure!(
            line["errno"]["number"] == errno,
            "errno {}: the process got {errno}",
            line["errno"]
        );
    }
    (case.numbers)(line).with_context(|| line.to_string())
}

/// Whether the memory cgroups are of version 1.
fn memory_is_v1() -> bool {
    Path::new("/sys/fs/cgroup/memory").is_dir()
}
