//! Tasks of the pgfork-trace workspace: `cargo xtask --help`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool for developers: people read its output"
)]

mod bench;
mod cache;
mod demo;
mod dist;
mod docs;
mod ebpf;
mod emulator;
mod headroom;
mod matrix;
mod process;
mod progress;
mod scenarios;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit status of a task that could not do its work; `vm` uses the guest's status otherwise.
const FAILED: u8 = 125;

#[derive(Parser)]
#[command(name = "cargo xtask", about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Let a connection be refused in a guest, and show what psql and pgfork-trace say
    Demo(demo::Args),
    /// Run all tests: format, clippy, unit, command line, native, object, scenarios in guests
    Test(test::Args),
    /// Measure what watching costs: forks, connections, mappings, memory, start
    Bench(bench::Args),
    /// Install what the other tasks need (Debian 12 or 13, as root; does nothing the second time)
    Setup,
    /// Run a command on a Debian kernel with a real PostgreSQL, in QEMU
    Vm(vm::cli::Args),
    /// Put all kernels and root filesystems of `vm` into the cache
    Images {
        /// Get them anew
        #[arg(long)]
        refresh: bool,
    },
    /// Build the eBPF object, or check that the committed one is what the source gives
    Ebpf(ebpf::Args),
    /// Build the static release binary into target/dist
    Dist,
    /// Write the pages that come from the last run of all tests: attribution, kernel support, verifier
    Docs,
}

fn main() -> ExitCode {
    process::catch_interrupts();
    let result = match Cli::parse().task {
        Task::Demo(args) => demo::main(&args).map(|()| ExitCode::SUCCESS),
        Task::Test(args) => test::main(&args).map(|()| ExitCode::SUCCESS),
        Task::Bench(args) => bench::main(&args).map(|()| ExitCode::SUCCESS),
        Task::Setup => setup::ensure(setup::ALL).map(|()| ExitCode::SUCCESS),
        Task::Vm(args) => vm::cli::main(args),
        Task::Images { refresh } => vm::prepare(refresh).map(|()| ExitCode::SUCCESS),
        Task::Ebpf(args) => ebpf::main(&args).map(|()| ExitCode::SUCCESS),
        Task::Docs => docs::main().map(|()| ExitCode::SUCCESS),
        Task::Dist => dist::main().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(FAILED)
    })
}
