//! Runs inside a guest, as root: makes a real PostgreSQL's fork be refused, lets
//! `pgfork-trace` explain it, and compares what it says with the kernel's own
//! counters, the limits that were set, and the server's log.
//!
//! `pgfork-trace-guest [--methods fexit,kprobe,tracepoint,syscalls] [SCENARIO...]` (`syscalls` is
//! `tracepoint` with the option `--syscalls`); prints
//! how many tests it will run and one line for each, and exits with 1 when one failed.
//! `pgfork-trace-guest headroom [LIMIT...]` compares what `check` predicts with what then
//! happens; `pgfork-trace-guest fixtures [--methods ...] [NAME...]` needs no server: a small
//! process is refused instead.
#![expect(clippy::print_stdout, reason = "the report of a test program")]

mod attribution;
mod bench;
mod causes;
mod children;
mod demo;
mod fixtures;
mod forker;
mod headroom;
mod kills;
mod limits;
mod outage;
#[path = "../fixture/perf.rs"]
mod perf;
mod postmasters;
mod promise;
mod scenarios;
mod server;
mod tasks_max;
mod together;
mod tracer;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use scenarios::Scenario;
use server::Server;

fn main() -> ExitCode {
    // Of address space, of which a fork of this program must not need more than root has left at
    // the commit limit (mm/util.c `__vm_enough_memory`), a heap for each thread takes very much.
    // SAFETY: no other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (word, rest) = match arguments.split_first() {
        Some((word, rest)) => (word.as_str(), rest),
        None => ("", [].as_slice()),
    };
    let first = rest.first().map_or("", String::as_str);
    let failed = match word {
        "hog" => limits::hog(first).map(|()| 0),
        "forker" => forker::run().map(|()| 0),
        "demo" if first == "all" => demo::all(),
        "demo" => demo::run(first).map(|()| 0),
        "headroom" => headroom::run(rest),
        "bench" => bench::run(rest),
        "fixtures" => fixtures::run(rest),
        "--methods" => run(
            &first.split(',').collect::<Vec<_>>(),
            rest.get(1..).unwrap_or_default(),
        ),
        _ => run(&["auto"], &arguments),
    };
    match failed {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("test set-up ... FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says how many tests will run: who reads the report misses one that did not.
pub(crate) fn plan(tests: usize) {
    println!("plan {tests}");
}

/// Runs the scenarios by each method; returns how many failed.
fn run(methods: &[&str], names: &[String]) -> Result<usize> {
    let chosen: Vec<Scenario> = scenarios::ALL
        .iter()
        .filter(|scenario| {
            if names.is_empty() {
                !scenario.special
            } else {
                names.iter().any(|name| name == scenario.name)
            }
        })
        .copied()
        .collect();
    anyhow::ensure!(!chosen.is_empty(), "no such scenario: {names:?}");
    plan(methods.len() * chosen.len());
    let mut server = Server::start().context("cannot start PostgreSQL")?;
    let mut failed = 0;
    for method in methods {
        for scenario in &chosen {
            let started = Instant::now();
            let outcome = server
                .settle()
                .and_then(|()| (scenario.run)(&mut server, method));
            let took = started.elapsed().as_secs_f32();
            match outcome {
                Ok(()) => println!("test {} {method} ... ok ({took:.1} s)", scenario.name),
                Err(error) => {
                    failed += 1;
                    println!("test {} {method} ... FAILED: {error:?}", scenario.name);
                    server
                        .restart()
                        .context("cannot restart PostgreSQL after a failure")?;
                }
            }
        }
    }
    Ok(failed)
}
