//! Control groups: where a process is, and what every level above it allows.
//!
//! Works on v1 (a hierarchy per controller), v2 (one for all) and hybrids of both. A controller is
//! in exactly one hierarchy.

mod chain;
mod level;
mod memory_stat;
mod names;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::read::{self, ReadError};
use super::{Pid, Root, mountinfo};

pub use chain::{Chain, Reach, chain, resolve_id};
pub use level::{Level, MemoryFacts, PidsFacts};
pub use memory_stat::{MemoryStat, memory_stat};
pub use names::{ContainerRef, Manager, Runtime, UnitKind, UnitRef, container_of, unit_of};

/// The controllers that can refuse a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Controller {
    /// Counts tasks.
    Pids,
    /// Counts memory.
    Memory,
}

impl Controller {
    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pids => "pids",
            Self::Memory => "memory",
        }
    }
}

/// Which interface a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// One hierarchy per controller or group of controllers.
    V1,
    /// The unified hierarchy.
    V2,
}

/// One line of `/proc/PID/cgroup`: the process's cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Which interface; v2 is hierarchy 0.
    pub version: Version,
    /// Controllers, or one `name=...`, of a v1 hierarchy; empty for v2.
    pub controllers: Vec<OsString>,
    /// Path from the root of the tool's cgroup namespace; starts with `/..` when it lies outside.
    pub path: PathBuf,
    /// The cgroup has been removed while the process (a zombie) is still in it.
    pub deleted: bool,
}

impl Membership {
    /// Whether this v1 hierarchy has the controller, or is `name=NAME`.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// Reads `/proc/PID/cgroup` (`proc_cgroup_show`, kernel/cgroup/cgroup.c, 5.10 to 7.2).
///
/// # Errors
/// When a line is not `number:controllers:path`.
pub fn memberships(root: &Root, pid: Pid) -> Result<Option<Vec<Membership>>, ReadError> {
    let path = root.pid(pid).join("cgroup");
    let mut found = Vec::new();
    let read = read::lines(&path, |number, line| {
        let membership = parse_membership(line)
            .ok_or_else(|| ReadError::parse(&path, number, "number:controllers:/path", line))?;
        found.push(membership);
        Ok(())
    })?;
    Ok(read.map(|()| found))
}

fn parse_membership(line: &[u8]) -> Option<Membership> {
    let mut parts = line.splitn(3, |&byte| byte == b':');
    let hierarchy: u32 = read::parse(parts.next()?)?;
    let controllers = parts.next()?;
    let path = parts.next().filter(|path| path.starts_with(b"/"))?;
    // The kernel adds the mark only on v2; on v1 it would be part of a name.
    let alive = path.strip_suffix(b" (deleted)").filter(|_| hierarchy == 0);
    Some(Membership {
        version: if hierarchy == 0 {
            Version::V2
        } else {
            Version::V1
        },
        controllers: names_in(controllers),
        path: PathBuf::from(OsStr::from_bytes(alive.unwrap_or(path))),
        deleted: alive.is_some(),
    })
}

/// The membership that decides for a controller: its v1 hierarchy if it is in one, else v2.
pub fn membership_for(memberships: &[Membership], controller: Controller) -> Option<&Membership> {
    let v1 = memberships.iter().find(|line| line.has(controller.name()));
    v1.or_else(|| memberships.iter().find(|line| line.version == Version::V2))
}

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Which interface.
    pub version: Version,
    /// Options of the mount, for v1 the controllers among them.
    pub options: Vec<OsString>,
    /// The cgroup that is mounted here, from the root of the tool's cgroup namespace: `/`, or
    /// another when only a part is mounted, as in containers.
    pub mounted: PathBuf,
    /// Where, as the tool sees it.
    pub mount_point: PathBuf,
}

/// Cgroup mounts in `/proc/self/mountinfo`. Empty when there is no such file.
///
/// # Errors
/// When reading fails for another reason than absence or permission.
pub fn mounts(root: &Root) -> Result<Vec<Mount>, ReadError> {
    let mut found = Vec::new();
    mountinfo::each(&root.proc().join("self/mountinfo"), |mount| {
        let version = match mount.kind {
            b"cgroup" => Version::V1,
            b"cgroup2" => Version::V2,
            _ => return,
        };
        found.push(Mount {
            version,
            options: names_in(mount.options),
            mounted: mount.mounted,
            mount_point: mount.mount_point,
        });
    })?;
    Ok(found)
}

fn names_in(text: &[u8]) -> Vec<OsString> {
    text.split(|&byte| byte == b',')
        .filter(|name| !name.is_empty())
        .map(|name| OsStr::from_bytes(name).to_owned())
        .collect()
}

#[cfg(test)]
mod tests;
