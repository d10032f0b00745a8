//! The release binary: static, small, for any Linux of its architecture.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};

use crate::progress::Step;
use crate::{cache, process};

const NAME: &str = "pgfork-trace";
const MAX_SIZE: u64 = 6_000_000;
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Builds the binary and prints where it is.
pub(crate) fn main() -> Result<()> {
    let path = build(None)?;
    println!("{} ({} bytes)", path.display(), fs::metadata(&path)?.len());
    Ok(())
}

/// Builds the binary with another eBPF object than the committed one, if one is given; checks it,
/// and returns its path.
pub(crate) fn build(object: Option<&Path>) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let step = Step::start(format!("release binary for {target}"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--release", "--locked", "-p", NAME])
        .args(["--target", &target])
        .current_dir(workspace())
        .env("RUSTFLAGS", FLAGS);
    if let Some(object) = object {
        command.env("PGFORK_TRACE_EBPF_OBJECT", object);
    }
    process::run(&mut command)?;
    let built = target_dir().join(target).join("release").join(NAME);
    check(&built).with_context(|| format!("{} is not fit for release", built.display()))?;
    let dir = target_dir().join("dist");
    let path = dir.join(NAME);
    cache::create_dir(&dir)?;
    // In one step: a guest may be about to copy the former one.
    let fresh = tempfile::NamedTempFile::new_in(&dir)?;
    fs::copy(&built, fresh.path()).with_context(|| format!("cannot copy {}", built.display()))?;
    fresh
        .persist(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    step.done();
    Ok(path)
}

/// The root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

fn target_dir() -> PathBuf {
    // Relative to where cargo was started, which is what cargo does.
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn check(path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    let size = bytes.len() as u64;
    if size > MAX_SIZE {
        bail!("it has {size} bytes, more than {MAX_SIZE}");
    }
    check_static(&bytes)
}

/// Fails if the program needs a loader or a library at run time.
fn check_static(bytes: &[u8]) -> Result<()> {
    let file: ElfFile64 = ElfFile64::parse(bytes).context("it is no 64-bit ELF file")?;
    let endian = file.endian();
    for segment in file.elf_header().program_headers(endian, bytes)? {
        if segment.p_type(endian) == elf::PT_INTERP {
            bail!("it asks for a dynamic loader (PT_INTERP)");
        }
        let entries = segment.dynamic(endian, bytes)?.unwrap_or_default();
        if entries
            .iter()
            .any(|entry| entry.d_tag(endian) == elf::DT_NEEDED)
        {
            bail!("it needs shared libraries (DT_NEEDED)");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused() {
        let shell = fs::read("/bin/sh").expect("a shell");
        assert!(
            check_static(&shell)
                .unwrap_err()
                .to_string()
                .contains("PT_INTERP")
        );
        assert!(check_static(b"#!/bin/sh").is_err());
    }
}
