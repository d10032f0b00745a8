//! `pgfork-trace probes`: what would be watched on this kernel, without loading anything; with
//! `--load`, whether the kernel takes each program, and at what cost to its verifier.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::Result;
use serde::Serialize;

use crate::{
    capture::{self, Loaded},
    kernel::{
        self, btf,
        plan::{Method, Plan, row},
        symbols::VARIABLES,
    },
};

/// One check on this kernel.
#[derive(Debug, Serialize)]
struct Probe {
    /// The check, by the function that it is named after.
    check: &'static str,
    /// Kernel function that is hooked here, or the check's own.
    function: &'static str,
    /// Whether its prototype is the expected one.
    known: bool,
    /// Why only some of its calls are seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    partly: Option<String>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    checks: Vec<Probe>,
    variables_hidden: Vec<&'static str>,
    /// With `--load`.
    #[serde(skip_serializing_if = "Option::is_none")]
    programs: Option<Vec<Loaded>>,
}

/// Prints the plan.
///
/// # Errors
/// When the kernel does not show its types, nothing may be loaded, or the output is gone.
pub fn run(json: bool, method: Option<Method>, load: bool) -> Result<()> {
    let mut report = read()?;
    if load {
        let settings = capture::Settings {
            method,
            all_children: true,
            ..capture::Settings::default()
        };
        report.programs = Some(capture::load_all(&settings)?);
    }
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, &report)?;
        return Ok(writeln!(out)?);
    }
    writeln!(out, "Kernel {}", report.kernel)?;
    if method == Some(Method::Tracepoint) {
        writeln!(
            out,
            "Method tracepoint: no function of the fork path is hooked; fork() of each postmaster's C library is."
        )?;
    }
    for probe in &report.checks {
        match probe.why.as_ref().or(probe.partly.as_ref()) {
            None => writeln!(out, "  {:<30} can be hooked", probe.function)?,
            Some(why) if probe.known => {
                writeln!(out, "  {:<30} can be hooked: {why}", probe.function)?
            }
            Some(why) => writeln!(out, "  {:<30} cannot be seen: {why}", probe.function)?,
        }
    }
    if !report.variables_hidden.is_empty() {
        writeln!(
            out,
            "Not shown by the kernel, read from /proc instead: {}",
            report.variables_hidden.join(", ")
        )?;
    }
    for loaded in report.programs.iter().flatten() {
        let name = format!("{} ({})", loaded.program, loaded.method.name());
        match (&loaded.error, loaded.verified_instructions) {
            (Some(why), _) => writeln!(out, "  {name:<50} is refused: {why}")?,
            (None, Some(count)) => writeln!(out, "  {name:<50} {count:>7} instructions verified")?,
            (None, None) => writeln!(out, "  {name:<50} can be loaded")?,
        }
    }
    Ok(())
}

fn read() -> Result<Report> {
    let plan = Plan::choose(&kernel::open_btf(Path::new(btf::VMLINUX))?)?;
    let symbols = kernel::shown_symbols();
    let known = plan.hooks.iter().map(|hook| Probe {
        check: row(hook.check).function(),
        function: hook.alternative.function,
        known: true,
        partly: symbols.partly_seen(hook.alternative.function),
        why: None,
    });
    let unknown = plan.not_seen.iter().map(|not_seen| Probe {
        check: row(not_seen.check).function(),
        function: row(not_seen.check).function(),
        known: false,
        partly: None,
        why: Some(not_seen.why.clone()),
    });
    Ok(Report {
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        checks: known.chain(unknown).collect(),
        variables_hidden: VARIABLES
            .into_iter()
            .filter(|variable| !symbols.addresses.contains_key(*variable))
            .collect(),
        programs: None,
    })
}
