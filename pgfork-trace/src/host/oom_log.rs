//! What the kernel log says about the OOM killer: whose memory was short, who was killed, and how
//! large it was. The parser is pure; the reader starts at the end of the log and never waits.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::kmsg::kernels_own;
use super::{Pid, Root};

/// Most records taken at one look: an OOM storm prints a table of all processes for each kill.
const MOST_RECORDS: usize = 20_000;
/// Longest record (`CONSOLE_EXT_LOG_MAX` or `PRINTKRB_RECORD_MAX`, kernel/printk, 5.10 to 7.2).
const RECORD: usize = 8_192;

/// One line of the OOM killer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OomLine {
    /// A memory cgroup's usage and limit, before its victim is named
    /// (`mem_cgroup_print_oom_meminfo`, mm/memcontrol.c, 5.10 to 7.2).
    Usage(Usage),
    /// Who was chosen, and whose memory was short (`dump_oom_summary` or `dump_oom_victim`,
    /// mm/oom_kill.c, 5.10 to 7.2).
    Chosen(Chosen),
    /// Who was killed (`__oom_kill_process`, mm/oom_kill.c, 5.10 to 7.2).
    Killed(Killed),
}

/// Usage and limit of a memory cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes used.
    pub usage_bytes: u64,
    /// Bytes allowed.
    pub limit_bytes: u64,
}

/// The line `oom-kill:constraint=...`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The victim.
    pub pid: Pid,
    /// The memory of the whole host (or of some NUMA nodes of it) was short, not that of a cgroup.
    pub global: bool,
    /// The memory cgroup that was short; absent for the whole host.
    pub oom_memcg: Option<String>,
    /// The memory cgroup that the victim was in.
    pub task_memcg: Option<String>,
}

/// The line `Killed process ...`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Killed {
    /// The victim.
    pub pid: Pid,
    /// Its name; any text.
    pub comm: String,
    /// The line begins with `Memory cgroup`.
    pub memcg: bool,
    /// Its sizes.
    pub sizes: Sizes,
}

/// How large the victim was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Address space.
    pub total_vm_bytes: Option<u64>,
    /// Private memory in RAM.
    pub anon_rss_bytes: Option<u64>,
    /// Files in RAM.
    pub file_rss_bytes: Option<u64>,
    /// Shared memory in RAM: shared_buffers that it had touched.
    pub shmem_rss_bytes: Option<u64>,
    /// Page tables.
    pub page_tables_bytes: Option<u64>,
    /// Its user.
    pub uid: Option<u32>,
    /// Its `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
}

/// Understands one record of `/dev/kmsg`: `priority,sequence,microseconds,flags;message`.
/// Only the kernel's own: what a program writes there has another facility.
#[must_use]
pub fn parse_record(record: &str) -> Option<OomLine> {
    let (_, message) = kernels_own(record)?;
    parse(message.split('\n').next()?)
}

/// Understands one message.
#[must_use]
pub fn parse(message: &str) -> Option<OomLine> {
    if let Some(rest) = message.strip_prefix("oom-kill:constraint=") {
        return chosen(rest).map(OomLine::Chosen);
    }
    if let Some(rest) = message.strip_prefix("memory: usage ") {
        return usage(rest).map(OomLine::Usage);
    }
    let (before, rest) = message.split_once(": Killed process ")?;
    let memcg = before == "Memory cgroup out of memory";
    // With vm.oom_kill_allocating_task there is more behind it.
    if memcg || before.starts_with("Out of memory") {
        return killed(rest, memcg).map(OomLine::Killed);
    }
    None
}

/// `NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=postgres,pid=8,uid=9`.
/// Names of cgroups and processes are any text: numbers are taken from the end.
fn chosen(rest: &str) -> Option<Chosen> {
    let (rest, _uid) = rest.trim_end().rsplit_once(",uid=")?;
    let (rest, pid) = rest.rsplit_once(",pid=")?;
    let pid = pid.parse().ok()?;
    let (rest, _comm) = rest.rsplit_once(",task=")?;
    let memcg_constraint = rest.starts_with("CONSTRAINT_MEMCG,");
    let (before, task_memcg) = match rest.split_once(",task_memcg=") {
        Some((before, path)) => (before, Some(path)),
        // No memory cgroups in this kernel, or turned off.
        None => (rest, None),
    };
    let oom_memcg = before
        .split_once(",oom_memcg=")
        .map(|(_, path)| path)
        .filter(|_| memcg_constraint);
    Some(Chosen {
        pid,
        global: !memcg_constraint,
        oom_memcg: oom_memcg.map(str::to_owned),
        task_memcg: task_memcg.map(str::to_owned),
    })
}

/// `512000kB, limit 512000kB, failcnt 33`.
fn usage(rest: &str) -> Option<Usage> {
    let (usage, rest) = rest.split_once(", limit ")?;
    let limit = rest.split(',').next()?;
    Some(Usage {
        usage_bytes: kilobytes(usage)?,
        limit_bytes: kilobytes(limit)?,
    })
}

/// `812 (postgres) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, UID:9 pgtables:5kB oom_score_adj:0`.
/// The name may hold anything, also `) total-vm:`: it ends at the last one.
fn killed(rest: &str, memcg: bool) -> Option<Killed> {
    let (pid, rest) = rest.split_once(" (")?;
    let (comm, rest) = rest.rsplit_once(") total-vm:")?;
    let mut sizes = Sizes {
        total_vm_bytes: rest.split(',').next().and_then(kilobytes),
        ..Sizes::default()
    };
    for field in rest.split([',', ' ']) {
        let Some((key, value)) = field.split_once(':') else {
            continue;
        };
        match key {
            "anon-rss" => sizes.anon_rss_bytes = kilobytes(value),
            "file-rss" => sizes.file_rss_bytes = kilobytes(value),
            "shmem-rss" => sizes.shmem_rss_bytes = kilobytes(value),
            "pgtables" => sizes.page_tables_bytes = kilobytes(value),
            "UID" => sizes.uid = value.parse().ok(),
            "oom_score_adj" => sizes.oom_score_adj = value.parse().ok(),
            _ => {}
        }
    }
    Some(Killed {
        pid: pid.parse().ok()?,
        comm: comm.to_owned(),
        memcg,
        sizes,
    })
}

fn kilobytes(text: &str) -> Option<u64> {
    let number: u64 = text.trim().strip_suffix("kB")?.parse().ok()?;
    number.checked_mul(1024)
}

/// New lines of the OOM killer's, from the time of opening on.
#[derive(Debug)]
pub struct OomLog {
    file: File,
}

impl OomLog {
    /// Opens the log at its end. The error says why it cannot be read.
    ///
    /// # Errors
    /// When it is not there, or reading takes CAP_SYSLOG (kernel.dmesg_restrict).
    pub fn open(root: &Root) -> std::io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(root.join(Path::new("/dev/kmsg")))?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file })
    }

    /// What was logged since the last look.
    pub fn new_lines(&mut self) -> Vec<OomLine> {
        let mut lines = Vec::new();
        let mut record = [0; RECORD];
        for _ in 0..MOST_RECORDS {
            match self.file.read(&mut record) {
                Ok(0) => break,
                // One read gives one record (kernel/printk/printk.c `devkmsg_read`).
                Ok(size) => {
                    lines.extend(parse_record(&String::from_utf8_lossy(&record[..size])));
                }
                // Records were overwritten meanwhile, a signal came, or a record is longer than
                // any should be: go on behind that.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EPIPE | libc::EINTR | libc::EINVAL)
                    ) => {}
                Err(_) => break,
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: &str) -> OomLine {
        parse_record(&format!("6,1000,123456,-;{message}\n SUBSYSTEM=x\n")).unwrap()
    }

    #[test]
    fn a_cgroup_of_each_kernel() {
        // The same text from 5.10 to 7.2.
        assert_eq!(
            of(
                "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=postgresql@15-main.service,mems_allowed=0,\
                oom_memcg=/system.slice/postgresql@15-main.service,\
                task_memcg=/system.slice/postgresql@15-main.service,task=postgres,pid=4711,uid=115"
            ),
            OomLine::Chosen(Chosen {
                pid: 4711,
                global: false,
                oom_memcg: Some("/system.slice/postgresql@15-main.service".to_owned()),
                task_memcg: Some("/system.slice/postgresql@15-main.service".to_owned()),
            })
        );
        assert_eq!(
            of("memory: usage 262144kB, limit 262144kB, failcnt 1033"),
            OomLine::Usage(Usage {
                usage_bytes: 256 << 20,
                limit_bytes: 256 << 20
            })
        );
        assert_eq!(
            of(
                "Memory cgroup out of memory: Killed process 4711 (postgres) total-vm:417340kB, anon-rss:210512kB, \
                file-rss:11264kB, shmem-rss:26112kB, UID:115 pgtables:736kB oom_score_adj:0"
            ),
            OomLine::Killed(Killed {
                pid: 4711,
                comm: "postgres".to_owned(),
                memcg: true,
                sizes: Sizes {
                    total_vm_bytes: Some(417_340 << 10),
                    anon_rss_bytes: Some(210_512 << 10),
                    file_rss_bytes: Some(11_264 << 10),
                    shmem_rss_bytes: Some(26_112 << 10),
                    page_tables_bytes: Some(736 << 10),
                    uid: Some(115),
                    oom_score_adj: Some(0),
                },
            })
        );
    }

    #[test]
    fn the_whole_host_and_numa_nodes() {
        for constraint in ["NONE", "CPUSET", "MEMORY_POLICY"] {
            assert_eq!(
                of(&format!(
                    "oom-kill:constraint=CONSTRAINT_{constraint},nodemask=(null),cpuset=/,mems_allowed=0,\
                    global_oom,task_memcg=/user.slice,task=python3,pid=9,uid=0"
                )),
                OomLine::Chosen(Chosen {
                    pid: 9,
                    global: true,
                    oom_memcg: None,
                    task_memcg: Some("/user.slice".to_owned()),
                })
            );
        }
        // Without memory cgroups.
        assert!(matches!(
            of(
                "oom-kill:constraint=CONSTRAINT_NONE,nodemask=0,cpuset=/,mems_allowed=0,task=a,pid=9,uid=0"
            ),
            OomLine::Chosen(Chosen {
                global: true,
                task_memcg: None,
                pid: 9,
                ..
            })
        ));
        for start in ["Out of memory", "Out of memory (oom_kill_allocating_task)"] {
            let OomLine::Killed(killed) = of(&format!(
                "{start}: Killed process 9 (python3) total-vm:9kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, \
                UID:0 pgtables:4kB oom_score_adj:-17"
            )) else {
                panic!("{start}")
            };
            assert!(!killed.memcg);
            assert_eq!(killed.sizes.oom_score_adj, Some(-17));
        }
    }

    #[test]
    fn hostile_names_change_no_number() {
        let OomLine::Killed(killed) = of(
            "Out of memory: Killed process 9 () total-vm:7kB,) total-vm:8kB, anon-rss:2kB, file-rss:0kB, \
            shmem-rss:0kB, UID:1 pgtables:4kB oom_score_adj:0",
        ) else {
            panic!("killed")
        };
        assert_eq!((killed.pid, killed.comm.as_str()), (9, ") total-vm:7kB,"));
        assert_eq!(killed.sizes.total_vm_bytes, Some(8 << 10));
        assert!(matches!(
            of(
                "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,pid=1,uid=2,\
                task_memcg=/a,global_oom,pid=1,uid=2,task=,pid=3,uid=4,pid=9,uid=0"
            ),
            OomLine::Chosen(Chosen {
                pid: 9,
                global: false,
                ..
            })
        ));
    }

    #[test]
    fn only_what_comes_after_the_opening() {
        use std::io::Write as _;
        let fake = super::super::fake::FakeRoot::new();
        assert!(OomLog::open(fake.root()).is_err());
        let record =
            |pid| format!("3,1,2,-;Out of memory: Killed process {pid} (a) total-vm:8kB\n");
        fake.write("dev/kmsg", record(1));
        let mut log = OomLog::open(fake.root()).unwrap();
        assert!(log.new_lines().is_empty());
        let mut file = OpenOptions::new()
            .append(true)
            .open(fake.path("dev/kmsg"))
            .unwrap();
        file.write_all(record(2).as_bytes()).unwrap();
        let lines = log.new_lines();
        assert!(
            matches!(lines.as_slice(), [OomLine::Killed(killed)] if killed.pid == 2),
            "{lines:?}"
        );
        assert!(log.new_lines().is_empty());
    }

    #[test]
    fn other_lines_and_those_of_programs_are_passed_over() {
        let killed = "Out of memory: Killed process 9 (a) total-vm:8kB, anon-rss:2kB";
        // Facility 1: written by a program.
        assert_eq!(parse_record(&format!("14,1,2,-;{killed}\n")), None);
        assert!(parse_record(&format!("3,1,2,-;{killed}\n")).is_some());
        for message in [
            "",
            "Tasks in /a are going to be killed due to memory.oom.group set",
            "x: Killed process 9 (a) total-vm:8kB",
            "oom-kill:constraint=CONSTRAINT_MEMCG",
            "oom-kill:constraint=,pid=x,uid=1",
            "Out of memory: Killed process 9",
            "Out of memory: Killed process x (a) total-vm:8kB",
            "memory: usage 1, limit 2",
            "memory: usage 99999999999999999999kB, limit 2kB",
        ] {
            assert_eq!(
                parse_record(&format!("3,1,2,-;{message}\n")),
                None,
                "{message}"
            );
        }
        for record in ["", ";", "x;y", "3,1,2,-"] {
            assert_eq!(parse_record(record), None);
        }
    }
}
