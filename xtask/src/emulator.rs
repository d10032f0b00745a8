//! QEMU: the system's own, or, where the archive's package would push out something installed
//! (a newer `qemu-utils` from backports, for one), a private copy in the cache.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{Step, say};
use crate::{cache, process};

const PROGRAM: &str = "qemu-system-x86_64";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where packages of Debian 12 still put some libraries.
const OLD_LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// What it takes to have QEMU here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is here.
    Nothing,
    /// The archive's package, and that removes nothing.
    Package,
    /// A private copy, of these packages.
    Copy(Vec<String>),
}

/// The archive's package.
pub(crate) const PACKAGE: &str = "qemu-system-x86";

/// Finds out what is missing; installs nothing.
pub(crate) fn missing() -> Result<Missing> {
    if on_path().is_some() || private()?.exists() {
        return Ok(Missing::Nothing);
    }
    let plan = match simulate() {
        Ok(plan) => plan,
        // Without root the package lists may be empty: installing it is then still what to try.
        Err(_) if !rustix::process::geteuid().is_root() => return Ok(Missing::Package),
        Err(error) => return Err(error),
    };
    if removals(&plan).is_empty() {
        return Ok(Missing::Package);
    }
    say(format_args!(
        "installing {PACKAGE} would remove {}: a private copy is unpacked instead",
        removals(&plan).join(" ")
    ));
    let packages = additions(&plan).into_iter().map(str::to_owned);
    Ok(Missing::Copy(packages.collect()))
}

/// The command that starts QEMU, with what a private copy needs to find its own files.
pub(crate) struct Emulator {
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

/// Which QEMU to start: the system's if there is one.
pub(crate) fn find() -> Result<Emulator> {
    if let Some(program) = on_path() {
        return Ok(Emulator {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
        });
    }
    let root = private()?;
    if !root.exists() {
        bail!("there is no QEMU: run `cargo xtask setup`");
    }
    Ok(of_root(&root))
}

fn of_root(root: &Path) -> Emulator {
    let firmware = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
    Emulator {
        program: root.join("usr/bin").join(PROGRAM).into(),
        arguments: firmware
            .iter()
            .flat_map(|dir| [OsString::from("-L"), root.join(dir).into()])
            .collect(),
        environment: vec![
            (
                "LD_LIBRARY_PATH",
                format!(
                    "{}:{}",
                    root.join(LIBRARIES).display(),
                    root.join(OLD_LIBRARIES).display()
                )
                .into(),
            ),
            ("QEMU_MODULE_DIR", root.join(LIBRARIES).join("qemu").into()),
        ],
    }
}

fn private() -> Result<PathBuf> {
    Ok(cache::dir()?.join("tools").join("qemu"))
}

fn on_path() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(PROGRAM))
        .find(|path| path.is_file())
}

fn simulate() -> Result<String> {
    if rustix::process::geteuid().is_root() {
        process::capture(Command::new("apt-get").args(["--quiet", "update"]))?;
    }
    process::capture(Command::new("apt-get").args([
        "install",
        "--simulate",
        "--no-install-recommends",
        PACKAGE,
    ]))
    .context("the archive offers no QEMU")
}

fn additions(plan: &str) -> Vec<&str> {
    words_after(plan, "Inst ")
}

fn removals(plan: &str) -> Vec<&str> {
    words_after(plan, "Remv ")
}

fn words_after<'a>(plan: &'a str, verb: &str) -> Vec<&'a str> {
    plan.lines()
        .filter_map(|line| line.strip_prefix(verb))
        .filter_map(|rest| rest.split_whitespace().next())
        .collect()
}

/// Unpacks the private copy.
pub(crate) fn unpack(packages: &[String]) -> Result<()> {
    let step = Step::start(format!("fetching {} packages for QEMU", packages.len()));
    cache::entry("tools", "qemu", false, |dir| {
        let archives = tempfile::tempdir().context("cannot create a temporary directory")?;
        process::capture(
            Command::new("apt-get")
                .args(["--quiet", "download"])
                .args(packages)
                .current_dir(archives.path()),
        )?;
        for archive in std::fs::read_dir(archives.path())? {
            process::capture(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(archive?.path())
                    .arg(dir),
            )?;
        }
        // Not only there: it must start.
        let emulator = of_root(dir);
        process::capture(
            Command::new(&emulator.program)
                .arg("--version")
                .envs(emulator.environment),
        )
        .map(|_| ())
    })?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = "Reading package lists...\n\
        Remv qemu-utils [1:10.0.2]\n\
        Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])\n\
        Inst qemu-system-x86 (1:7.2 Debian:12.15/oldstable [amd64])\n\
        Conf seabios (1.16.2-1 Debian:12.15/oldstable [all])\n";

    #[test]
    fn apts_plan_says_what_comes_and_what_would_go() {
        assert_eq!(additions(PLAN), ["seabios", "qemu-system-x86"]);
        assert_eq!(removals(PLAN), ["qemu-utils"]);
    }

    #[test]
    fn a_private_copy_looks_for_everything_under_its_own_root() {
        let emulator = of_root(Path::new("/cache/qemu"));
        assert_eq!(emulator.program, "/cache/qemu/usr/bin/qemu-system-x86_64");
        for path in emulator
            .arguments
            .iter()
            .filter(|argument| *argument != "-L")
            .chain(emulator.environment.iter().map(|(_, value)| value))
        {
            for part in path.to_string_lossy().split(':') {
                assert!(part.starts_with("/cache/qemu/"), "{part}");
            }
        }
    }
}
