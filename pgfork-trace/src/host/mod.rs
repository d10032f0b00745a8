//! Facts about the host: `/proc`, cgroups, sysctls.
//!
//! Everything here reads and nothing decides. Each reader takes a [`Root`], so that tests run on a
//! fake tree. Values are in the unit that the field name says (`_bytes`), otherwise in the unit of
//! the kernel file.
//!
//! **Absent is not zero.** A file that is missing, unreadable or whose process has just ended
//! reads as `Ok(None)`; a file that is there and says something else than its format allows is a
//! [`ReadError`] with path, line and what was expected.
//!
//! Files are parsed as bytes, line by line: names in them are chosen by others and need not be
//! UTF-8, and the tool must start when the host has no memory left. (The `procfs` crate parses the
//! same files, but into `String`s: one process with a non-UTF-8 name, or one such mount point,
//! makes the file unreadable; short lines and absurd numbers panic in some of its parsers.)

pub mod capability;
pub mod census;
pub mod cgroup;
pub mod config;
pub mod kmsg;
pub mod memory;
mod mountinfo;
pub mod oom_log;
pub mod process;
pub mod psi;
mod read;
pub mod sock_diag;
pub mod sockets;
pub mod sysctl;
pub mod tmpfs;
pub mod users;

#[cfg(test)]
pub(crate) mod fake;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use read::{Ceiling, ReadError};
pub(crate) use read::{config as read_config, open_regular, small_regular};

/// A process id as `/proc` of the [`Root`] shows it, that is in the tool's own pid namespace.
pub type Pid = u32;

/// Ticks per second of times in `/proc` (`USER_HZ`): 100 on x86-64 and arm64
/// (include/asm-generic/param.h, all supported kernels).
pub const USER_HZ: u64 = 100;

/// Where the file tree starts: `/`, or a directory with a fake tree in tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self::new("/")
    }
}

impl Root {
    /// A tree that starts at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory `/proc` of this tree.
    pub fn proc(&self) -> PathBuf {
        self.0.join("proc")
    }

    /// The directory `/sys` of this tree.
    pub fn sys(&self) -> PathBuf {
        self.0.join("sys")
    }

    /// The directory `/proc/PID` of this tree.
    pub fn pid(&self, pid: Pid) -> PathBuf {
        self.proc().join(pid.to_string())
    }

    /// `path`, which is absolute in this tree, as a path that can be opened.
    pub fn join(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Time since boot, from `/proc/uptime` (suspend included, like the start time of processes:
/// fs/proc/uptime.c and fs/proc/array.c).
///
/// # Errors
/// When the file does not start with a number of seconds.
pub fn uptime(root: &Root) -> Result<Option<Duration>, ReadError> {
    let path = root.proc().join("uptime");
    let Some(text) = read::small(&path, 128)? else {
        return Ok(None);
    };
    let field = read::fields(&text).next().unwrap_or_default();
    let (seconds, hundredths) = match field.iter().position(|&b| b == b'.') {
        Some(dot) => (&field[..dot], &field[dot + 1..]),
        None => (field, &b"0"[..]),
    };
    let parsed = read::parse::<u64>(seconds).zip(read::parse::<u32>(hundredths));
    let (seconds, hundredths) = parsed
        .filter(|&(_, hundredths)| hundredths < 100)
        .ok_or_else(|| ReadError::parse(&path, 1, "seconds since boot", field))?;
    Ok(Some(
        Duration::from_secs(seconds) + Duration::from_millis(u64::from(hundredths) * 10),
    ))
}

/// Why other processes may be invisible in this `/proc`, so that a search of it is incomplete.
/// `None` when it shows everything to this process.
///
/// Two signs: process 1 cannot be read, or `/proc` is mounted with `hidepid` and this process
/// lacks `CAP_SYS_PTRACE`, which exempts from it (`has_pid_permissions` in fs/proc/base.c, 5.10 to
/// 7.2).
pub fn hidden_proc(root: &Root) -> Option<String> {
    let hidepid = hidepid_option(root);
    let init_visible = process::status(root, 1).is_ok_and(|status| status.is_some());
    if !init_visible {
        return Some(match hidepid {
            Some(option) => format!("/proc is mounted with {option} and hides process 1"),
            None => "process 1 is not visible in /proc".to_owned(),
        });
    }
    let option = hidepid?;
    let own = process::status_at(&root.proc().join("self/status")).ok()??;
    let exempt = own
        .cap_effective
        .is_some_and(|caps| caps & capability::mask(capability::SYS_PTRACE) != 0);
    (!exempt)
        .then(|| format!("/proc is mounted with {option} and this process has no CAP_SYS_PTRACE"))
}

/// The option `hidepid=...` of the mount of `/proc`, unless it hides nothing.
fn hidepid_option(root: &Root) -> Option<String> {
    let mut found = None;
    // A mountinfo that cannot be read proves nothing; the other sign still counts.
    let _ = mountinfo::each(&root.proc().join("self/mountinfo"), |mount| {
        if mount.mount_point == Path::new("/proc") {
            // A later mount on the same directory covers the earlier one.
            found = mount
                .options
                .split(|&b| b == b',')
                .find(|option| option.starts_with(b"hidepid="))
                .filter(|option| !matches!(*option, b"hidepid=0" | b"hidepid=off"))
                .map(|option| String::from_utf8_lossy(option).into_owned());
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use super::fake::{FakeProcess, FakeRoot};
    use super::*;

    #[test]
    fn paths_stay_inside_the_root() {
        let root = Root::new("/tmp/fake");
        assert_eq!(root.proc(), Path::new("/tmp/fake/proc"));
        assert_eq!(root.sys(), Path::new("/tmp/fake/sys"));
        assert_eq!(root.pid(7), Path::new("/tmp/fake/proc/7"));
        assert_eq!(root.join(Path::new("/a/b")), Path::new("/tmp/fake/a/b"));
        assert_eq!(Root::default().proc(), Path::new("/proc"));
    }

    #[test]
    fn uptime_has_hundredths() {
        let fake = FakeRoot::new();
        assert_eq!(uptime(fake.root()).unwrap(), None);
        fake.write("proc/uptime", "12345.67 9.00\n");
        assert_eq!(
            uptime(fake.root()).unwrap(),
            Some(Duration::from_millis(12_345_670))
        );
        fake.write("proc/uptime", "up long\n");
        let error = uptime(fake.root()).unwrap_err().to_string();
        assert!(
            error.contains("uptime\":1: expected seconds since boot, found \"up\""),
            "{error}"
        );
    }

    const PROC: &str = "22 27 0:21 / /proc rw,relatime - proc proc rw";

    #[test]
    fn a_plain_proc_hides_nothing() {
        let fake = FakeRoot::new();
        fake.process(&FakeProcess::new(1));
        fake.write("proc/self/mountinfo", PROC);
        assert_eq!(hidden_proc(fake.root()), None);
        fake.write("proc/self/mountinfo", format!("{PROC},hidepid=off"));
        assert_eq!(hidden_proc(fake.root()), None);
    }

    #[test]
    fn hidepid_hides_from_those_without_ptrace() {
        let fake = FakeRoot::new();
        fake.process(&FakeProcess::new(1));
        fake.write(
            "proc/self/mountinfo",
            format!("{PROC},gid=4,hidepid=invisible"),
        );
        fake.write(
            "proc/self/status",
            "Uid:\t5 5 5 5\nPPid:\t1\nThreads:\t1\nCapEff:\t0000000000000000\n",
        );
        let reason = hidden_proc(fake.root()).unwrap();
        assert!(reason.contains("hidepid=invisible"), "{reason}");
        fake.write(
            "proc/self/status",
            "Uid:\t0 0 0 0\nPPid:\t1\nThreads:\t1\nCapEff:\t000001ffffffffff\n",
        );
        assert_eq!(hidden_proc(fake.root()), None);
    }

    #[test]
    fn an_invisible_process_1_is_a_sign() {
        let fake = FakeRoot::new();
        assert_eq!(
            hidden_proc(fake.root()).unwrap(),
            "process 1 is not visible in /proc"
        );
        fake.write("proc/self/mountinfo", format!("{PROC},hidepid=2"));
        assert!(hidden_proc(fake.root()).unwrap().contains("hidepid=2"));
    }

    #[test]
    fn the_real_proc_is_readable() {
        let root = Root::default();
        assert!(uptime(&root).unwrap().is_some());
        let _ = hidden_proc(&root);
    }
}
