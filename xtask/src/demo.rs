//! `cargo xtask demo`: a connection fails, and this is what each side says about it.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, ValueEnum};

use crate::{
    dist,
    progress::say,
    scenarios,
    setup::{self, Need},
    vm::{self, CopyIn, Postgres, Series, VmSpec},
};

/// What refuses the connection.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// Strict overcommit: vm.overcommit_memory = 2
    CommitLimit,
    /// The pids limit of a control group
    PidsCgroupMax,
    /// The user's process limit
    RlimitNproc,
}

/// Options of `cargo xtask demo`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// What refuses the connection
    #[arg(value_enum, default_value_t = Cause::CommitLimit)]
    cause: Cause,
    /// Kernel series
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Series,
    /// Major version of PostgreSQL
    #[arg(long, value_enum, default_value = "15")]
    pg: Postgres,
}

/// Sets everything up, boots a guest, and lets a connection be refused in it.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Vm])?;
    let product = dist::build(None)?;
    let guest = scenarios::build_guest()?;
    let cause = args
        .cause
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    say(format_args!(
        "booting kernel {} with PostgreSQL {}; this takes about 15 s",
        args.kernel.name(),
        args.pg.major()
    ));
    let copy = |source| CopyIn {
        source,
        target: None,
    };
    let outcome = vm::run(&VmSpec {
        copy: vec![copy(product), copy(guest)],
        live: true,
        timeout: Duration::from_secs(300),
        ..VmSpec::new(args.kernel, args.pg, ["pgfork-trace-guest", "demo", &cause])
    })?;
    if outcome.status != 0 {
        bail!("the demo ended with status {}", outcome.status);
    }
    Ok(())
}
