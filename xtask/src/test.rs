//! `cargo xtask test`: everything that can be tested, in the order of its cost.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{
    dist,
    ebpf::{self, Checked},
    progress::say,
    scenarios::{self, Tally},
    setup,
};

/// Options of `cargo xtask test`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// One kernel instead of five
    #[arg(long)]
    quick: bool,
}

/// Runs everything; an error when anything failed.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure(setup::ALL)?;
    let mut tally = Tally::default();
    step(&mut tally, "format", cargo(&["fmt", "--all", "--check"]));
    step(
        &mut tally,
        "clippy",
        cargo(&[
            "clippy",
            "--quiet",
            "--locked",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    );
    unit_tests(&mut tally)?;
    match ebpf::check() {
        Ok(Checked::Same) => tally.pass("eBPF object"),
        Ok(Checked::OtherToolchain(object)) => {
            tally.pass("eBPF object (another toolchain: rebuilt)");
            // SAFETY: no other thread runs yet that could read the environment.
            unsafe { std::env::set_var("PGFORK_TRACE_EBPF_OBJECT", object) };
        }
        Err(error) => tally.fail("eBPF object", &error),
    }
    let product = dist::build()?;
    let guest = scenarios::build_guest()?;
    let out = dist::workspace().join("target/scenarios");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let jobs = if args.quick {
        scenarios::QUICK
    } else {
        scenarios::MATRIX
    };
    say(format_args!(
        "scenarios in {} guests; what they wrote goes to {}",
        jobs.len(),
        out.display()
    ));
    let verdicts = scenarios::run_all(jobs, &product, &guest, &out)?;
    verdicts.print();
    tally.passed += verdicts.passed;
    tally.failed += verdicts.failed;
    match validate(&out) {
        Ok(lines) => tally.pass(&format!("{lines} JSON lines fit docs/json-schema.json")),
        Err(error) => tally.fail("JSON lines", &error),
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    Ok(())
}

impl Tally {
    fn pass(&mut self, what: &str) {
        println!("test {what} ... ok");
        self.passed += 1;
    }

    fn fail(&mut self, what: &str, why: &anyhow::Error) {
        println!("test {what} ... FAILED: {why:#}");
        self.failed += 1;
    }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(dist::workspace());
    command
}

fn step(tally: &mut Tally, what: &str, mut command: Command) {
    match crate::process::run(&mut command) {
        Ok(()) => tally.pass(what),
        Err(error) => tally.fail(what, &error),
    }
}

/// Unit, command line and native tests; their numbers are read from cargo's own report.
fn unit_tests(tally: &mut Tally) -> Result<()> {
    let mut command = cargo(&["test", "--quiet", "--locked", "--no-fail-fast"]);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("no pipe to cargo test")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if let Some((passed, failed)) = counts(&line) {
            tally.passed += passed;
            tally.failed += failed;
        }
    }
    if !child.wait()?.success() && tally.failed == 0 {
        tally.failed += 1;
    }
    Ok(())
}

/// Passed and failed of "test result: ok. 3 passed; 0 failed; ...".
fn counts(line: &str) -> Option<(usize, usize)> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        rest.split("; ")
            .find_map(|part| part.strip_suffix(word)?.trim().parse().ok())
    };
    Some((number("passed")?, number("failed")?))
}

/// Checks every JSON line that the scenarios left against the committed schema.
fn validate(out: &Path) -> Result<usize> {
    let schema = fs::read_to_string(dist::workspace().join("docs/json-schema.json"))?;
    let validator = jsonschema::validator_for(&serde_json::from_str(&schema)?)
        .map_err(|error| anyhow::anyhow!("docs/json-schema.json: {error}"))?;
    let mut lines = 0;
    for guest in fs::read_dir(out)? {
        for file in fs::read_dir(guest?.path())? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            for line in fs::read_to_string(&path)?.lines() {
                let value = serde_json::from_str(line)
                    .with_context(|| format!("{}: {line}", path.display()))?;
                if let Err(error) = validator.validate(&value) {
                    bail!("{}: {error}: {line}", path.display());
                }
                lines += 1;
            }
        }
    }
    if lines == 0 {
        bail!("the scenarios left no JSON line");
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_cargo() {
        let line = "test result: ok. 62 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(counts(line), Some((62, 1)));
        assert_eq!(counts("running 3 tests"), None);
    }
}
