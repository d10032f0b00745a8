//! `cargo xtask test`: everything that can be tested, in the order of its cost.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{
    dist, docs,
    ebpf::{self, Checked},
    progress::say,
    scenarios::{self, Job, Programs, Tally},
    setup,
};

/// The test that needs the whole types of the kernels.
const WHOLE_TYPES: &str = "kernel::proof::whole_files_are_read_as_bpftool_reads_them";

/// Of a failure, in the last lines.
const FAILURE_CHARS: usize = 400;

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
    let mut object = None;
    match ebpf::check() {
        Ok(Checked::Same) => tally.pass("eBPF object"),
        Ok(Checked::OtherToolchain(rebuilt)) => {
            tally.pass("eBPF object (another toolchain: rebuilt)");
            object = Some(rebuilt);
        }
        Err(error) => tally.fail("eBPF object", &error),
    }
    let programs = Programs {
        product: dist::build(object.as_deref())?,
        guest: scenarios::build_guest()?,
        fixture: scenarios::build_fixture()?,
    };
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
    let verdicts = guests(&mut tally, jobs, &programs, &out)?;
    verdicts.print();
    verdicts.matrix.save(&out)?;
    verdicts.headroom.save(&out)?;
    if !args.quick {
        match docs::check(&out) {
            Ok(pages) => {
                for (page, held) in pages {
                    match held {
                        Ok(said) => tally.pass(&format!("{page}: {said}")),
                        Err(error) => tally.fail(page, &error),
                    }
                }
            }
            Err(error) => tally.fail("docs", &error),
        }
    }
    tally.passed += verdicts.passed;
    tally.failures.extend(verdicts.failures);
    match whole_types(&out, args.quick) {
        Ok(()) => tally.pass("the kernels' types are read as bpftool reads them"),
        Err(error) => tally.fail("the kernels' types", &error),
    }
    match validate(&out) {
        Ok(lines) => tally.pass(&format!(
            "{lines} JSON lines and documents fit their schemas"
        )),
        Err(error) => tally.fail("JSON lines", &error),
    }
    print!("{}", tally.closing());
    if !tally.failures.is_empty() {
        bail!("{} tests failed", tally.failures.len());
    }
    Ok(())
}

/// All jobs; beside them, at no cost, the guest that only waits.
fn guests(tally: &mut Tally, jobs: &[Job], programs: &Programs, out: &Path) -> Result<Tally> {
    let (verdicts, hung) = thread::scope(|scope| {
        let hung = scope.spawn(scenarios::hung);
        let verdicts = scenarios::run_all(jobs, programs, out);
        (verdicts, hung.join())
    });
    match hung.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))) {
        Ok(()) => tally.pass("a guest that hangs is ended"),
        Err(error) => tally.fail("a guest that hangs is ended", &error),
    }
    verdicts
}

impl Tally {
    /// What failed, each once more in a line, and the numbers; what was skipped is named only if
    /// something was.
    fn closing(&self) -> String {
        let mut text = String::new();
        for failure in &self.failures {
            let line = failure.split_whitespace().collect::<Vec<_>>().join(" ");
            text.push_str("failed: ");
            text.extend(line.chars().take(FAILURE_CHARS));
            text.push('\n');
        }
        let skipped = match self.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} skipped"),
        };
        let _ = writeln!(
            text,
            "{} passed, {} failed{skipped}",
            self.passed,
            self.failures.len()
        );
        text
    }

    fn pass(&mut self, what: &str) {
        println!("test {what} ... ok");
        self.passed += 1;
    }

    fn fail(&mut self, what: &str, why: &anyhow::Error) {
        println!("test {what} ... FAILED: {why:#}");
        self.failures.push(format!("{what}: {why:#}"));
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

/// Unit, command line and native tests; their numbers are read from cargo's own report, and the
/// skipped ones, which that counts as passed, from what they say.
fn unit_tests(tally: &mut Tally) -> Result<()> {
    let mut child = cargo(&["test", "--quiet", "--locked", "--no-fail-fast"])
        // It runs after the guests, with what they leave.
        .args(["--", "--skip", WHOLE_TYPES])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("no pipe to cargo test")?;
    let stderr = child.stderr.take().context("no pipe to cargo test")?;
    let skipped = thread::spawn(move || {
        let mut skipped = 0;
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
            skipped += usize::from(is_skipped(&line));
        }
        skipped
    });
    let before = tally.failures.len();
    let mut names = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        names.extend(failed_name(&line).map(str::to_owned));
        if let Some((passed, failed)) = counts(&line) {
            tally.passed += passed;
            names.resize(failed, "a test of cargo test".to_owned());
            tally.failures.append(&mut names);
        }
    }
    let skipped = skipped.join().unwrap_or_default();
    tally.passed = tally.passed.saturating_sub(skipped);
    tally.skipped += skipped;
    if !child.wait()?.success() && tally.failures.len() == before {
        tally.failures.push("cargo test".to_owned());
    }
    Ok(())
}

/// Whether a test says that it did not run; progress marks of `--quiet` are of the other stream.
fn is_skipped(line: &str) -> bool {
    line.starts_with("skipped: ")
}

/// The test of "---- NAME stdout ----", which heads what a failed one printed.
fn failed_name(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
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

/// Holds the reader of BTF to what bpftool says of the whole types of the kernels that ran.
fn whole_types(out: &Path, quick: bool) -> Result<()> {
    let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
    let mut kernels = 0;
    for (series, guest) in scenarios::fixture_outs(out) {
        let types = guest.join("vmlinux");
        if quick && !types.exists() {
            continue;
        }
        let target = directory.path().join(series.name());
        fs::create_dir(&target)?;
        fs::copy(&types, target.join("vmlinux"))
            .with_context(|| format!("the guest left no {}", types.display()))?;
        kernels += 1;
    }
    let said = crate::process::capture(
        cargo(&[
            "test",
            "--locked",
            "--package",
            "pgfork-trace",
            "--lib",
            "--",
        ])
        .args(["--exact", WHOLE_TYPES, "--nocapture"])
        .env("PGFORK_TRACE_FULL_BTF", directory.path()),
    )?;
    let read = said
        .lines()
        .filter(|line| line.starts_with("read: Linux "))
        .count();
    if read != kernels || kernels == 0 {
        bail!("{read} of {kernels} kernels were read: {said}");
    }
    Ok(())
}

/// Checks all JSON that the scenarios left against the committed schemas: lines of `trace`, and
/// documents of `check`.
fn validate(out: &Path) -> Result<usize> {
    let lines = schema("docs/json-schema.json")?;
    let documents = schema("docs/check-schema.json")?;
    let mut checked = 0;
    for guest in fs::read_dir(out)? {
        let guest = guest?.path();
        // Beside the guests' directories lie the verdicts of all.
        if !guest.is_dir() {
            continue;
        }
        for file in fs::read_dir(guest)? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let is_document = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("check-"));
            let (validator, values) = if is_document {
                (&documents, vec![text.as_str()])
            } else {
                (&lines, text.lines().collect())
            };
            for value in values {
                let parsed = serde_json::from_str(value)
                    .with_context(|| format!("{}: {value}", path.display()))?;
                if let Err(error) = validator.validate(&parsed) {
                    bail!("{}: {error}: {value}", path.display());
                }
                checked += 1;
            }
        }
    }
    if checked == 0 {
        bail!("the scenarios left no JSON");
    }
    Ok(checked)
}

fn schema(path: &str) -> Result<jsonschema::Validator> {
    let text = fs::read_to_string(dist::workspace().join(path))
        .with_context(|| format!("cannot read {path}"))?;
    jsonschema::validator_for(&serde_json::from_str(&text)?)
        .map_err(|error| anyhow::anyhow!("{path}: {error}"))
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

    #[test]
    fn skipped_tests_are_in_the_closing_line() {
        assert!(is_skipped("skipped: native::fork: not root"));
        assert!(!is_skipped("warning: skipped: no"));
        let mut tally = Tally::default();
        tally.passed = 3;
        assert_eq!(tally.closing(), "3 passed, 0 failed\n");
        tally.skipped = 2;
        assert_eq!(tally.closing(), "3 passed, 0 failed, 2 skipped\n");
    }

    #[test]
    fn the_last_lines_name_what_failed() {
        let mut tally = Tally::default();
        tally.fail("docs", &anyhow::anyhow!("two\nlines"));
        tally.failures.push("x".repeat(2 * FAILURE_CHARS));
        let text = tally.closing();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "failed: docs: two lines");
        assert_eq!(lines[1].len(), "failed: ".len() + FAILURE_CHARS);
        assert_eq!(lines[2], "0 passed, 2 failed");
        assert_eq!(
            failed_name("---- cli::help_fits stdout ----"),
            Some("cli::help_fits")
        );
        assert_eq!(failed_name("---- "), None);
    }
}
