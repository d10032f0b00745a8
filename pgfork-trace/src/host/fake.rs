//! A fake file tree for tests: `/proc`, `/sys` and data directories below a temporary directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Pid, Root};

pub(crate) struct FakeRoot {
    root: Root,
    directory: tempfile::TempDir,
}

impl FakeRoot {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(directory.path().join("proc")).expect("a new directory");
        Self {
            root: Root::new(directory.path()),
            directory,
        }
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// Where `relative` is for real.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(relative)
    }

    pub(crate) fn write(&self, relative: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().expect("a parent")).expect("its directory");
        fs::write(path, content).expect("a written file");
    }

    /// A link with any target; an existing one is replaced.
    pub(crate) fn link(&self, relative: impl AsRef<Path>, target: impl AsRef<Path>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().expect("a parent")).expect("its directory");
        let _ = fs::remove_file(&path);
        symlink(target, path).expect("a new link");
    }

    pub(crate) fn remove(&self, relative: impl AsRef<Path>) {
        let path = self.path(relative);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).expect("a removed directory");
        } else {
            fs::remove_file(path).expect("a removed file");
        }
    }

    /// Writes the files of `/proc/PID`.
    pub(crate) fn process(&self, process: &FakeProcess) {
        let FakeProcess {
            pid,
            parent,
            uid,
            threads,
            start_ticks,
            ..
        } = *process;
        let dir = PathBuf::from(format!("proc/{pid}"));
        let mut stat = format!("{pid} (").into_bytes();
        stat.extend_from_slice(&process.comm);
        let (state, flags) = (process.state, process.flags);
        stat.extend_from_slice(
            format!(
                ") {state} {parent} 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 {threads} 0 {start_ticks} 1 1\n"
            )
            .as_bytes(),
        );
        self.write(dir.join("stat"), stat);
        let ns_pids: Vec<_> = process.ns_pids.iter().map(Pid::to_string).collect();
        self.write(
            dir.join("status"),
            format!(
                "Name:\tx\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n\
                 NSpid:\t{}\nThreads:\t{threads}\nCapEff:\t0000000000000000\nSeccomp:\t2\nVmData:\t    40 kB\n",
                ns_pids.join("\t")
            ),
        );
        self.write(dir.join("cgroup"), &process.cgroup);
        self.link(dir.join("ns/mnt"), format!("mnt:[{}]", process.mnt_ns));
        self.link(dir.join("ns/user"), format!("user:[{}]", process.user_ns));
        if let Some(exe) = &process.exe {
            self.link(dir.join("exe"), OsStr::from_bytes(exe));
        }
        if let Some(cwd) = &process.cwd {
            fs::create_dir_all(self.path(cwd)).expect("a working directory");
            self.link(dir.join("cwd"), self.path(cwd));
        }
    }

    /// Writes a data directory with the lock file of a running server.
    pub(crate) fn data_dir(&self, relative: &str, seen_as: &str, pid: i64, port: u16) {
        self.write(
            format!("{relative}/postmaster.pid"),
            format!("{pid}\n{seen_as}\n1763858400\n{port}\n/run\nlocalhost\n  1 2\nready   \n"),
        );
        self.write(format!("{relative}/PG_VERSION"), "15\n");
    }
}

/// A process to put into a [`FakeRoot`].
#[derive(Clone)]
pub(crate) struct FakeProcess {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    pub(crate) ns_pids: Vec<Pid>,
    pub(crate) comm: Vec<u8>,
    pub(crate) state: char,
    pub(crate) flags: u32,
    pub(crate) uid: u32,
    pub(crate) threads: u64,
    pub(crate) start_ticks: u64,
    pub(crate) exe: Option<Vec<u8>>,
    /// Below the root.
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) cgroup: Vec<u8>,
    pub(crate) mnt_ns: u64,
    pub(crate) user_ns: u64,
}

impl FakeProcess {
    pub(crate) fn new(pid: Pid) -> Self {
        Self {
            pid,
            parent: 1,
            ns_pids: vec![pid],
            comm: b"sh".to_vec(),
            state: 'S',
            flags: 0x40_0000,
            uid: 26,
            threads: 1,
            start_ticks: u64::from(pid) * 100,
            exe: Some(b"/bin/sh".to_vec()),
            cwd: None,
            cgroup: b"0::/\n".to_vec(),
            mnt_ns: 4_026_531_841,
            user_ns: 4_026_531_837,
        }
    }

    /// A server process with its data directory as working directory.
    pub(crate) fn postgres(pid: Pid, cwd: &str) -> Self {
        Self {
            comm: b"postgres".to_vec(),
            exe: Some(b"/usr/lib/postgresql/15/bin/postgres".to_vec()),
            cwd: Some(cwd.into()),
            ..Self::new(pid)
        }
    }
}
