//! What the tasks need on a Debian machine, and how it gets there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{Step, say};
use crate::{cache, emulator, process};

/// A group of tools that a task cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Run guests: QEMU, and what makes kernels and root filesystems bootable.
    Vm,
    /// Build the eBPF object: a stable Rust with the BPF target, LLVM, and bpf-linker.
    Ebpf,
}

/// Everything.
pub(crate) const ALL: &[Need] = &[Need::Vm, Need::Ebpf];

const VM_PACKAGES: &[&str] = &[
    "busybox-static",
    "cpio",
    "debian-archive-keyring",
    "e2fsprogs",
    "kmod",
    "mmdebstrap",
    "xz-utils",
    "zstd",
];

// rustc-web and LLVM 22 are what Debian keeps current in stable releases for its browsers.
const EBPF_PACKAGES: &[&str] = &[
    "bpftool",
    "gcc",
    "libc6-dev",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "rustc-web",
];

const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

impl Need {
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Vm => VM_PACKAGES,
            Self::Ebpf => EBPF_PACKAGES,
        }
    }
}

/// Installs what is missing of `needs`; quick when nothing is.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let wanted: Vec<&str> = needs
        .iter()
        .flat_map(|need| need.packages())
        .copied()
        .collect();
    let missing = missing(&wanted)?;
    if !missing.is_empty() {
        install(&missing)?;
    }
    if needs.contains(&Need::Vm) {
        emulator::ensure()?;
    }
    if needs.contains(&Need::Ebpf) {
        bpf_linker()?;
    }
    Ok(())
}

/// The directory that holds the tools built here (`bin/bpf-linker`).
pub(crate) fn tools_dir() -> Result<PathBuf> {
    Ok(cache::dir()?.join("tools"))
}

fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(wanted)
        .output()
        .context("cannot run dpkg-query: the tasks need Debian 12 or 13")?;
    // Its exit status only says that some of the packages are unknown: they are missing, then.
    Ok(not_installed(
        wanted,
        &String::from_utf8_lossy(&output.stdout),
    ))
}

fn not_installed<'a>(wanted: &[&'a str], listing: &str) -> Vec<&'a str> {
    let installed: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    wanted
        .iter()
        .filter(|name| !installed.contains(name))
        .copied()
        .collect()
}

/// Installs packages from the archive; removes none.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let arguments = ["install", "--yes", "--no-remove", "--no-install-recommends"];
    if !rustix::process::geteuid().is_root() {
        bail!(
            "these packages are missing, and installing them takes root; run\n  \
             sudo sh -c 'apt-get update && apt-get {} {}'",
            arguments.join(" "),
            packages.join(" ")
        );
    }
    let step = Step::start(format!("installing {}", packages.join(" ")));
    process::capture(Command::new("apt-get").args(["--quiet", "update"]))?;
    process::capture(
        Command::new("apt-get")
            .arg("--quiet")
            .args(arguments)
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .context("apt could not install what is missing (see the packages named above)")?;
    step.done();
    Ok(())
}

fn bpf_linker() -> Result<()> {
    let tools = tools_dir()?;
    let binary = tools.join("bin/bpf-linker");
    if binary.exists() {
        return Ok(());
    }
    let _lock = cache::lock(&tools)?;
    if binary.exists() {
        return Ok(());
    }
    let step = Step::start("building bpf-linker (a minute or two)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::capture(
        Command::new(cargo)
            .args(["install", "bpf-linker", "--version", "^0.13", "--locked"])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(&tools)
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .env_remove("RUSTFLAGS"),
    )
    .context("cannot build bpf-linker")?;
    step.done();
    say(format_args!("installed {}", binary.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_installed_and_unknown_packages_are_missing() {
        let listing = "cpio installed\nkmod config-files\nqemu-system-x86-data installed\n";
        assert_eq!(
            not_installed(&["cpio", "kmod", "zstd", "qemu-system-x86"], listing),
            ["kmod", "zstd", "qemu-system-x86"]
        );
    }
}
