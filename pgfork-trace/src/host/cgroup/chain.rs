//! The cgroups above a process, up to the root of the hierarchy.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use super::super::process::{INITIAL_CGROUP_NS, namespace};
use super::super::read::ReadError;
use super::super::{Pid, Root};
use super::level::{Level, read_level};
use super::{Controller, Mount, Version, membership_for, memberships, mounts};

/// How much of the hierarchy above a process this tool can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Every level up to the root of the hierarchy.
    Root,
    /// Only up to the top of what is mounted here: the tool runs in a container. A level above
    /// may refuse, unseen.
    Partial,
    /// The process is in a cgroup that is not below any mount of this tool.
    Outside,
    /// The hierarchy of the controller is not mounted here.
    NotMounted,
    /// The process is in no hierarchy that could have the controller.
    NoController,
}

/// The cgroups that a controller looks at when a process forks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The controller.
    pub controller: Controller,
    /// Which interface it has here.
    pub version: Version,
    /// The process's own cgroup as `/proc/PID/cgroup` gives it; known even when no level is.
    pub path: PathBuf,
    /// How far up `levels` goes.
    pub reach: Reach,
    /// From the process's own cgroup upwards, as far as it is charged there. Empty unless `reach` is `Root` or `Partial`.
    /// A level whose directory does not have the controller's files (not enabled there) has no
    /// numbers.
    pub levels: Vec<Level>,
    /// v2, mounted with `pids_localevents`: `pids.events` counts the forks of the very cgroup.
    pub pids_local_events: bool,
    /// Files of the levels that were not in their format: path, and what was expected.
    pub unread: Vec<String>,
}

/// Reads the chain of `pid`. `Ok(None)` when there is no such process.
///
/// # Errors
/// When `/proc/PID/cgroup` is not in its format.
pub fn chain(root: &Root, pid: Pid, controller: Controller) -> Result<Option<Chain>, ReadError> {
    let Some(memberships) = memberships(root, pid)? else {
        return Ok(None);
    };
    let Some(own) = membership_for(&memberships, controller) else {
        return Ok(Some(Chain {
            controller,
            version: Version::V2,
            path: PathBuf::new(),
            reach: Reach::NoController,
            levels: Vec::new(),
            pids_local_events: false,
            unread: Vec::new(),
        }));
    };
    let mut chain = Chain {
        controller,
        version: own.version,
        path: own.path.clone(),
        reach: Reach::NotMounted,
        levels: Vec::new(),
        pids_local_events: false,
        unread: Vec::new(),
    };
    let Some((mount, below)) = best_mount(root, &mut chain)? else {
        return Ok(Some(chain));
    };
    let initial = namespace(&root.proc().join("self"), "cgroup")
        .is_none_or(|inode| inode == INITIAL_CGROUP_NS);
    let whole = initial && mount.mounted == Path::new("/");
    chain.reach = if whole { Reach::Root } else { Reach::Partial };
    chain.pids_local_events = mount.options.iter().any(|it| it == "pids_localevents");
    let top = root.join(&mount.mount_point);
    for (above, part) in below.ancestors().enumerate() {
        let path = join_clean(&mount.mounted, part);
        let directory = join_clean(&top, part);
        if above > 0 && controller == Controller::Memory && counts_itself_only(&directory) {
            break;
        }
        let unread = &mut chain.unread;
        let level = read_level(path, directory, controller, own.version, unread);
        chain.levels.push(level);
    }
    Ok(Some(chain))
}

/// Whether what is below a memory cgroup is not charged to it, nor to what is above: v1 with
/// `memory.use_hierarchy` 0 (mm/memcontrol.c `mem_cgroup_css_alloc`, 5.10; always 1 from 5.11 on).
fn counts_itself_only(directory: &Path) -> bool {
    std::fs::read_to_string(directory.join("memory.use_hierarchy"))
        .is_ok_and(|value| value.trim() == "0")
}

/// The level whose directory has the inode `kn_id`: the kernel's id of a cgroup
/// (`cgroup->kn->id`), which on 64-bit kernels is the inode number (`kernfs_ino`,
/// include/linux/kernfs.h, 5.10 to 7.2).
pub fn resolve_id(chain: &Chain, kn_id: u64) -> Option<&Level> {
    chain.levels.iter().find(|level| level.inode == Some(kn_id))
}

/// The mount of the hierarchy that shows most levels above the process's cgroup, with the path of
/// that cgroup below it. Notes in `chain.reach` why there is none.
fn best_mount(root: &Root, chain: &mut Chain) -> Result<Option<(Mount, PathBuf)>, ReadError> {
    let mut best: Option<(Mount, PathBuf)> = None;
    for mount in mounts(root)? {
        let has_controller = || {
            let name = chain.controller.name();
            mount.options.iter().any(|option| option == name)
        };
        if mount.version != chain.version || (mount.version == Version::V1 && !has_controller()) {
            continue;
        }
        let Some(below) = relative(&chain.path, &mount.mounted) else {
            chain.reach = match chain.reach {
                Reach::NotMounted => Reach::Outside,
                other => other,
            };
            continue;
        };
        let depth = |path: &Path| path.components().count();
        if best
            .as_ref()
            .is_none_or(|(_, other)| depth(&below) > depth(other))
        {
            best = Some((mount, below));
        }
    }
    Ok(best)
}

/// `path` as seen from the cgroup `from`, if it is at or below it. Both start at the root of the
/// tool's cgroup namespace, and with `/..` for each level above that root. Where they differ in
/// those, the names in between are not known.
fn relative(path: &Path, from: &Path) -> Option<PathBuf> {
    let (path_ups, path_names) = split(path);
    let (from_ups, from_names) = split(from);
    let below = path_names.strip_prefix(from_names.as_slice())?;
    (path_ups == from_ups).then(|| below.iter().collect())
}

/// Number of leading `..`, and the names after them.
fn split(path: &Path) -> (usize, Vec<&OsStr>) {
    let mut ups = 0;
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::ParentDir => ups += 1,
            Component::Normal(name) => names.push(name),
            _ => {}
        }
    }
    (ups, names)
}

/// `base/part` without a trailing slash for an empty part.
fn join_clean(base: &Path, part: &Path) -> PathBuf {
    let mut joined = OsString::from(base);
    if part.as_os_str().is_empty() {
        return joined.into();
    }
    if base != Path::new("/") {
        joined.push("/");
    }
    joined.push(part);
    joined.into()
}
