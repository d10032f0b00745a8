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

/// bpf-linker, and what the object is stripped and looked at with.
const EBPF_PACKAGES: &[&str] = &["bpftool", "gcc", "libc6-dev", "llvm-22-dev"];

/// A compiler with a precompiled `core` for BPF. rustc-web and LLVM 22 are what Debian keeps
/// current in stable releases for its browsers.
const COMPILER_PACKAGES: &[&str] = &["libstd-rust-web-dev-bpf", "rustc-web"];

/// LLVM of `EBPF_PACKAGES`.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// Its version: bpf-linker reads what compilers up to this one write.
const LLVM_MAJOR: u32 = 22;

/// Packages of the archive for `needs`.
fn packages(needs: &[Need], nightly: bool) -> Vec<&'static str> {
    let mut wanted = Vec::new();
    if needs.contains(&Need::Vm) {
        wanted.extend(VM_PACKAGES);
    }
    if needs.contains(&Need::Ebpf) {
        wanted.extend(EBPF_PACKAGES);
        if !nightly {
            wanted.extend(COMPILER_PACKAGES);
        }
    }
    wanted
}

/// Installs what is missing of `needs`; quick when nothing is.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let nightly = needs.contains(&Need::Ebpf) && usable_nightly();
    let mut missing = missing(&packages(needs, nightly))?;
    let emulator = if needs.contains(&Need::Vm) {
        emulator::missing()?
    } else {
        emulator::Missing::Nothing
    };
    if emulator == emulator::Missing::Package {
        missing.push(emulator::PACKAGE);
    }
    // All in one: who has to call somebody with root does so once.
    if !missing.is_empty() {
        install(&missing)?;
    }
    if let emulator::Missing::Copy(packages) = emulator {
        emulator::unpack(&packages)?;
    }
    if needs.contains(&Need::Ebpf) {
        bpf_linker()?;
    }
    Ok(())
}

/// Whether rustup has a nightly that can build `core` for BPF, and whose bitcode bpf-linker reads.
pub(crate) fn usable_nightly() -> bool {
    let said = |command: &mut Command| -> Option<String> {
        let output = command.output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    };
    let components = said(Command::new("rustup").args([
        "component",
        "list",
        "--toolchain",
        "nightly",
        "--installed",
    ]));
    let version = said(Command::new("rustc").args(["+nightly", "-vV"]));
    matches!((components, version), (Some(components), Some(version)) if fits(&components, &version))
}

fn fits(components: &str, version: &str) -> bool {
    let llvm = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next());
    components.lines().any(|line| line == "rust-src")
        && llvm.is_some_and(|major| major.parse().is_ok_and(|major: u32| major <= LLVM_MAJOR))
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

const INSTALL: [&str; 4] = ["install", "--yes", "--no-remove", "--no-install-recommends"];

/// What somebody with root has to type.
fn by_hand(packages: &[&str]) -> String {
    format!(
        "sudo sh -c 'apt-get update && apt-get {} {}'",
        INSTALL.join(" "),
        packages.join(" ")
    )
}

/// Installs packages from the archive; removes none.
fn install(packages: &[&str]) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "these packages are missing, and installing them takes root; run\n  {}",
            by_hand(packages)
        );
    }
    let step = Step::start(format!("installing {}", packages.join(" ")));
    process::capture(Command::new("apt-get").args(["--quiet", "update"]))?;
    process::capture(
        Command::new("apt-get")
            .arg("--quiet")
            .args(INSTALL)
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

    #[test]
    fn rustc_web_is_not_needed_beside_a_nightly_that_does() {
        assert!(packages(ALL, false).contains(&"rustc-web"));
        assert!(!packages(ALL, true).contains(&"rustc-web"));
        assert!(packages(ALL, true).contains(&"llvm-22-dev"));
        assert!(!packages(&[Need::Vm], false).contains(&"llvm-22-dev"));
        let version = |llvm: &str| format!("rustc 1.97.0-nightly\nLLVM version: {llvm}\n");
        assert!(fits("rustc\nrust-src\n", &version("22.1.4")));
        assert!(!fits("rustc\n", &version("22.1.4")));
        assert!(!fits("rust-src\n", &version("23.1.0")));
        assert!(!fits("rust-src\n", "rustc 1.97.0"));
    }

    #[test]
    fn one_command_names_all_packages() {
        let text = by_hand(&["cpio", emulator::PACKAGE]);
        assert!(text.ends_with("cpio qemu-system-x86'"), "{text}");
        assert_eq!(text.matches("sudo").count(), 1);
    }
}
