//! Builds the eBPF object, and proves that the committed one is what the source gives.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{
    cache,
    process::{capture, run},
    progress::say,
    setup,
};

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "pgfork-trace/ebpf/pgfork-trace-x86_64.o";
const TOOLCHAIN: &str = "pgfork-trace/ebpf/toolchain.txt";
/// Debian's compiler, whose `core` for BPF is precompiled.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const OBJCOPY: &str = "/usr/lib/llvm-22/bin/llvm-objcopy";

/// Options of `cargo xtask ebpf`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Compare with the committed object instead of replacing it
    #[arg(long)]
    check: bool,
}

/// What a comparison of the committed object with a fresh build found.
pub(crate) enum Checked {
    /// Byte for byte the same.
    Same,
    /// Different bytes from a different toolchain: the rebuilt object, to be tested instead.
    OtherToolchain(PathBuf),
}

/// `cargo xtask ebpf [--check]`.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure(&[setup::Need::Ebpf])?;
    if args.check {
        return check().map(|_| ());
    }
    let root = workspace();
    let built = build()?;
    let object = root.join(OBJECT);
    if let Some(parent) = object.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(&built, &object).with_context(|| format!("cannot write {}", object.display()))?;
    fs::write(root.join(TOOLCHAIN), render(&versions()?))?;
    say(format_args!(
        "{OBJECT}: {} bytes",
        fs::metadata(&object)?.len()
    ));
    Ok(())
}

/// Rebuilds and compares. Differing bytes are an error only when the toolchain is the recorded one.
pub(crate) fn check() -> Result<Checked> {
    let root = workspace();
    let built = build()?;
    let committed = fs::read(root.join(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
    if fs::read(&built)? == committed {
        say(format_args!(
            "{OBJECT} is byte for byte what the source gives"
        ));
        return Ok(Checked::Same);
    }
    let recorded = parse(
        &fs::read_to_string(root.join(TOOLCHAIN))
            .with_context(|| format!("cannot read {TOOLCHAIN}"))?,
    );
    let differences = differences(&recorded, &versions()?);
    if differences.is_empty() {
        bail!(
            "{OBJECT} is not what the source gives, though the toolchain is the recorded one.\n\
             Run `cargo xtask ebpf` and commit the object; the fresh one is {}",
            built.display()
        );
    }
    say(format_args!(
        "{OBJECT} was built with other versions, so its bytes cannot be compared; the rebuilt object is tested instead:"
    ));
    for difference in &differences {
        say(format_args!("  {difference}"));
    }
    Ok(Checked::OtherToolchain(built))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Compiles, links, and strips DWARF and source lines; BTF stays. Returns the object.
fn build() -> Result<PathBuf> {
    let root = workspace();
    let target_dir = root.join("target/ebpf");
    let mut command = compiler()?;
    command
        .current_dir(&root)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&root).join("\u{1f}"))
        .env("PATH", path_with_linker()?)
        .args([
            "build",
            "--quiet",
            "--profile",
            "ebpf",
            "--locked",
            "--package",
            "pgfork-trace-ebpf",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    for inherited in [
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTUP_TOOLCHAIN",
        "RUSTC_WRAPPER",
    ] {
        command.env_remove(inherited);
    }
    run(&mut command)?;
    let linked = target_dir.join(TARGET).join("ebpf/pgfork-trace-ebpf");
    let object = target_dir.join("pgfork-trace-x86_64.o");
    run(Command::new(OBJCOPY)
        .arg("--strip-debug")
        // Source lines for the verifier's log: a megabyte of memory at run time, where a host
        // that is out of memory may have eight.
        .args(["--remove-section", ".BTF.ext"])
        .args(["--remove-section", ".rel.BTF.ext"])
        .arg(&linked)
        .arg(&object))?;
    Ok(object)
}

/// Debian's compiler where it is installed, else a rustup nightly that builds `core` itself.
fn compiler() -> Result<Command> {
    let mut command = Command::new("cargo");
    if debian_compiler() {
        command
            .env("RUSTC", DEBIAN_RUSTC)
            .env("RUSTC_BOOTSTRAP", "1");
        return Ok(command);
    }
    let nightly = capture(Command::new("rustup").args([
        "component",
        "list",
        "--toolchain",
        "nightly",
        "--installed",
    ]))
    .context(
        "neither Debian's rustc-web nor a rustup nightly is installed: run `cargo xtask setup`",
    )?;
    if !nightly.contains("rust-src") {
        bail!(
            "the rustup nightly lacks rust-src: `rustup component add --toolchain nightly rust-src`"
        );
    }
    command
        .arg("+nightly")
        .env_remove("RUSTC")
        .env("CARGO_UNSTABLE_BUILD_STD", "core");
    Ok(command)
}

fn debian_compiler() -> bool {
    Path::new("/usr/lib/rustlib/bpfel-unknown-none").is_dir() && Path::new(DEBIAN_RUSTC).is_file()
}

fn rustflags(root: &Path) -> Vec<String> {
    let mut flags = vec![
        "-Clink-arg=--btf".to_owned(),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
    ];
    // The same bytes wherever the sources and the registry lie.
    let mut remap =
        |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    if let Some(home) = std::env::home_dir() {
        let cargo_home =
            std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
        let sources = cargo_home.join("registry/src");
        remap(&sources, "registry");
        // The registry's own folder carries its name: two registries, the same bytes.
        for folder in fs::read_dir(&sources).into_iter().flatten().flatten() {
            remap(&folder.path(), "registry");
        }
    }
    remap(root, "pgfork-trace");
    flags
}

fn tools_dir() -> Result<PathBuf> {
    Ok(cache::dir()?.join("tools"))
}

fn path_with_linker() -> Result<std::ffi::OsString> {
    let mut paths = vec![tools_dir()?.join("bin")];
    paths.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    Ok(std::env::join_paths(paths)?)
}

/// Versions that decide the bytes of the object.
fn versions() -> Result<BTreeMap<String, String>> {
    let first_line = |command: &mut Command| -> Result<String> {
        Ok(capture(command)?
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned())
    };
    let rustc = if debian_compiler() {
        first_line(Command::new(DEBIAN_RUSTC).arg("--version"))?
    } else {
        first_line(Command::new("rustc").args(["+nightly", "--version"]))?
    };
    let linker = first_line(Command::new(tools_dir()?.join("bin/bpf-linker")).arg("--version"))?;
    let llvm = capture(Command::new(OBJCOPY).arg("--version"))?
        .lines()
        .find(|line| line.contains("version"))
        .unwrap_or_default()
        .trim()
        .to_owned();
    Ok(BTreeMap::from([
        ("rustc".to_owned(), rustc),
        ("bpf-linker".to_owned(), linker),
        ("llvm".to_owned(), llvm),
    ]))
}

fn render(versions: &BTreeMap<String, String>) -> String {
    let mut text = String::from(
        "# What pgfork-trace-x86_64.o was built with; written by `cargo xtask ebpf`.\n",
    );
    for (tool, version) in versions {
        let _ = writeln!(text, "{tool} = {version}");
    }
    text
}

fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "))
        .map(|(tool, version)| (tool.to_owned(), version.to_owned()))
        .collect()
}

fn differences(
    recorded: &BTreeMap<String, String>,
    here: &BTreeMap<String, String>,
) -> Vec<String> {
    here.iter()
        .filter(|(tool, version)| recorded.get(*tool) != Some(version))
        .map(|(tool, version)| {
            let was = recorded.get(tool).map_or("not recorded", String::as_str);
            format!("{tool}: recorded {was}, here {version}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_versions_read_back() {
        let versions = BTreeMap::from([
            ("rustc".to_owned(), "rustc 1.96.0 (x = y)".to_owned()),
            ("llvm".to_owned(), "22.1".to_owned()),
        ]);
        assert_eq!(parse(&render(&versions)), versions);
    }

    #[test]
    fn only_differing_tools_are_named() {
        let recorded = parse("llvm = 22.1\nrustc = 1.96\n");
        let here = parse("llvm = 22.2\nrustc = 1.96\n");
        assert_eq!(
            differences(&recorded, &here),
            ["llvm: recorded 22.1, here 22.2"]
        );
        assert!(differences(&here, &here).is_empty());
    }
}
