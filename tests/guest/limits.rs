//! The kernel's own numbers, and the limits that the scenarios set.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Reads a file that holds one number.
pub(crate) fn number(path: impl AsRef<Path>) -> Result<u64> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.trim()
        .parse()
        .with_context(|| format!("{}: {text}", path.display()))
}

/// A value of /proc/meminfo in bytes.
pub(crate) fn meminfo(key: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .context("no such key")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Writes a sysctl.
pub(crate) fn set_sysctl(name: &str, value: u64) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    fs::write(&path, value.to_string()).with_context(|| format!("{value} > {path}"))
}

/// A sysctl's number.
pub(crate) fn sysctl(name: &str) -> Result<u64> {
    number(format!("/proc/sys/{name}"))
}

/// Two cgroups, one in the other, with the pids controller.
pub(crate) struct Cgroups {
    /// The outer one.
    pub(crate) outer: PathBuf,
    /// The inner one.
    pub(crate) inner: PathBuf,
}

impl Cgroups {
    /// Makes them, on whichever hierarchy has the pids controller here.
    pub(crate) fn make() -> Result<Self> {
        let root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
            .into_iter()
            .map(PathBuf::from)
            .find(|root| root.join("cgroup.procs").exists())
            .context("no cgroup hierarchy is mounted")?;
        let outer = root.join("pgtest");
        let inner = outer.join("inner");
        fs::create_dir_all(&outer)?;
        if outer.join("cgroup.subtree_control").exists() {
            fs::write(outer.join("cgroup.subtree_control"), "+pids")?;
        }
        fs::create_dir_all(&inner)?;
        ensure!(
            inner.join("pids.max").exists(),
            "no pids controller in {}",
            inner.display()
        );
        let cgroups = Self { outer, inner };
        cgroups.open()?;
        Ok(cgroups)
    }

    /// Lifts both limits.
    pub(crate) fn open(&self) -> Result<()> {
        for cgroup in [&self.outer, &self.inner] {
            fs::write(cgroup.join("pids.max"), "max")?;
        }
        Ok(())
    }
}

/// Times that this cgroup was blamed for a refusal, 0 where the kernel does not say.
/// From 6.12 on `pids.events` also counts what happened below; `.local` does not.
pub(crate) fn pids_events(cgroup: &Path) -> u64 {
    let text = fs::read_to_string(cgroup.join("pids.events.local"))
        .or_else(|_| fs::read_to_string(cgroup.join("pids.events")))
        .unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
        .unwrap_or(0)
}

/// Makes the window in which root can still start a client and the server cannot fork wide
/// enough for a counter that is exact only to some megabytes. Returns what to leave free.
pub(crate) fn widen_admin_reserve() -> Result<u64> {
    set_sysctl("vm/admin_reserve_kbytes", 64 * 1024)?;
    Ok(36 << 20)
}

/// Sets `RLIMIT_NPROC` of another process: the soft one, and no hard one.
pub(crate) fn set_nproc(pid: u32, limit: u64) -> Result<()> {
    let new = libc::rlimit {
        rlim_cur: limit,
        rlim_max: libc::RLIM_INFINITY,
    };
    let pid = i32::try_from(pid)?;
    // SAFETY: `new` is valid for reading; the old limit is not asked for.
    if unsafe {
        libc::prlimit(
            pid,
            libc::RLIMIT_NPROC,
            &raw const new,
            std::ptr::null_mut(),
        )
    } != 0
    {
        bail!("prlimit: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// Real uid of a process, and how many tasks on the host have it: the kernel's count for `RLIMIT_NPROC`.
pub(crate) fn tasks_of_user_of(pid: u32) -> Result<(u64, u64)> {
    let field = |text: &str, key: &str| -> Option<u64> {
        text.lines().find_map(|line| {
            line.strip_prefix(key)?
                .split_ascii_whitespace()
                .next()?
                .parse()
                .ok()
        })
    };
    let own = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let uid = field(&own, "Uid:").context("no Uid")?;
    let mut tasks = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        if field(&status, "Uid:") == Some(uid) {
            tasks += field(&status, "Threads:").unwrap_or(0);
        }
    }
    Ok((uid, tasks))
}

/// Private writable memory that counts towards the commit limit, held by a process of its own:
/// the forks of this program would have to pay for a copy.
pub(crate) struct Hog(Child);

impl Hog {
    /// Starts a process that maps `length` bytes; nothing is touched, so that no RAM is used.
    pub(crate) fn map(length: u64) -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["hog", &length.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(
            line == "mapped\n",
            "the hog could not map {length} bytes: {line}"
        );
        Ok(Self(child))
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the process started by [`Hog::map`] does.
pub(crate) fn hog(length: &str) -> Result<()> {
    let length: usize = length.parse()?;
    // SAFETY: a new anonymous mapping.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        bail!(
            "cannot map {length} bytes: {}",
            std::io::Error::last_os_error()
        );
    }
    println!("mapped");
    loop {
        std::thread::park();
    }
}

/// Restores a sysctl when dropped.
pub(crate) struct Restored {
    name: &'static str,
    value: u64,
}

impl Restored {
    /// Remembers the value of `name`.
    pub(crate) fn remember(name: &'static str) -> Result<Self> {
        Ok(Self {
            name,
            value: sysctl(name)?,
        })
    }

    /// Sets it as it was; it may be changed again.
    pub(crate) fn restore(&self) -> Result<()> {
        set_sysctl(self.name, self.value)
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = self.restore();
    }
}
