//! Builds the eBPF object, and proves that the committed one is what the source gives.

use std::{
    collections::{BTreeMap, BTreeSet},
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
/// Key of the digest of the sources, among the versions of the tools.
const SOURCES: &str = "sources";

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
    let mut recorded = versions()?;
    recorded.insert(SOURCES.to_owned(), sources(&root)?);
    fs::write(root.join(TOOLCHAIN), render(&recorded))?;
    say(format_args!(
        "{OBJECT}: {} bytes",
        fs::metadata(&object)?.len()
    ));
    Ok(())
}

/// Rebuilds and compares. Differing bytes are an error only when the toolchain is the recorded one;
/// sources other than those of the committed object always are.
pub(crate) fn check() -> Result<Checked> {
    let root = workspace();
    let recorded = parse(
        &fs::read_to_string(root.join(TOOLCHAIN))
            .with_context(|| format!("cannot read {TOOLCHAIN}"))?,
    );
    let built = build()?;
    let committed = fs::read(root.join(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
    let same = fs::read(&built)? == committed;
    let differences = judge(same, &recorded, &sources(&root)?, &versions()?)?;
    if differences.is_empty() {
        say(format_args!(
            "{OBJECT} is byte for byte what the source gives"
        ));
        return Ok(Checked::Same);
    }
    say(format_args!(
        "{OBJECT} was built with other versions, so its bytes cannot be compared; the rebuilt object is tested instead:"
    ));
    for difference in &differences {
        say(format_args!("  {difference}"));
    }
    Ok(Checked::OtherToolchain(built))
}

/// What differs in the toolchain, where that explains other bytes; nothing where there are none.
fn judge(
    same: bool,
    recorded: &BTreeMap<String, String>,
    sources: &str,
    versions: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    if recorded.get(SOURCES).is_none_or(|digest| digest != sources) {
        bail!(
            "{OBJECT} was built of other sources than these ({TOOLCHAIN}: {SOURCES}).\n\
             Run `cargo xtask ebpf` and commit the object and {TOOLCHAIN}"
        );
    }
    if same {
        return Ok(Vec::new());
    }
    let differences = differences(recorded, versions);
    if differences.is_empty() {
        bail!(
            "{OBJECT} is not what the source gives, though the toolchain is the recorded one.\n\
             Run `cargo xtask ebpf` and commit the object"
        );
    }
    Ok(differences)
}

/// A digest of all that the object is made of: sources, manifests, and what Cargo.lock says of
/// its dependencies. It tells apart, it does not protect.
fn sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for package in ["pgfork-trace-ebpf", "pgfork-trace-common"] {
        files.push(root.join(package).join("Cargo.toml"));
        below(&root.join(package).join("src"), &mut files)?;
    }
    files.sort();
    let mut digest = Fnv::default();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        digest.add(name.as_os_str().as_encoded_bytes());
        digest.add(&fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    for entry in dependencies(&lock, "pgfork-trace-ebpf") {
        digest.add(entry.as_bytes());
    }
    Ok(format!("{:016x}", digest.0))
}

fn below(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let read = || format!("cannot read {}", directory.display());
    for entry in fs::read_dir(directory).with_context(read)? {
        let path = entry.with_context(read)?.path();
        if path.is_dir() {
            below(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The entries of Cargo.lock for a package and all that it depends on.
fn dependencies<'a>(lock: &'a str, package: &str) -> BTreeSet<&'a str> {
    let entries: Vec<&str> = lock.split("[[package]]\n").skip(1).map(str::trim).collect();
    let mut found = BTreeSet::new();
    let mut wanted = vec![package.to_owned()];
    while let Some(name) = wanted.pop() {
        let line = format!("name = \"{name}\"");
        for entry in entries.iter().filter(|entry| entry.starts_with(&line)) {
            if found.insert(*entry) {
                let names = entry
                    .lines()
                    .filter_map(|line| line.trim().strip_prefix('"')?.split(['"', ' ']).next());
                wanted.extend(names.map(str::to_owned));
            }
        }
    }
    found
}

/// FNV-1a.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Adds a piece, and where it ends.
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
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
    run(Command::new(objcopy())
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
    if !setup::usable_nightly() {
        bail!(
            "neither Debian's rustc-web nor a rustup nightly with rust-src is installed: run `cargo xtask setup`"
        );
    }
    command
        .arg("+nightly")
        .env_remove("RUSTC")
        .env("CARGO_UNSTABLE_BUILD_STD", "core");
    Ok(command)
}

/// That of the LLVM which bpf-linker is built with.
fn objcopy() -> PathBuf {
    Path::new(setup::LLVM_PREFIX).join("bin/llvm-objcopy")
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
    let llvm = capture(Command::new(objcopy()).arg("--version"))?
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

    #[test]
    fn another_toolchain_explains_other_bytes_but_not_other_sources() {
        let recorded = parse("llvm = 22.1\nsources = 12ab\n");
        let (same, other) = (parse("llvm = 22.1\n"), parse("llvm = 22.2\n"));
        let none: [&str; 0] = [];
        assert_eq!(judge(true, &recorded, "12ab", &same).unwrap(), none);
        assert_eq!(judge(true, &recorded, "12ab", &other).unwrap(), none);
        assert_eq!(
            judge(false, &recorded, "12ab", &other).unwrap(),
            ["llvm: recorded 22.1, here 22.2"]
        );
        type Versions = BTreeMap<String, String>;
        let refused = |same_bytes, recorded: &Versions, versions: &Versions| {
            let error = judge(same_bytes, recorded, "12ab", versions).unwrap_err();
            error.to_string()
        };
        assert!(refused(false, &recorded, &same).contains("the toolchain is the recorded one"));
        for recorded in [parse("llvm = 22.1\n"), parse("llvm = 22.1\nsources = 0\n")] {
            assert!(refused(false, &recorded, &other).contains("other sources"));
            assert!(refused(true, &recorded, &same).contains("other sources"));
        }
    }

    #[test]
    fn every_source_and_dependency_is_in_the_digest() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\ndependencies = [\n \"b 1.0\",\n]\n\n\
            [[package]]\nname = \"b\"\nversion = \"1.0\"\n\n[[package]]\nname = \"c\"\n";
        assert_eq!(dependencies(lock, "a").len(), 2);
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for package in ["pgfork-trace-ebpf", "pgfork-trace-common"] {
            fs::create_dir_all(root.join(package).join("src/checks")).unwrap();
            for file in ["Cargo.toml", "src/main.rs", "src/checks/clone.rs"] {
                fs::write(root.join(package).join(file), "x").unwrap();
            }
        }
        fs::write(root.join("Cargo.lock"), lock).unwrap();
        let first = sources(root).unwrap();
        assert_eq!(sources(root).unwrap(), first);
        fs::write(root.join("pgfork-trace-common/src/checks/clone.rs"), "y").unwrap();
        assert_ne!(sources(root).unwrap(), first);
    }
}
