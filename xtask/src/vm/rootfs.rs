//! Root filesystems: a small Debian with one PostgreSQL, as Debian's packages set it up.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::archive::{Mirror, check_keyring, proxy_options};
use crate::progress::Step;
use crate::{cache, process};

/// Raise when what goes into the images changes.
const FORMAT: u32 = 2;
/// Sparse; room for what tests write.
const SIZE: u64 = 4 << 30;
const PACKAGES: &str = "dbus,iproute2,mount,procps,systemd,systemd-sysv,util-linux";
/// Units that only cost time in a guest that lives for seconds and has no kernel modules.
const MASKED_UNITS: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "systemd-journal-flush.service",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-tmpfiles-clean.timer",
    "tmp.mount",
];
const MACHINE_ID: &str = "70676670726b747261636576696d6964";

/// A major version of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Postgres {
    #[value(name = "13")]
    V13,
    #[value(name = "15")]
    V15,
    #[value(name = "17")]
    V17,
    #[value(name = "18")]
    V18,
}

impl Postgres {
    /// The number.
    pub(crate) fn major(self) -> u32 {
        match self {
            Self::V13 => 13,
            Self::V15 => 15,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// The Debian release that ships it.
    pub(crate) fn suite(self) -> &'static str {
        match self {
            Self::V13 => "bullseye",
            Self::V15 => "bookworm",
            Self::V17 => "trixie",
            Self::V18 => "forky",
        }
    }
}

/// The image (ext4, no partitions) with this PostgreSQL, from the cache or from the archive.
pub(crate) fn get(postgres: Postgres, refresh: bool) -> Result<PathBuf> {
    let name = format!("v{FORMAT}-pg{}", postgres.major());
    let dir =
        cache::entry("rootfs", &name, refresh, |dir| build(postgres, dir)).with_context(|| {
            format!(
                "cannot build the root filesystem with PostgreSQL {}",
                postgres.major()
            )
        })?;
    Ok(dir.join("root.ext4"))
}

fn build(postgres: Postgres, dir: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this takes root, once per image: run the same command with sudo -E");
    }
    check_keyring()?;
    let title = format!(
        "root filesystem with PostgreSQL {}: building (up to a minute)",
        postgres.major()
    );
    let step = Step::start(title);
    // Beside the image: a RAM-backed /tmp need not hold half a gigabyte.
    let work = tempfile::Builder::new().prefix("root-").tempdir_in(dir)?;
    let root = work.path().join("root");
    process::capture(&mut bootstrap(postgres, &root)?)?;
    configure(&root)?;
    let image = dir.join("root.ext4");
    File::create(&image)?.set_len(SIZE)?;
    // Every guest works on a throw-away copy: no journal.
    process::capture(
        Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
            .args(["-E", "lazy_itable_init=1,nodiscard", "-d"])
            .arg(&root)
            .arg(&image),
    )?;
    work.close()
        .context("cannot remove the unpacked root filesystem")?;
    step.done();
    Ok(())
}

/// A name, and nothing to do for systemd but to start the units.
fn configure(root: &Path) -> Result<()> {
    fs::write(root.join("etc/hostname"), "pgfork-vm\n")?;
    fs::write(
        root.join("etc/hosts"),
        "127.0.0.1 localhost pgfork-vm\n::1 localhost\n",
    )?;
    // With a machine id this is no first boot, which would reset all units to their presets.
    fs::write(root.join("etc/machine-id"), format!("{MACHINE_ID}\n"))?;
    for unit in MASKED_UNITS {
        let path = root.join("etc/systemd/system").join(unit);
        symlink("/dev/null", path).with_context(|| format!("cannot mask {unit}"))?;
    }
    // Younger than /usr: the caches of the linker, of users and of the journal are up to date.
    for dir in ["etc", "var"] {
        fs::write(root.join(dir).join(".updated"), "")?;
    }
    Ok(())
}

fn bootstrap(postgres: Postgres, root: &Path) -> Result<Command> {
    let mirror = Mirror::of_this_machine()?;
    // Its mounts are gone with its namespace, however it ends; then the directory can be removed.
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--variant=essential",
        "--architectures=amd64",
    ]);
    command.arg(format!(
        "--include=postgresql-{},{PACKAGES}",
        postgres.major()
    ));
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    for option in proxy_options()? {
        command.arg(format!("--aptopt={option}"));
    }
    for path in [
        "/usr/share/doc/*",
        "/usr/share/man/*",
        "/usr/share/locale/*",
        "/usr/share/info/*",
    ] {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    // The cluster is created, and started only when somebody asks for it.
    command.arg(
        "--essential-hook=mkdir -p \"$1/etc/postgresql-common\" && \
         echo 'start_conf = manual' >\"$1/etc/postgresql-common/createcluster.conf\"",
    );
    command
        .arg(postgres.suite())
        .arg(root)
        .env("LC_ALL", "C.UTF-8");
    // The release as it came out: its security archive may be gone, or ask for newer keys.
    command.args(mirror.lines(postgres.suite()).first());
    Ok(command)
}
