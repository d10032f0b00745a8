//! A pids cgroup of this program's own, in a place that has the controller already: nothing that
//! exists is changed.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::host::{
    Root,
    cgroup::{self, Chain, Controller, Version},
    process,
};

/// How long ended processes may take to leave it.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// Its name, before the pid of the program.
const PREFIX: &str = "pgfork-trace-selftest-";

/// Removed when dropped.
#[derive(Debug)]
pub(super) struct PidsCgroup {
    directory: PathBuf,
    path: PathBuf,
}

impl PidsCgroup {
    /// Makes one that may have one task, below the nearest cgroup of this program's path that
    /// lets its children have the controller.
    pub(super) fn make(root: &Root) -> Result<Self, String> {
        let own = std::process::id();
        let chain = cgroup::chain(root, own, Controller::Pids)
            .map_err(|error| error.to_string())?
            .ok_or("this program's own cgroup could not be read")?;
        let name = format!("{PREFIX}{own}");
        let mut why = "no pids cgroup controller can be used here".to_owned();
        for (path, directory) in places(&chain) {
            remove_stale(root, directory);
            let made = Self {
                directory: directory.join(&name),
                path: path.join(&name),
            };
            match made.create() {
                Ok(()) => return Ok(made),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn create(&self) -> Result<(), String> {
        let said = |path: &Path, error| format!("{}: {error}", path.display());
        fs::create_dir(&self.directory).map_err(|error| said(&self.directory, error))?;
        let limit = self.directory.join("pids.max");
        fs::write(&limit, "1").map_err(|error| {
            // Not one of ours in the end.
            let _ = fs::remove_dir(&self.directory);
            said(&limit, error)
        })
    }

    /// Path below the root of the hierarchy.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it.
    pub(super) fn take(&self, pid: u32) -> Result<(), String> {
        let procs = self.directory.join("cgroup.procs");
        fs::write(&procs, pid.to_string()).map_err(|error| format!("{}: {error}", procs.display()))
    }
}

impl Drop for PidsCgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + EMPTY_WITHIN;
        while let Err(error) = fs::remove_dir(&self.directory) {
            let busy = error.kind() == ErrorKind::ResourceBusy;
            if !busy || Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What a run that was killed had to leave: nobody is in it, as its children died with it.
fn remove_stale(root: &Root, directory: &Path) {
    let lives = |pid| {
        let stat = process::stat(root, pid).ok().flatten();
        stat.is_some_and(|stat| stat.state != 'Z')
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(pid) = pid.and_then(|pid| pid.parse().ok())
            && !lives(pid)
        {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Where a child cgroup would have the controller without any change: everywhere on v1; on v2
/// where `cgroup.subtree_control` names it.
fn places(chain: &Chain) -> Vec<(&Path, &Path)> {
    let passes_on = |directory: &Path| {
        chain.version == Version::V1
            || fs::read_to_string(directory.join("cgroup.subtree_control"))
                .is_ok_and(|names| names.split_whitespace().any(|name| name == "pids"))
    };
    chain
        .levels
        .iter()
        .filter(|level| passes_on(&level.directory))
        .map(|level| (level.path.as_path(), level.directory.as_path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{FakeProcess, FakeRoot};

    fn host(subtree: &str) -> FakeRoot {
        let fake = FakeRoot::new();
        fake.write(
            "proc/self/mountinfo",
            "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        );
        fake.process(&FakeProcess {
            cgroup: b"0::/a/b\n".to_vec(),
            ..FakeProcess::new(std::process::id())
        });
        fake.write("sys/fs/cgroup/a/b/pids.max", "max\n");
        fake.write("sys/fs/cgroup/a/b/pids.current", "1\n");
        fake.write("sys/fs/cgroup/a/cgroup.subtree_control", subtree);
        fake
    }

    #[test]
    fn made_where_the_controller_is_passed_on() {
        let fake = host("cpu pids\n");
        let stale = fake.path("sys/fs/cgroup/a/pgfork-trace-selftest-4194303");
        let theirs = fake.path("sys/fs/cgroup/a/pgfork-trace-selftest-77");
        let ended = fake.path("sys/fs/cgroup/a/pgfork-trace-selftest-78");
        for directory in [&stale, &theirs, &ended] {
            fs::create_dir(directory).unwrap();
        }
        fake.process(&FakeProcess::new(77));
        fake.process(&FakeProcess {
            state: 'Z',
            ..FakeProcess::new(78)
        });
        let made = PidsCgroup::make(fake.root()).unwrap();
        assert!(!stale.exists() && !ended.exists() && theirs.exists());
        let name = format!("pgfork-trace-selftest-{}", std::process::id());
        assert_eq!(made.path(), Path::new("/a").join(&name));
        let directory = fake.path("sys/fs/cgroup/a").join(&name);
        assert_eq!(fs::read_to_string(directory.join("pids.max")).unwrap(), "1");
        made.take(77).unwrap();
        assert_eq!(
            fs::read_to_string(directory.join("cgroup.procs")).unwrap(),
            "77"
        );
        // Files of a real cgroup do not keep it from being removed.
        fs::remove_file(directory.join("pids.max")).unwrap();
        fs::remove_file(directory.join("cgroup.procs")).unwrap();
        drop(made);
        assert!(!directory.exists());
    }

    #[test]
    fn nothing_is_made_where_it_is_not() {
        let fake = host("cpu memory\n");
        let error = PidsCgroup::make(fake.root()).unwrap_err();
        assert!(error.contains("no pids cgroup controller"), "{error}");
    }
}
