//! Facts about one process, from `/proc/PID`.

mod accounted;
mod limits;
mod status;
mod tasks;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::read::{self, ReadError};
use super::{Pid, Root, USER_HZ};

pub use accounted::{Accounted, WALKED_BYTES, accounted, accounted_within};
pub use limits::{Limits, RLimit, limits};
pub(crate) use status::status_at;
pub use status::{Seccomp, Status, Uids, status};
pub use tasks::{TaskCount, tasks_by_comm_of_uid, tasks_of_uid};

/// Inode of the pid namespace that the kernel starts with (`PROC_PID_INIT_INO`,
/// include/linux/proc_ns.h, 5.10 to 7.2).
pub const INITIAL_PID_NS: u64 = 0xEFFF_FFFC;
/// Inode of the initial user namespace (`PROC_USER_INIT_INO`).
pub const INITIAL_USER_NS: u64 = 0xEFFF_FFFD;
/// Inode of the initial cgroup namespace (`PROC_CGROUP_INIT_INO`).
pub const INITIAL_CGROUP_NS: u64 = 0xEFFF_FFFB;

/// Longest command line that is kept, in bytes.
const CMDLINE_LIMIT: u64 = 4096;
/// Longest environment that is read, in bytes.
const ENVIRON_LIMIT: u64 = 1 << 20;

/// A process that cannot be confused with a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The pid in the tool's pid namespace.
    pub pid: Pid,
    /// When it started, in ticks of 1/[`USER_HZ`] s since boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// How long it had been running at `uptime` (time since boot).
    pub fn age(self, uptime: Duration) -> Duration {
        let started = Duration::from_millis(self.start_ticks.saturating_mul(1000 / USER_HZ));
        uptime.saturating_sub(started)
    }
}

/// What `/proc/PID/stat` says. Readable by everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Name of the main thread, any bytes, as the process itself chose.
    pub comm: OsString,
    /// State letter: `R`, `S`, `D`, `Z`, `T`, ...
    pub state: char,
    /// Parent, 0 when it is outside of the tool's pid namespace.
    pub parent: Pid,
    /// Process group: its number stays taken while the group has a member. 0: none, or outside of
    /// the tool's pid namespace.
    pub group: Pid,
    /// Session, likewise.
    pub session: Pid,
    /// A thread of the kernel (`PF_KTHREAD`).
    pub kernel_thread: bool,
    /// Start, in ticks of 1/[`USER_HZ`] s since boot.
    pub start_ticks: u64,
}

/// The file a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exe {
    /// Path as the process sees it, any bytes, without the kernel's mark for deleted files.
    pub path: PathBuf,
    /// The file has been removed or replaced since, as a package upgrade does.
    pub deleted: bool,
}

/// Inodes of the namespaces of a process. `None` where they cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Its own pid namespace.
    pub pid: Option<u64>,
    /// The one its children are put in.
    pub pid_for_children: Option<u64>,
    /// User namespace.
    pub user: Option<u64>,
    /// Mount namespace.
    pub mnt: Option<u64>,
    /// Network namespace.
    pub net: Option<u64>,
    /// Cgroup namespace.
    pub cgroup: Option<u64>,
}

/// Everything known about one process, postmaster or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyProcess {
    /// Pid and start time.
    pub id: ProcessId,
    /// Name, parent, state.
    pub stat: Stat,
    /// The file it runs. `None` for kernel threads, zombies, and without permission.
    pub exe: Option<Exe>,
    /// Arguments, any bytes, 4 KiB at most. Empty for kernel threads and zombies.
    pub cmdline: Vec<OsString>,
    /// Ids, threads, capabilities, sizes.
    pub status: Status,
    /// Its resource limits.
    pub limits: Option<Limits>,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// `oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
}

/// Reads everything about `pid`. `Ok(None)` when there is no such process, or another one has
/// taken its pid meanwhile.
///
/// # Errors
/// When one of its files is not in its format.
pub fn any_process(root: &Root, pid: Pid) -> Result<Option<AnyProcess>, ReadError> {
    let Some((stat, status)) = stat(root, pid)?.zip(status(root, pid)?) else {
        return Ok(None);
    };
    let facts = AnyProcess {
        id: ProcessId {
            pid,
            start_ticks: stat.start_ticks,
        },
        exe: exe(root, pid),
        cmdline: cmdline(root, pid)?,
        limits: limits(root, pid)?,
        namespaces: namespaces(&root.pid(pid)),
        oom_score_adj: oom_score_adj(root, pid)?,
        status,
        stat,
    };
    Ok(still(root, facts.id)?.then_some(facts))
}

/// Whether this process still exists (zombies included).
///
/// # Errors
/// As [`stat`].
pub fn still(root: &Root, id: ProcessId) -> Result<bool, ReadError> {
    Ok(stat(root, id.pid)?.is_some_and(|stat| stat.start_ticks == id.start_ticks))
}

/// Reads `/proc/PID/stat`.
///
/// # Errors
/// When it is not `pid (comm) state ppid ...` with a start time as field 22.
pub fn stat(root: &Root, pid: Pid) -> Result<Option<Stat>, ReadError> {
    let path = root.pid(pid).join("stat");
    let Some(text) = read::small(&path, 4096)? else {
        return Ok(None);
    };
    match parse_stat(&text) {
        Some(stat) => Ok(Some(stat)),
        None => Err(ReadError::parse(
            &path,
            1,
            "pid (comm) state ppid ... starttime",
            &text,
        )),
    }
}

/// The name may hold anything, also `") R 1 ("`: it ends at the last parenthesis.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let open = text.iter().position(|&byte| byte == b'(')?;
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let comm = OsStr::from_bytes(text.get(open + 1..close)?).to_owned();
    let mut fields = read::fields(&text[close + 1..]);
    let state = char::from(*fields.next()?.first()?);
    let parent = read::parse(fields.next()?)?;
    let group = read::parse(fields.next()?)?;
    let session = read::parse(fields.next()?)?;
    let flags: u64 = read::parse(fields.nth(2)?)?;
    let start_ticks = read::parse(fields.nth(12)?)?;
    Some(Stat {
        comm,
        state,
        parent,
        group,
        session,
        kernel_thread: flags & PF_KTHREAD != 0,
        start_ticks,
    })
}

/// The file that a process runs, see [`Exe`].
pub fn exe(root: &Root, pid: Pid) -> Option<Exe> {
    let link = fs::read_link(root.pid(pid).join("exe")).ok()?;
    let bytes = link.as_os_str().as_bytes();
    Some(match bytes.strip_suffix(b" (deleted)") {
        Some(path) => Exe {
            path: PathBuf::from(OsStr::from_bytes(path)),
            deleted: true,
        },
        None => Exe {
            path: link,
            deleted: false,
        },
    })
}

/// Arguments of a process, any bytes, 4 KiB at most; empty when there are none to read. A process
/// can write its own, and PostgreSQL does: the title of a backend is its first argument.
///
/// # Errors
/// When reading fails for another reason than absence or permission.
pub fn cmdline(root: &Root, pid: Pid) -> Result<Vec<OsString>, ReadError> {
    let text = read::small(&root.pid(pid).join("cmdline"), CMDLINE_LIMIT)?.unwrap_or_default();
    // Each argument ends with a NUL; a title is padded with more of them.
    let end = text
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        return Ok(Vec::new());
    }
    let arguments = text[..end].split(|&byte| byte == 0);
    Ok(arguments
        .map(|argument| OsString::from_vec(argument.to_vec()))
        .collect())
}

/// A variable of the environment that the process was started with: `Some(None)` when it was not
/// set, `None` when the environment cannot be read (that takes root or its user).
pub fn variable(root: &Root, pid: Pid, name: &str) -> Option<Option<OsString>> {
    let text = read::small(&root.pid(pid).join("environ"), ENVIRON_LIMIT).ok()??;
    let value = text.split(|&byte| byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=")
    });
    Some(value.map(|value| OsString::from_vec(value.to_vec())))
}

/// Namespaces of the process whose directory in `/proc` is `dir` (`/proc/PID`, `/proc/self`).
pub fn namespaces(dir: &Path) -> Namespaces {
    let inode = |name| namespace(dir, name);
    Namespaces {
        pid: inode("pid"),
        pid_for_children: inode("pid_for_children"),
        user: inode("user"),
        mnt: inode("mnt"),
        net: inode("net"),
        cgroup: inode("cgroup"),
    }
}

/// The number in a link such as `pid:[4026531836]`.
pub(crate) fn namespace(dir: &Path, name: &str) -> Option<u64> {
    let link = fs::read_link(dir.join("ns").join(name)).ok()?;
    let text = link.as_os_str().as_bytes();
    let open = text.iter().position(|&byte| byte == b'[')?;
    read::parse(text[open + 1..].strip_suffix(b"]")?)
}

/// `oom_score_adj`, -1000 (never killed) to 1000.
///
/// # Errors
/// When it is not a number.
pub fn oom_score_adj(root: &Root, pid: Pid) -> Result<Option<i32>, ReadError> {
    let path = root.pid(pid).join("oom_score_adj");
    let Some(text) = read::small(&path, 64)? else {
        return Ok(None);
    };
    match read::parse(text.trim_ascii()) {
        Some(value) => Ok(Some(value)),
        None => Err(ReadError::parse(&path, 1, "a number", &text)),
    }
}

/// All pids in `/proc`, in no order.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn pids(root: &Root) -> Result<impl Iterator<Item = Pid> + use<>, ReadError> {
    let proc = root.proc();
    let entries = fs::read_dir(&proc).map_err(|error| ReadError::io(&proc, error))?;
    // An entry that cannot be read is a process that ended while the list was made.
    Ok(entries
        .filter_map(Result::ok)
        .filter_map(|entry| read::parse(entry.file_name().as_bytes())))
}

/// Children of `parent`, by pid; none when `/proc` cannot be listed.
pub fn children(root: &Root, parent: Pid) -> Vec<Pid> {
    let is_child = |pid: &Pid| {
        let stat = stat(root, *pid).ok().flatten();
        stat.is_some_and(|stat| stat.parent == parent)
    };
    let pids = pids(root).into_iter().flatten();
    let mut children: Vec<Pid> = pids.filter(is_child).collect();
    children.sort_unstable();
    children
}

#[cfg(test)]
mod tests;
