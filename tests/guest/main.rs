//! Runs inside a guest, as root: makes a real PostgreSQL's fork be refused, lets
//! `pgfork-trace` explain it, and compares what it says with the kernel's own
//! counters, the limits that were set, and the server's log.
//!
//! `pgfork-trace-guest [--methods fexit,kprobe,tracepoint] [SCENARIO...]`; prints
//! one line for each test, and exits with 1 when one failed. `pgfork-trace-guest headroom
//! [LIMIT...]` compares what `check` predicts with what then happens.
#![expect(clippy::print_stdout, reason = "the report of a test program")]

mod demo;
mod headroom;
mod limits;
mod scenarios;
mod server;
mod tracer;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use scenarios::Scenario;
use server::Server;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, what] = arguments.as_slice()
        && ["hog", "demo"].contains(&word.as_str())
    {
        let outcome = if word == "hog" {
            limits::hog(what)
        } else {
            demo::run(what)
        };
        return match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if let [word, names @ ..] = arguments.as_slice()
        && word == "headroom"
    {
        return match headroom::run(names) {
            Ok(0) => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => {
                println!("headroom ... FAILED: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let (methods, names) = match arguments.as_slice() {
        [flag, methods, names @ ..] if flag == "--methods" => (methods.clone(), names),
        names => ("auto".to_owned(), names),
    };
    match run(&methods.split(',').collect::<Vec<_>>(), names) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("test set-up ... FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
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
