//! A pids cgroup of the test's own, below the root of the hierarchy; removed at its end.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{unique, wait_for};

/// An outer cgroup and one in it, where processes are put.
pub(crate) struct Pids {
    outer: PathBuf,
    root: PathBuf,
}

impl Pids {
    /// `None`, and why, where the pids controller cannot be used.
    pub(crate) fn new() -> Result<Self, String> {
        let v1 = PathBuf::from("/sys/fs/cgroup/pids");
        let v2 = PathBuf::from("/sys/fs/cgroup");
        let root = if v1.join("cgroup.procs").exists() {
            v1
        } else if fs::read_to_string(v2.join("cgroup.subtree_control"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|it| it == "pids"))
        {
            v2
        } else {
            return Err("no pids controller to make a cgroup in".to_owned());
        };
        let name = format!("pgfork-trace-test-{}-{}", std::process::id(), unique());
        let outer = root.join(name);
        fs::create_dir(&outer).map_err(|error| format!("{}: {error}", outer.display()))?;
        let pids = Self { outer, root };
        let control = pids.outer.join("cgroup.subtree_control");
        if control.exists() {
            fs::write(control, "+pids").map_err(|error| error.to_string())?;
        }
        fs::create_dir(pids.leaf()).map_err(|error| error.to_string())?;
        Ok(pids)
    }

    pub(crate) fn leaf(&self) -> PathBuf {
        self.outer.join("server")
    }

    pub(crate) fn outer(&self) -> &Path {
        &self.outer
    }

    /// As the kernel names it, below the root of the hierarchy.
    pub(crate) fn name_of(&self, cgroup: &Path) -> String {
        format!("/{}", cgroup.strip_prefix(&self.root).unwrap().display())
    }

    pub(crate) fn current(cgroup: &Path) -> u64 {
        let text = fs::read_to_string(cgroup.join("pids.current")).unwrap();
        text.trim().parse().unwrap()
    }

    /// No task more than there are. Returns how many these are.
    pub(crate) fn close(cgroup: &Path) -> u64 {
        let tasks = Self::current(cgroup);
        fs::write(cgroup.join("pids.max"), tasks.to_string()).unwrap();
        tasks
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        for cgroup in [self.leaf(), self.outer.clone()] {
            // Ended processes leave a moment later.
            wait_for("an empty cgroup", || match fs::remove_dir(&cgroup) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => None,
                _ => Some(()),
            });
        }
    }
}
