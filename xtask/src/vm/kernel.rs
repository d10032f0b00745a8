//! Debian's cloud kernels, made bootable.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::series::{Series, is_of_series, select};
use crate::progress::{Step, say};
use crate::{cache, process};

/// Raise when the layout of a cached kernel changes.
const FORMAT: u32 = 1;
/// What the first process of the guest needs to reach its disks and the host.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console", "ext4"];

/// A kernel that is ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The series that was asked for.
    pub(crate) series: Series,
    /// What `uname -r` says.
    pub(crate) release: String,
    /// The version of the Debian package.
    pub(crate) version: String,
    /// The suite it came from.
    pub(crate) suite: String,
    dir: PathBuf,
}

impl Kernel {
    /// The kernel of a series, from the cache or from the archive.
    pub(crate) fn get(series: Series, refresh: bool) -> Result<Self> {
        let name = format!("v{FORMAT}-{}", series.name());
        let dir = cache::entry("kernel", &name, refresh, |dir| build(series, dir))
            .with_context(|| format!("cannot prepare a kernel {}", series.name()))?;
        let kernel = Self::read(series, dir)?;
        if kernel.is_substitute() {
            say(format_args!(
                "WARNING: the archive has no kernel {} (any more); this is {} from {} instead",
                series.name(),
                kernel.version,
                kernel.suite
            ));
        }
        Ok(kernel)
    }

    fn read(series: Series, dir: PathBuf) -> Result<Self> {
        let path = dir.join("origin");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; retry with --refresh", path.display()))?;
        let mut lines = text.lines().map(str::to_owned);
        let mut next = || {
            lines
                .next()
                .with_context(|| format!("{} is incomplete; retry with --refresh", path.display()))
        };
        Ok(Self {
            series,
            release: next()?,
            version: next()?,
            suite: next()?,
            dir,
        })
    }

    /// Whether it is not of the series that was asked for.
    pub(crate) fn is_substitute(&self) -> bool {
        !is_of_series(&self.version, self.series.name())
    }

    /// The compressed image.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The first part of the initial RAM disk: everything but `/init`.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }
}

fn build(series: Series, dir: &Path) -> Result<()> {
    let step = Step::start(format!("kernel {}: fetching", series.name()));
    let (apt, suite, packages) = select(series)?;
    let work = tempfile::tempdir().context("cannot create a temporary directory")?;
    let (debs, tree) = (work.path().join("debs"), work.path().join("tree"));
    cache::create_dir(&debs)?;
    apt.download(&packages, &debs)?;
    for deb in fs::read_dir(&debs)?.flatten() {
        process::capture(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(deb.path())
                .arg(&tree),
        )?;
    }
    let (modules, release) = module_dir(&tree)?;
    copy_first(
        &[
            tree.join(format!("boot/vmlinuz-{release}")),
            modules.join("vmlinuz"),
        ],
        &dir.join("vmlinuz"),
    )?;
    let root = work.path().join("initrd");
    fill_initrd(&root, &tree, &release)?;
    copy_first(
        &[
            tree.join(format!("boot/config-{release}")),
            modules.join("config"),
        ],
        &root.join("config"),
    )?;
    pack(&root, &dir.join("initrd"))?;
    let version = packages
        .first()
        .map(|package| package.version.as_str())
        .unwrap_or_default();
    fs::write(
        dir.join("origin"),
        format!("{release}\n{version}\n{suite}\n"),
    )?;
    step.done();
    Ok(())
}

fn module_dir(tree: &Path) -> Result<(PathBuf, String)> {
    let parent = ["usr/lib/modules", "lib/modules"].map(|dir| tree.join(dir));
    let parent = parent
        .iter()
        .find(|dir| dir.is_dir())
        .context("the kernel package holds no modules")?;
    let entry = fs::read_dir(parent)?
        .next()
        .context("the kernel package holds no modules")??;
    let release = entry.file_name().to_string_lossy().into_owned();
    if parent.starts_with(tree.join("usr")) && !tree.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
    }
    Ok((entry.path(), release))
}

fn copy_first(sources: &[PathBuf], target: &Path) -> Result<()> {
    let source = sources
        .iter()
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "the kernel packages hold no {}",
                sources[0].file_name().unwrap_or_default().display()
            )
        })?;
    fs::copy(source, target).with_context(|| format!("cannot write {}", target.display()))?;
    Ok(())
}

fn fill_initrd(root: &Path, tree: &Path, release: &str) -> Result<()> {
    for dir in ["bin", "dev", "modules", "proc", "root", "sys"] {
        cache::create_dir(&root.join(dir))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    copy_first(&busybox, &root.join("bin/busybox"))
        .context("busybox is missing: install busybox-static (`cargo xtask setup`)")?;
    process::capture(
        Command::new("/sbin/depmod")
            .arg("-b")
            .arg(tree)
            .arg(release),
    )?;
    let mut files: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut command = Command::new("/sbin/modprobe");
        command
            .arg("-d")
            .arg(tree)
            .args(["-S", release, "--show-depends", module]);
        for file in insmod_files(&process::capture(&mut command)?) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    for (index, file) in files.iter().enumerate() {
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let stem = name.split('.').next().unwrap_or_default();
        unpack_module(file, &root.join(format!("modules/{index:02}-{stem}.ko")))?;
    }
    Ok(())
}

/// The module files in `modprobe --show-depends`, in the order in which they load.
fn insmod_files(output: &str) -> Vec<PathBuf> {
    let insmod = output
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "));
    insmod
        .filter_map(|rest| rest.split_whitespace().next())
        .map(PathBuf::from)
        .collect()
}

fn unpack_module(source: &Path, target: &Path) -> Result<()> {
    let program = match source.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return copy_first(&[source.to_owned()], target),
    };
    process::run(
        Command::new(program)
            .arg("-dc")
            .arg(source)
            .stdout(File::create(target)?),
    )
}

fn pack(root: &Path, target: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    command
        .args(["-c", "find . | cpio --quiet -o -H newc -R 0:0"])
        .current_dir(root);
    process::run(command.stdout(File::create(target)?).stdin(Stdio::null()))?;
    if fs::metadata(target)?.len() < 100_000 {
        bail!("cpio wrote an incomplete {}", target.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_in_the_order_given() {
        let output = "insmod /t/a.ko.xz \nbuiltin b\ninsmod /t/c.ko opt=1\n";
        assert_eq!(
            insmod_files(output),
            [PathBuf::from("/t/a.ko.xz"), PathBuf::from("/t/c.ko")]
        );
    }
}
