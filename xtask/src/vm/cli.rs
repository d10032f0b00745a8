//! `cargo xtask vm`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::{Cgroup, Clock, CopyIn, Init, Postgres, Series, VmSpec};
use crate::dist;
use crate::progress::say;

/// Arguments of `cargo xtask vm`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The exit status is that of the command; 125 if the guest itself failed.\n\
    The release binary, built of the sources as they are, is at /usr/local/bin/pgfork-trace."
)]
pub(crate) struct Args {
    /// Kernel series
    #[arg(long)]
    kernel: Series,
    /// Major version of PostgreSQL; its cluster exists and is not started
    #[arg(long = "pg")]
    postgres: Postgres,
    /// cgroup hierarchy
    #[arg(long, default_value = "v2")]
    cgroup: Cgroup,
    /// First process
    #[arg(long, default_value = "plain")]
    init: Init,
    /// What the guest's time is: the host's, or instructions (slower; for measurements)
    #[arg(long, default_value = "host")]
    clock: Clock,
    /// Memory of the guest
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    memory: u32,
    /// Add a word to the kernel's command line
    #[arg(long = "append", value_name = "WORD", allow_hyphen_values = true)]
    kernel_arguments: Vec<String>,
    /// Put what the command leaves in /out into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Copy a file or directory into the guest, FILE[:/PATH]; by default to /usr/local/bin if it
    /// is executable, else to /root
    #[arg(long, value_name = "FILE", value_parser = CopyIn::parse)]
    copy: Vec<CopyIn>,
    /// Keep the kernel's console in this file
    #[arg(long, value_name = "FILE")]
    keep_console: Option<PathBuf>,
    /// Limit for the whole run
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Get kernel and root filesystem anew
    #[arg(long)]
    refresh: bool,
    /// Say how long it took
    #[arg(long)]
    times: bool,
    /// The command, run as root
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command and passes its exit status on.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let mut spec = VmSpec::new(args.kernel, args.postgres, args.command);
    spec.cgroup = args.cgroup;
    spec.init = args.init;
    spec.clock = args.clock;
    spec.memory_mib = args.memory;
    spec.kernel_arguments = args.kernel_arguments;
    spec.out = args.out;
    let product = CopyIn {
        source: dist::build(None)?,
        target: None,
    };
    spec.copy = std::iter::once(product).chain(args.copy).collect();
    spec.keep_console = args.keep_console;
    spec.timeout = Duration::from_secs(args.timeout);
    spec.refresh = args.refresh;
    spec.live = true;
    let outcome = super::run(&spec)?;
    if args.times {
        let [boot, total] = [outcome.boot, outcome.total].map(|time| time.as_secs_f64());
        say(format_args!(
            "kernel {} ({}, {}): {boot:.1} s to the command, {total:.1} s in all",
            outcome.kernel.release, outcome.kernel.version, outcome.kernel.suite
        ));
    }
    Ok(ExitCode::from(outcome.status))
}
