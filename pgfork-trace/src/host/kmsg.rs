//! The kernel log, read without consuming it: `/dev/kmsg` gives every reader its own position
//! (kernel/printk/printk.c `devkmsg_open`, 5.10 to 7.2).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::oom_log::{self, OomLine};
use super::read::is_absent;
use super::{Pid, Root};

/// Most bytes that are read: the log is a ring of a few MiB at most.
const MOST_BYTES: usize = 32 << 20;
/// Most distinct names that are told apart.
const DISTINCT: usize = 200;

/// How often something was logged, and when last, in microseconds since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Records.
    pub count: u64,
    /// Time of the last one.
    pub last_us: u64,
}

/// What the kernel log says about refused forks and killed processes. Records are limited in rate,
/// and the log is a ring: a count is "at least".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelLog {
    /// `fork rejected by pids controller`, by the cgroup that forked (not the one whose limit it
    /// was); the kernel logs it once for each cgroup.
    pub forks_rejected: BTreeMap<String, Times>,
    /// Processes that the OOM killer ended because the host had no memory, by name.
    pub oom_killed: BTreeMap<String, Times>,
    /// Processes that it ended because a cgroup had none, by name.
    pub cgroup_oom_killed: BTreeMap<String, Times>,
    /// `Out of memory and no killable processes`.
    pub nothing_killable: Times,
    /// Requests that overcommit refused, by the name of the process (from 6.1 on).
    pub commit_refused: BTreeMap<String, Times>,
    /// Failed allocations of the kernel's own, by the name of the process.
    pub allocation_failed: BTreeMap<String, Times>,
}

/// Reads the log. The error says why it cannot be read.
///
/// # Errors
/// When it is not there, or reading takes CAP_SYSLOG (kernel.dmesg_restrict).
pub fn kernel_log(root: &Root) -> Result<KernelLog, String> {
    let mut file = open(root)?;
    let mut log = KernelLog::default();
    let mut chunk = [0; 8192];
    let mut rest = Vec::new();
    let mut total = 0;
    while total < MOST_BYTES {
        let size = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(size) => size,
            // Records were overwritten meanwhile, or a signal came: go on behind that.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EINTR)) => {
                continue;
            }
            Err(_) => break,
        };
        total += size;
        rest.extend_from_slice(&chunk[..size]);
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            log.record(&rest[..end]);
            rest.drain(..=end);
        }
        // A record is one line of at most 8 KiB.
        if rest.len() > chunk.len() {
            rest.clear();
        }
    }
    log.record(&rest);
    Ok(log)
}

fn open(root: &Root) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(root.join(Path::new("/dev/kmsg")))
        .map_err(|error| match is_absent(&error) {
            true => format!("the kernel log cannot be read ({error}): that takes root"),
            false => format!("the kernel log cannot be read: {error}"),
        })
}

/// Splits a record into head and message, if it is the kernel's own: LOG_KERN is facility 0, the
/// three low bits are the level (kernel/printk/printk.c `devkmsg_write`, 5.10 to 7.2, sets LOG_USER
/// for programs that say nothing, and refuses LOG_KERN).
pub(super) fn kernels_own(record: &str) -> Option<(&str, &str)> {
    let (head, message) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    (priority >> 3 == 0).then_some((head, message))
}

/// A record that bears on refused forks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// `__vm_enough_memory: pid: N, comm: C, no enough memory for the allocation` (6.1; with
    /// other words in 6.12 to 7.2): this thread's request was refused by overcommit.
    CommitRefused(Pid),
    /// `cgroup: fork rejected by pids controller in PATH`: the cgroup that forked.
    PidsRejected(String),
    /// `Out of memory and no killable processes...`.
    NothingKillable,
    /// `oom-kill:constraint=CONSTRAINT_MEMCG,...,oom_memcg=PATH,...,pid=N,...`: the victim, and
    /// the memory cgroup that was short.
    CgroupOutOfMemory(Pid, String),
    /// `Memory cgroup out of memory: Killed process N (C)`.
    CgroupKilled(Pid),
    /// `Out of memory: Killed process N (C)`.
    HostKilled(Pid),
    /// `C: page allocation failure: ...`.
    AllocationFailed(String),
    /// `audit: out of memory in audit_alloc`.
    AuditOutOfMemory,
}

/// Reads what is logged from now on.
#[derive(Debug)]
pub struct Follower {
    file: File,
}

impl Follower {
    /// Begins at the end of the log.
    ///
    /// # Errors
    /// As [`kernel_log`].
    pub fn start(root: &Root) -> Result<Self, String> {
        let mut file = open(root)?;
        file.seek(SeekFrom::End(0))
            .map_err(|error| format!("the kernel log cannot be read: {error}"))?;
        Ok(Self { file })
    }

    /// What was logged since the last call; never waits. Records that were overwritten meanwhile
    /// are lost.
    pub fn fetch(&mut self) -> Vec<Entry> {
        let mut found = Vec::new();
        let mut chunk = [0; 8192];
        let mut total = 0;
        while total < MOST_BYTES {
            match self.file.read(&mut chunk) {
                Ok(0) => break,
                // The device gives one whole record for each read.
                Ok(size) => {
                    total += size;
                    let records = chunk[..size].split(|&byte| byte == b'\n');
                    found.extend(records.filter_map(|record| {
                        let record = String::from_utf8_lossy(record);
                        entry(kernels_own(&record)?.1)
                    }));
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EINTR)) => {}
                Err(_) => break,
            }
        }
        found
    }
}

fn entry(message: &str) -> Option<Entry> {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit())?;
        text[..end].parse().ok()
    };
    if let Some(path) = message.strip_prefix("cgroup: fork rejected by pids controller in ") {
        Some(Entry::PidsRejected(path.to_owned()))
    } else if message.starts_with("oom-kill:") {
        match oom_log::parse(message)? {
            OomLine::Chosen(chosen) => {
                Some(Entry::CgroupOutOfMemory(chosen.pid, chosen.oom_memcg?))
            }
            _ => None,
        }
    } else if let Some((of_cgroup, rest)) = killed(message) {
        number(rest).map(match of_cgroup {
            true => Entry::CgroupKilled,
            false => Entry::HostKilled,
        })
    } else if message.contains("ut of memory and no killable processes") {
        Some(Entry::NothingKillable)
    } else if let Some((_, rest)) = message.split_once("__vm_enough_memory: pid: ") {
        number(rest).map(Entry::CommitRefused)
    } else if message.contains("out of memory in audit_alloc") {
        Some(Entry::AuditOutOfMemory)
    } else {
        let (comm, _) = message.split_once(": page allocation failure")?;
        Some(Entry::AllocationFailed(comm.to_owned()))
    }
}

impl KernelLog {
    /// `priority,sequence,microseconds,flags;message`.
    fn record(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let Some((head, message)) = kernels_own(&line) else {
            return;
        };
        let Some(at) = head.split(',').nth(2).and_then(|at| at.parse().ok()) else {
            return;
        };
        if let Some(path) = message.strip_prefix("cgroup: fork rejected by pids controller in ") {
            add(&mut self.forks_rejected, path, at);
        } else if let Some((of_cgroup, rest)) = killed(message) {
            let killed = match of_cgroup {
                true => &mut self.cgroup_oom_killed,
                false => &mut self.oom_killed,
            };
            add(killed, comm(rest), at);
        } else if message.contains("ut of memory and no killable processes") {
            self.nothing_killable.add(at);
        } else if message.contains("not enough memory for the allocation")
            || message.contains("no enough memory for the allocation")
        {
            let name = message.split_once("comm: ").map_or("", |(_, rest)| {
                rest.rsplit_once(", ").map_or(rest, |it| it.0)
            });
            let name = name.split_once(", bytes:").map_or(name, |it| it.0);
            add(&mut self.commit_refused, name, at);
        } else if let Some((name, _)) = message.split_once(": page allocation failure") {
            add(&mut self.allocation_failed, name, at);
        }
    }
}

/// Whether the OOM killer ended a process for want of memory in a cgroup, not on the host; and
/// which (`__oom_kill_process`, mm/oom_kill.c, 5.10 to 7.2). Behind `Out of memory` there is more
/// with vm.oom_kill_allocating_task (`out_of_memory`).
fn killed(message: &str) -> Option<(bool, &str)> {
    let (why, rest) = message.split_once(": Killed process ")?;
    let of_cgroup = why == "Memory cgroup out of memory";
    (of_cgroup || why.starts_with("Out of memory")).then_some((of_cgroup, rest))
}

/// `812 (postgres) total-vm:...`.
fn comm(rest: &str) -> &str {
    let open = rest.find('(').map_or(0, |at| at + 1);
    let close = rest.find(") total-vm").unwrap_or(rest.len());
    rest.get(open..close.max(open)).unwrap_or_default()
}

fn add(map: &mut BTreeMap<String, Times>, name: &str, at: u64) {
    if map.len() < DISTINCT || map.contains_key(name) {
        map.entry(name.to_owned()).or_default().add(at);
    }
}

impl Times {
    fn add(&mut self, at: u64) {
        self.count += 1;
        self.last_us = self.last_us.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeRoot;
    use super::*;

    #[test]
    fn records_of_all_kernels() {
        let fake = FakeRoot::new();
        assert!(kernel_log(fake.root()).is_err());
        fake.write(
            "dev/kmsg",
            "6,1,100,-;cgroup: fork rejected by pids controller in /a b/c\n\
             6,2,200,-;__vm_enough_memory: pid: 7, comm: postgres, no enough memory for the allocation\n\
             4,3,300,-;__vm_enough_memory: pid: 8, comm: postgres, bytes: 16384 not enough memory for the allocation\n\
             3,4,400,-;Memory cgroup out of memory: Killed process 9 (post)gres) total-vm:1kB, anon-rss:1kB\n \
             SUBSYSTEM=x\n\
             3,5,500,-;Out of memory: Killed process 10 (java) total-vm:1kB\n\
             3,6,600,-;Out of memory and no killable processes...\n\
             4,7,700,-;postgres: page allocation failure: order:0, mode:0x1\n\
             odd line\n6,x,y,-;odd\n",
        );
        let log = kernel_log(fake.root()).unwrap();
        assert_eq!(log.forks_rejected["/a b/c"].last_us, 100);
        assert_eq!(
            log.commit_refused["postgres"],
            Times {
                count: 2,
                last_us: 300
            }
        );
        assert_eq!(log.cgroup_oom_killed["post)gres"].count, 1);
        assert_eq!(log.oom_killed["java"].count, 1);
        assert_eq!(log.nothing_killable.last_us, 600);
        assert_eq!(log.allocation_failed["postgres"].count, 1);
    }

    /// What Debian's kernels wrote of the same: the OOM killer asked for by sysrq, a memory cgroup,
    /// the host with vm.oom_kill_allocating_task and without, a pids cgroup, strict overcommit.
    #[test]
    fn records_as_they_were_written() {
        let logs = [
            (
                include_str!("testdata/kmsg-5.10.txt"),
                [126, 128, 129, 131],
                None,
            ),
            (
                include_str!("testdata/kmsg-6.1.txt"),
                [135, 137, 138, 139],
                Some(142),
            ),
            (
                include_str!("testdata/kmsg-6.12.txt"),
                [183, 185, 186, 187],
                Some(190),
            ),
            (
                include_str!("testdata/kmsg-6.18.txt"),
                [176, 178, 179, 180],
                Some(183),
            ),
            (
                include_str!("testdata/kmsg-7.2.txt"),
                [147, 149, 150, 152],
                Some(155),
            ),
        ];
        for (text, [by_sysrq, in_cgroup, allocating, largest], uncommitted) in logs {
            let fake = FakeRoot::new();
            fake.write("dev/kmsg", text);
            let log = kernel_log(fake.root()).unwrap();
            let killed: u64 = log.oom_killed.values().map(|it| it.count).sum();
            assert_eq!(killed, 3, "{text}");
            assert_eq!(log.oom_killed["tail"].count, 2, "{text}");
            assert_eq!(log.cgroup_oom_killed["tail"].count, 1, "{text}");
            assert_eq!(log.forks_rejected["/t"].count, 1, "{text}");
            let refused = log.commit_refused.get("tail").map(|it| it.count);
            assert_eq!(refused, uncommitted.map(|_| 1), "{text}");
            let entries: Vec<Entry> = text
                .lines()
                .filter_map(|record| entry(record.split_once(';')?.1))
                .collect();
            let mut expected = vec![
                Entry::HostKilled(by_sysrq),
                Entry::CgroupOutOfMemory(in_cgroup, "/t".to_owned()),
                Entry::CgroupKilled(in_cgroup),
                Entry::HostKilled(allocating),
                Entry::HostKilled(largest),
                Entry::PidsRejected("/t".to_owned()),
            ];
            expected.extend(uncommitted.map(Entry::CommitRefused));
            assert_eq!(entries, expected, "{text}");
        }
    }

    #[test]
    fn a_follower_sees_what_comes_after_it() {
        use std::io::Write as _;
        let fake = FakeRoot::new();
        assert!(Follower::start(fake.root()).is_err());
        fake.write(
            "dev/kmsg",
            "3,1,5,-;Out of memory and no killable processes...\n",
        );
        let mut follower = Follower::start(fake.root()).unwrap();
        assert_eq!(follower.fetch(), []);
        let mut log = OpenOptions::new()
            .append(true)
            .open(fake.path("dev/kmsg"))
            .unwrap();
        log.write_all(
            b"6,2,100,-;cgroup: fork rejected by pids controller in /a b/c\n\
              4,3,300,-;__vm_enough_memory: pid: 8, comm: x, bytes: 1 not enough memory for the allocation\n\
              3,4,400,-;Memory cgroup out of memory: Killed process 9 (a) total-vm:1kB\n\
              6,4,450,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=a,pid=9,uid=0\n\
              6,4,450,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=a,pid=9,uid=0\n\
              3,5,500,-;Out of memory: Killed process 10 (java) total-vm:1kB\n\
              3,6,600,-;Out of memory and no killable processes...\n\
              4,7,700,-;postgres: page allocation failure: order:0, mode:0x1\n\
              3,8,800,-;audit: out of memory in audit_alloc\n\
              12,8,850,-;Out of memory: Killed process 11 (written by a program) total-vm:1kB\n\
              6,9,900,-;something else\nodd\n3,9,1,-;Out of memory: Killed process x\n",
        )
        .unwrap();
        assert_eq!(
            follower.fetch(),
            [
                Entry::PidsRejected("/a b/c".to_owned()),
                Entry::CommitRefused(8),
                Entry::CgroupKilled(9),
                Entry::CgroupOutOfMemory(9, "/a".to_owned()),
                Entry::HostKilled(10),
                Entry::NothingKillable,
                Entry::AllocationFailed("postgres".to_owned()),
                Entry::AuditOutOfMemory,
            ]
        );
        assert_eq!(follower.fetch(), []);
    }

    #[test]
    fn a_long_line_ends_nothing() {
        let fake = FakeRoot::new();
        let mut content = vec![b'x'; 100_000];
        content.extend(b"\n6,1,5,-;Out of memory: Killed process 9 (a\n\xff\xff;\xff\n");
        content.extend(b"12,1,5,-;Out of memory: Killed process 3 (by a program) total-vm:1kB\n");
        fake.write("dev/kmsg", content);
        assert_eq!(kernel_log(fake.root()).unwrap().oom_killed.len(), 1);
    }
}
