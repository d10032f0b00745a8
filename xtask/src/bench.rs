//! `cargo xtask bench`: what watching costs, in a guest and natively. Prints figures beside their
//! goals; how good they are does not change the exit status.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, ValueEnum};

use crate::{
    dist, process,
    progress::say,
    scenarios,
    vm::{self, Clock, CopyIn, Postgres, Series, VmSpec},
};

/// Where to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Place {
    /// In a guest, by every method
    Vm,
    /// On this host, by the method that its kernel allows
    Native,
}

/// Options of `cargo xtask bench`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Measure in one place only
    #[arg(long, value_enum, value_name = "PLACE")]
    only: Option<Place>,
    /// Kernel series of the guest
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Series,
    /// Major version of PostgreSQL in the guest
    #[arg(long, value_enum, default_value = "15")]
    pg: Postgres,
    /// What time is in the guest
    #[arg(long, value_enum, default_value = "instructions")]
    clock: Clock,
    /// Attach methods to measure in the guest
    #[arg(long, default_value = "fexit,kprobe,tracepoint")]
    methods: String,
    /// Promise memory strictly in the guest (vm.overcommit_memory = 2): one more check is watched
    #[arg(long)]
    strict: bool,
    /// Pairs of runs with and without the tool, for each ratio
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
}

/// Measures; an error when something could not be measured.
pub(crate) fn main(args: &Args) -> Result<()> {
    let product = dist::build(None)?;
    let guest = scenarios::build_guest()?;
    let mut failed = Vec::new();
    if args.only != Some(Place::Native)
        && let Err(error) = in_guest(args, &product, &guest)
    {
        failed.push(format!("guest: {error:#}"));
    }
    process::check_interrupt()?;
    if args.only != Some(Place::Vm)
        && let Err(error) = natively(args, &product, &guest)
    {
        failed.push(format!("natively: {error:#}"));
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

fn in_guest(args: &Args, product: &Path, guest: &Path) -> Result<()> {
    let methods = u32::try_from(args.methods.split(',').count())?;
    // Some 20 s for each pair of each ratio, most of it the runs themselves.
    let minutes = 1 + methods * (1 + args.pairs / 2);
    say(format_args!(
        "booting kernel {} with PostgreSQL {}; takes up to {minutes} min",
        args.kernel.name(),
        args.pg.major()
    ));
    let copy = |source: &Path| CopyIn {
        source: source.to_owned(),
        target: None,
    };
    let pairs = args.pairs.to_string();
    let mode = if args.strict { "2" } else { "0" };
    let outcome = vm::run(&VmSpec {
        copy: vec![copy(product), copy(guest)],
        clock: args.clock,
        live: true,
        timeout: Duration::from_secs(u64::from(minutes) * 120),
        ..VmSpec::new(
            args.kernel,
            args.pg,
            [
                "pgfork-trace-guest",
                "bench",
                "--methods",
                &args.methods,
                "--pairs",
                &pairs,
                "--overcommit",
                mode,
            ],
        )
    })?;
    if outcome.status != 0 {
        bail!("not everything could be measured");
    }
    Ok(())
}

fn natively(args: &Args, product: &Path, guest: &Path) -> Result<()> {
    println!();
    if !rustix::process::geteuid().is_root() {
        println!("natively: skipped, needs root");
        return Ok(());
    }
    let Some(bindir) = server_programs() else {
        println!("natively: skipped, no PostgreSQL server with pgbench is installed here");
        return Ok(());
    };
    say("measuring on this host; a run elsewhere on it spoils the ratios");
    let directory = tempfile::Builder::new()
        .prefix("pgfork-bench-")
        .tempdir()
        .context("cannot create a temporary directory")?;
    process::run(
        Command::new(guest)
            .args(["bench", "--pairs", &args.pairs.to_string(), "--tool"])
            .arg(product)
            .arg("--native")
            .arg(directory.path())
            .arg("--bindir")
            .arg(&bindir),
    )
}

/// The directory with the newest server's programs.
fn server_programs() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.parse().ok()?;
            Some((major, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    let configured = process::capture(Command::new("pg_config").arg("--bindir"))
        .ok()
        .map(|text| PathBuf::from(text.trim()));
    let newest_first = versions.into_iter().rev().map(|(_, path)| path);
    newest_first.chain(configured).find(|directory| {
        ["initdb", "postgres", "pgbench"]
            .iter()
            .all(|program| directory.join(program).is_file())
    })
}
