//! Finding postmasters in `/proc`.
//!
//! A process is a postmaster when its executable is called so and the `postmaster.pid` in its
//! working directory, which is its data directory, starts with its own pid as its own pid
//! namespace numbers it. The file is read through `/proc/PID/cwd`, which leads into the mount
//! namespace of the process; so containers need nothing special. Everything it says, and every
//! name, is text that others chose: kept byte for byte here, to be escaped where it is shown.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lock_file::{LIMIT, LockFile, version};
use crate::host::cgroup::{
    ContainerRef, Controller, Membership, UnitRef, container_of, membership_for, memberships,
    unit_of,
};
use crate::host::process::{self, Exe, ProcessId, Stat, Status, namespace};
use crate::host::{Pid, ReadError, Root, hidden_proc, small_regular};

/// Names that a server's executable goes by.
const NAMES: [&[u8]; 3] = [b"postgres", b"postmaster", b"edb-postgres"];

/// A PostgreSQL server's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postmaster {
    /// Pid in the tool's pid namespace.
    pub pid: Pid,
    /// Pid in its own pid namespace, as in `postmaster.pid` and its log.
    pub ns_pid: Pid,
    /// Start, in ticks of 1/[`crate::host::USER_HZ`] s since boot; tells it from a later process
    /// of the same pid.
    pub start_ticks: u64,
    /// Port, once it is in the lock file.
    pub port: Option<u16>,
    /// Data directory as the postmaster sees it.
    pub data_dir: PathBuf,
    /// All of `postmaster.pid`.
    pub lock_file: LockFile,
    /// Major version, from `PG_VERSION`.
    pub version: Option<String>,
    /// The file it runs. `None` without permission.
    pub exe: Option<Exe>,
    /// Real user id, as seen from the tool's user namespace.
    pub uid: u32,
    /// Its cgroup: that of the pids controller, from the tool's cgroup root.
    pub cgroup: Option<PathBuf>,
    /// The systemd unit it runs in.
    pub unit: Option<UnitRef>,
    /// The container it runs in.
    pub container: Option<ContainerRef>,
}

impl Postmaster {
    /// Pid and start time.
    pub fn id(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            start_ticks: self.start_ticks,
        }
    }

    /// How long it had been running at `uptime` (time since boot, [`crate::host::uptime`]).
    pub fn age(&self, uptime: Duration) -> Duration {
        self.id().age(uptime)
    }
}

/// Why a process with the right name is not a postmaster (yet).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// No `postmaster.pid` in its working directory: starting, or `postgres --help` and the like.
    NoLockFile,
    /// The lock file is of another process, by this pid: starting next to a stale file, refused
    /// because another server runs there, or an orphaned backend.
    OtherPid(i64),
    /// The lock file marks it as a single-user backend.
    SingleUser,
    /// The lock file is not a regular file, or does not start with a pid.
    OddLockFile,
    /// Its working directory cannot be read: no permission.
    Unreadable,
}

/// A process that is called like a postmaster and is not proven one. Worth another look if it
/// may be starting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Pid in the tool's pid namespace.
    pub pid: Pid,
    /// Start, as in [`Postmaster::start_ticks`].
    pub start_ticks: u64,
    /// What is missing.
    pub why: Why,
}

/// What one process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A postmaster.
    Postmaster(Box<Postmaster>),
    /// Called like one.
    Candidate(Candidate),
    /// A child of a process that runs the same executable.
    Child {
        /// Its parent.
        parent: Pid,
    },
    /// Something else.
    Other {
        /// A thread of the kernel.
        kernel_thread: bool,
    },
    /// No such process (any more).
    Gone,
}

/// Processes that [`discover`] could not judge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Threads of the kernel.
    pub kernel_threads: u64,
    /// Ended while they were looked at.
    pub vanished: u64,
    /// Their files are not in their format.
    pub unreadable: u64,
}

/// Result of a search through `/proc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Postmasters, by pid.
    pub postmasters: Vec<Postmaster>,
    /// Processes that may become one, by pid.
    pub candidates: Vec<Candidate>,
    /// Children of processes with the same executable: backends and helpers.
    pub children: u64,
    /// What was not judged.
    pub skipped: Skipped,
    /// Why postmasters may be missing here, see [`hidden_proc`].
    pub hidden: Option<String>,
}

/// Looks at all processes.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn discover(root: &Root) -> Result<Discovery, ReadError> {
    let mut found = Discovery {
        hidden: hidden_proc(root),
        ..Discovery::default()
    };
    for pid in process::pids(root)? {
        match identify(root, pid) {
            Ok(Identity::Postmaster(postmaster)) => found.postmasters.push(*postmaster),
            Ok(Identity::Candidate(candidate)) => found.candidates.push(candidate),
            Ok(Identity::Child { .. }) => found.children += 1,
            Ok(Identity::Gone) => found.skipped.vanished += 1,
            Ok(Identity::Other { kernel_thread }) => {
                found.skipped.kernel_threads += u64::from(kernel_thread);
            }
            Err(_) => found.skipped.unreadable += 1,
        }
    }
    found
        .postmasters
        .sort_unstable_by_key(|postmaster| postmaster.pid);
    found
        .candidates
        .sort_unstable_by_key(|candidate| candidate.pid);
    Ok(found)
}

/// Looks at one process.
///
/// # Errors
/// When one of its files in `/proc` is not in its format.
pub fn identify(root: &Root, pid: Pid) -> Result<Identity, ReadError> {
    let Some(stat) = process::stat(root, pid)? else {
        return Ok(Identity::Gone);
    };
    let exe = process::exe(root, pid);
    if stat.kernel_thread || stat.state == 'Z' || !is_server_name(exe.as_ref(), &stat.comm) {
        return Ok(Identity::Other {
            kernel_thread: stat.kernel_thread,
        });
    }
    let Some(status) = process::status(root, pid)? else {
        return Ok(Identity::Gone);
    };
    if status.tgid.is_some_and(|tgid| tgid != pid) {
        // A thread: readable by its id, though not listed.
        return Ok(Identity::Other {
            kernel_thread: false,
        });
    }
    let ns_pid = status.ns_pids.last().copied().unwrap_or(pid);
    let why = match lock_file(&root.pid(pid).join("cwd"), ns_pid) {
        Ok(lock_file) => {
            let postmaster = describe(root, pid, &stat, &status, exe, lock_file);
            // All of this was about one process only if it is still the same.
            return Ok(match process::still(root, postmaster.id())? {
                true => Identity::Postmaster(Box::new(postmaster)),
                false => Identity::Gone,
            });
        }
        Err(why) => why,
    };
    if is_child(root, pid, exe.as_ref(), &stat)? {
        return Ok(Identity::Child {
            parent: stat.parent,
        });
    }
    let id = ProcessId {
        pid,
        start_ticks: stat.start_ticks,
    };
    Ok(match process::still(root, id)? {
        true => Identity::Candidate(Candidate {
            pid,
            start_ticks: stat.start_ticks,
            why,
        }),
        false => Identity::Gone,
    })
}

/// A process that is called like a postmaster and whose data directory this user may not read,
/// with what everybody may know of it. `Ok(None)` when it has ended, or why it is none is known.
///
/// # Errors
/// As [`identify`].
pub fn presumed(root: &Root, candidate: &Candidate) -> Result<Option<Postmaster>, ReadError> {
    if candidate.why != Why::Unreadable {
        return Ok(None);
    }
    let pid = candidate.pid;
    let found = process::stat(root, pid)?.zip(process::status(root, pid)?);
    let Some((stat, status)) = found.filter(|(stat, _)| stat.start_ticks == candidate.start_ticks)
    else {
        return Ok(None);
    };
    let exe = process::exe(root, pid);
    let mut postmaster = describe(root, pid, &stat, &status, exe, LockFile::default());
    if postmaster.data_dir.as_os_str().is_empty() {
        postmaster.data_dir = named_directory(&process::cmdline(root, pid)?);
    }
    Ok(Some(postmaster))
}

/// How a server program is told to be something else than a postmaster, by its first argument
/// (src/backend/main/main.c `main`, PostgreSQL 13 to 18).
const OTHER_MODES: [&str; 6] = [
    "--boot",
    "--check",
    "--describe-config",
    "--forkboot",
    "--forkchild",
    "--single",
];

/// A process that has just executed a server's program, with what its arguments say: it has no
/// lock file yet, and may have none any more when it is looked at again. `Ok(None)` when it has
/// ended, runs another program, is a child of a server, or is told to be no postmaster.
///
/// # Errors
/// As [`identify`].
pub fn starting(root: &Root, pid: Pid) -> Result<Option<Postmaster>, ReadError> {
    let Some((stat, status)) = process::stat(root, pid)?.zip(process::status(root, pid)?) else {
        return Ok(None);
    };
    let exe = process::exe(root, pid);
    if !is_server_name(exe.as_ref(), &stat.comm) || is_child(root, pid, exe.as_ref(), &stat)? {
        return Ok(None);
    }
    let arguments = process::cmdline(root, pid)?;
    let mode = arguments.get(1).and_then(|first| first.to_str());
    let is_titled = |name: &OsString| name.as_bytes().starts_with(b"postgres: ");
    if mode.is_some_and(|first| OTHER_MODES.contains(&first))
        || arguments.first().is_some_and(is_titled)
    {
        return Ok(None);
    }
    let data_dir = named_directory(&arguments);
    let mut postmaster = describe(root, pid, &stat, &status, exe, LockFile::default());
    let seen = root.pid(pid).join("root");
    let relative = data_dir.strip_prefix("/").unwrap_or(&data_dir);
    postmaster.version = version_in(&seen.join(relative));
    postmaster.data_dir = data_dir;
    Ok(Some(postmaster))
}

/// The data directory that the arguments name (`-D DIRECTORY`).
fn named_directory(arguments: &[OsString]) -> PathBuf {
    let named = arguments.iter().skip_while(|argument| *argument != "-D");
    named.skip(1).map(PathBuf::from).next().unwrap_or_default()
}

fn version_in(data_dir: &Path) -> Option<String> {
    small_regular(&data_dir.join("PG_VERSION"), 64)
        .ok()
        .and_then(|content| version(&content))
}

/// By the executable; by the process's name only if that cannot be read.
fn is_server_name(exe: Option<&Exe>, comm: &OsStr) -> bool {
    let name = exe.map_or(Some(comm), |exe| exe.path.file_name());
    name.is_some_and(|name| NAMES.contains(&name.as_bytes()))
}

/// Whether the parent runs the same executable in the same mount namespace. Where executables
/// cannot be read, the names of the processes are compared.
fn is_child(root: &Root, pid: Pid, exe: Option<&Exe>, stat: &Stat) -> Result<bool, ReadError> {
    if stat.parent == 0 {
        return Ok(false);
    }
    let Some(exe) = exe else {
        let parent = process::stat(root, stat.parent)?;
        return Ok(parent.is_some_and(|parent| is_server_name(None, &parent.comm)));
    };
    let same_exe = process::exe(root, stat.parent).is_some_and(|parent| parent.path == exe.path);
    let mnt = |pid| namespace(&root.pid(pid), "mnt");
    Ok(same_exe && mnt(pid) == mnt(stat.parent))
}

/// The lock file in the working directory, if it is that of process `ns_pid`.
fn lock_file(cwd: &Path, ns_pid: Pid) -> Result<LockFile, Why> {
    let content =
        small_regular(&cwd.join("postmaster.pid"), LIMIT).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Why::NoLockFile,
            io::ErrorKind::PermissionDenied => Why::Unreadable,
            _ => Why::OddLockFile,
        })?;
    let lock_file = LockFile::parse(&content).ok_or(Why::OddLockFile)?;
    let own = i64::from(ns_pid);
    match lock_file.pid {
        pid if pid == own => Ok(lock_file),
        pid if pid.checked_neg() == Some(own) => Err(Why::SingleUser),
        pid => Err(Why::OtherPid(pid)),
    }
}

fn describe(
    root: &Root,
    pid: Pid,
    stat: &Stat,
    status: &Status,
    exe: Option<Exe>,
    lock_file: LockFile,
) -> Postmaster {
    let cwd = root.pid(pid).join("cwd");
    let data_dir = match lock_file.data_dir.as_os_str().is_empty() {
        true => cwd.read_link().unwrap_or_default(),
        false => lock_file.data_dir.clone(),
    };
    // It is a postmaster whatever this file says.
    let cgroups = memberships(root, pid).ok().flatten().unwrap_or_default();
    let own = membership_for(&cgroups, Controller::Pids);
    Postmaster {
        pid,
        ns_pid: status.ns_pids.last().copied().unwrap_or(pid),
        start_ticks: stat.start_ticks,
        port: lock_file.port,
        data_dir,
        version: version_in(&cwd),
        exe,
        uid: status.uids.real,
        unit: first_name(own, &cgroups, unit_of),
        container: first_name(own, &cgroups, container_of),
        cgroup: own.map(|membership| membership.path.clone()),
        lock_file,
    }
}

/// What a path says by its name, asking the cgroup of the pids controller first: on v1, a process
/// may be in a unit or container by another hierarchy only.
fn first_name<T>(
    own: Option<&Membership>,
    all: &[Membership],
    name: impl Fn(&Path) -> Option<T>,
) -> Option<T> {
    let systemd = all
        .iter()
        .filter(|membership| membership.has("name=systemd"));
    own.into_iter()
        .chain(systemd)
        .chain(all)
        .find_map(|membership| name(&membership.path))
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;
