//! The command: parse, run, say how it went by the exit status.

use std::{io::Write as _, process::ExitCode, time::Instant};

use pgfork_trace::{
    causes, check,
    cli::{self, Command, Plan},
    memory::{self, Spare},
    output::{Reporter, Surroundings},
    probes, selftest, trace,
};

#[global_allocator]
static ALLOCATOR: Spare = Spare::new();

/// Could not do the job.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let started = Instant::now();
    let plan = match cli::parse(std::env::args_os()) {
        Ok(plan) => plan,
        Err(error) => error.exit(),
    };
    match run(plan, started) {
        Ok(status) => ExitCode::from(status),
        // Nobody reads any more: nobody can be told.
        Err(error) if trace::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "pgfork-trace: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// The exit status.
fn run(plan: Plan, started: Instant) -> anyhow::Result<u8> {
    memory::prepare(&ALLOCATOR);
    match plan.command {
        Command::Check(what) => check::run(&what, &plan.output).map(check::Seen::status),
        Command::Probes { load } => probes::run(plan.output.json, plan.method, load).map(|()| 0),
        Command::Causes(id) => causes::run(id.as_deref(), plan.output.json).map(|()| 0),
        Command::Selftest => {
            if plan.verbose > 0 {
                pgfork_trace::diagnostics::to_stderr(plan.verbose);
            }
            let options = selftest::Options {
                method: plan.method,
                verbose: plan.verbose > 0,
            };
            selftest::run(&options, &plan.output).map(any)
        }
        Command::Trace(what) => {
            if plan.verbose > 0 {
                pgfork_trace::diagnostics::to_stderr(plan.verbose);
            }
            let mut reporter = Reporter::new(
                &plan.output,
                &Surroundings::read(),
                std::io::stdout(),
                std::io::stderr(),
            )?;
            let options = trace::Options {
                plan: what,
                method: plan.method,
                verbose: plan.verbose > 0,
                started,
            };
            // One thread: a second one would cost 2 MiB of the commit charge that may be short.
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(trace::run(&options, &mut reporter))
                .map(any)
        }
    }
}

/// 1 where there was any.
fn any(count: u64) -> u8 {
    u8::from(count > 0)
}
