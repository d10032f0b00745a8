//! Choosing among processes by what the user named on the command line.

use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::discover::Postmaster;
use crate::host::process::{self, AnyProcess};
use crate::host::{Pid, ReadError, Root};

/// What the user asked for. Several are joined by "or"; nothing means all postmasters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Processes of any kind.
    pub pids: Vec<Pid>,
    /// Ports of postmasters. Containers may share a port: then all of them.
    pub ports: Vec<u16>,
    /// Data directories: as the postmaster sees it, or any path of the tool's own that leads to it.
    pub data_dirs: Vec<PathBuf>,
    /// Names (`comm`) of processes of any kind, of those to come too.
    pub comms: Vec<String>,
}

impl Filter {
    /// Whether postmasters that appear later may be meant: all of them, or some by what they serve.
    #[must_use]
    pub fn awaits_postmasters(&self) -> bool {
        *self == Self::default() || !self.ports.is_empty() || !self.data_dirs.is_empty()
    }
}

/// A process to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A postmaster.
    Postmaster(Box<Postmaster>),
    /// Another process that was named by its pid.
    Process(Box<AnyProcess>),
}

impl Target {
    /// Its pid.
    pub fn pid(&self) -> Pid {
        match self {
            Self::Postmaster(postmaster) => postmaster.pid,
            Self::Process(process) => process.id.pid,
        }
    }
}

/// What the user asked for is not there.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// `--pid`
    #[error("there is no process {pid}")]
    NoSuchPid {
        /// The pid.
        pid: Pid,
    },
    /// `--pid` with a thread id.
    #[error("{tid} is a thread of process {pid}; give the process")]
    Thread {
        /// What was given.
        tid: Pid,
        /// Its process.
        pid: Pid,
    },
    /// `--port`
    #[error("no postmaster on port {port}; {}", known(.existing))]
    NoSuchPort {
        /// The port.
        port: u16,
        /// Pid, port and data directory of the postmasters that exist.
        existing: Vec<Existing>,
    },
    /// `--data-dir`
    #[error("no postmaster in data directory {data_dir:?}; {}", known(.existing))]
    NoSuchDataDir {
        /// The directory.
        data_dir: PathBuf,
        /// Pid, port and data directory of the postmasters that exist.
        existing: Vec<Existing>,
    },
    /// One of these, and not all of `/proc` can be seen.
    #[error("{missing}; it may be there all the same: {hidden}")]
    Hidden {
        /// What was not found.
        missing: Box<SelectError>,
        /// Why, see [`crate::host::hidden_proc`].
        hidden: String,
    },
    /// A file of a named process is not in its format.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl SelectError {
    /// Adds why processes may be missing, if they may.
    #[must_use]
    pub fn seen_through(self, hidden: Option<&str>) -> Self {
        match (self, hidden) {
            (error @ Self::Read(_), _) | (error, None) => error,
            (missing, Some(hidden)) => Self::Hidden {
                missing: Box::new(missing),
                hidden: hidden.to_owned(),
            },
        }
    }
}

/// A postmaster that could have been named instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// Its pid.
    pub pid: Pid,
    /// Its port.
    pub port: Option<u16>,
    /// Its data directory.
    pub data_dir: PathBuf,
}

/// "found: 12 (port 5432, "/pg"), ...". Paths are quoted and escaped: others chose them.
fn known(existing: &[Existing]) -> String {
    let names: Vec<String> = existing
        .iter()
        .map(
            |Existing {
                 pid,
                 port,
                 data_dir,
             }| match port {
                Some(port) => format!("{pid} (port {port}, {data_dir:?})"),
                None => format!("{pid} (no port yet, {data_dir:?})"),
            },
        )
        .collect();
    match names.is_empty() {
        true => "no postmaster was found".to_owned(),
        false => format!("found: {}", names.join(", ")),
    }
}

/// Picks the processes that `filter` names among `postmasters`, each once and in the order of
/// `postmasters`; processes that are none follow. All postmasters for an empty filter. Names are
/// not looked up here: nobody has to have one yet.
///
/// # Errors
/// When something was named that does not exist; see [`SelectError`].
pub fn select(
    root: &Root,
    postmasters: &[Postmaster],
    filter: &Filter,
) -> Result<Vec<Target>, SelectError> {
    let all = filter == &Filter::default();
    let mut chosen = vec![all; postmasters.len()];
    let mut mark = |wanted: &dyn Fn(&Postmaster) -> bool| {
        let mut any = false;
        for (postmaster, chosen) in postmasters.iter().zip(&mut chosen) {
            if wanted(postmaster) {
                (any, *chosen) = (true, true);
            }
        }
        any
    };
    let existing = || {
        let list = postmasters.iter().map(|postmaster| Existing {
            pid: postmaster.pid,
            port: postmaster.port,
            data_dir: postmaster.data_dir.clone(),
        });
        list.collect()
    };
    let mut others = Vec::new();
    for &pid in &filter.pids {
        if !mark(&|postmaster| postmaster.pid == pid)
            && !others.iter().any(|other: &Target| other.pid() == pid)
        {
            others.push(other(root, pid)?);
        }
    }
    for &port in &filter.ports {
        if !mark(&|postmaster| postmaster.port == Some(port)) {
            let existing = existing();
            return Err(SelectError::NoSuchPort { port, existing });
        }
    }
    for data_dir in &filter.data_dirs {
        if !mark(&|postmaster| is_in(root, postmaster, data_dir)) {
            return Err(SelectError::NoSuchDataDir {
                data_dir: data_dir.clone(),
                existing: existing(),
            });
        }
    }
    let named = postmasters.iter().zip(chosen).filter(|(_, chosen)| *chosen);
    let mut targets: Vec<_> = named
        .map(|(postmaster, _)| Target::Postmaster(Box::new(postmaster.clone())))
        .collect();
    targets.extend(others);
    Ok(targets)
}

fn other(root: &Root, pid: Pid) -> Result<Target, SelectError> {
    let process = process::any_process(root, pid)?.ok_or(SelectError::NoSuchPid { pid })?;
    match process.status.tgid {
        Some(tgid) if tgid != pid => Err(SelectError::Thread {
            tid: pid,
            pid: tgid,
        }),
        _ => Ok(Target::Process(Box::new(process))),
    }
}

/// By name, or because both lead to the same directory.
fn is_in(root: &Root, postmaster: &Postmaster, data_dir: &Path) -> bool {
    let inode = |path: &Path| Some(metadata(path).ok()?).map(|found| (found.dev(), found.ino()));
    let same = || {
        let wanted = match data_dir.is_absolute() {
            true => inode(&root.join(data_dir))?,
            false => inode(data_dir)?,
        };
        Some(wanted == inode(&root.pid(postmaster.pid).join("cwd"))?)
    };
    postmaster.data_dir == data_dir || same().unwrap_or(false)
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
