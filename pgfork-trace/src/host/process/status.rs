//! `/proc/PID/status`.

use std::path::Path;

use super::super::read::{self, ReadError};
use super::super::{Pid, Root};

/// The four user ids of a process, as seen from the tool's user namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uids {
    /// Real: the one that `RLIMIT_NPROC` counts.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved.
    pub saved: u32,
    /// For file access.
    pub filesystem: u32,
}

/// Seccomp mode of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// None.
    Off,
    /// Only read, write, exit.
    Strict,
    /// Filters are installed; they may refuse `clone`.
    Filter,
    /// A mode this program does not know.
    Other(u32),
}

/// What `/proc/PID/status` says. `None` where this kernel has no such line; sizes are also absent
/// for kernel threads and zombies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Process that this thread belongs to; differs from the pid when a thread id was asked for.
    pub tgid: Option<Pid>,
    /// Process that traces it, 0 for none.
    pub tracer_pid: Option<Pid>,
    /// Parent, 0 when outside of the tool's pid namespace.
    pub parent: Pid,
    /// User ids.
    pub uids: Uids,
    /// Threads.
    pub threads: u64,
    /// Its pid in every pid namespace it is in, from the tool's inwards; the last is its own
    /// idea of its pid. Empty where the kernel does not say.
    pub ns_pids: Vec<Pid>,
    /// Effective capabilities, one bit each.
    pub cap_effective: Option<u64>,
    /// Seccomp mode.
    pub seccomp: Option<Seccomp>,
    /// `VmSize`: address space, in bytes, shared memory included.
    pub vm_size_bytes: Option<u64>,
    /// `VmRSS`: resident, in bytes.
    pub vm_rss_bytes: Option<u64>,
    /// `VmData`: private writable memory, in bytes; what `RLIMIT_DATA` counts.
    pub vm_data_bytes: Option<u64>,
    /// `VmPTE`: page tables, in bytes.
    pub vm_pte_bytes: Option<u64>,
    /// `VmStk`: stack, in bytes.
    pub vm_stack_bytes: Option<u64>,
    /// Times that its main thread went to sleep and was woken again.
    pub voluntary_switches: Option<u64>,
}

/// Reads `/proc/PID/status`. Works for thread ids as well.
///
/// # Errors
/// When a line is not in its format or `PPid`, `Uid` or `Threads` is missing.
pub fn status(root: &Root, pid: Pid) -> Result<Option<Status>, ReadError> {
    status_at(&root.pid(pid).join("status"))
}

pub(crate) fn status_at(path: &Path) -> Result<Option<Status>, ReadError> {
    let mut status = Status::default();
    let mut missing = ["PPid", "Uid", "Threads"].to_vec();
    let mut last = 0;
    let read = read::lines(path, |number, line| {
        last = number;
        let Some((key, value)) = read::key_value(line) else {
            return Ok(());
        };
        missing.retain(|name| name.as_bytes() != key);
        status
            .set(key, value)
            .map_err(|expected| ReadError::parse(path, number, expected, line))
    })?;
    if read.is_none() {
        return Ok(None);
    }
    match missing.first() {
        None => Ok(Some(status)),
        Some(_) => Err(ReadError::parse(
            path,
            last + 1,
            "lines PPid, Uid and Threads",
            b"",
        )),
    }
}

impl Status {
    /// Takes over one line, or says what was expected.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const NUMBER: &str = "a number";
        const SIZE: &str = "a number of kB";
        match key {
            b"Tgid" => self.tgid = Some(read::parse(value).ok_or(NUMBER)?),
            b"PPid" => self.parent = read::parse(value).ok_or(NUMBER)?,
            b"TracerPid" => self.tracer_pid = Some(read::parse(value).ok_or(NUMBER)?),
            b"Threads" => self.threads = read::parse(value).ok_or(NUMBER)?,
            b"Uid" => self.uids = uids(value).ok_or("four user ids")?,
            b"NSpid" => {
                let pids = read::fields(value).map(read::parse);
                self.ns_pids = pids.collect::<Option<_>>().ok_or("pids")?;
            }
            b"CapEff" => {
                let digits = std::str::from_utf8(value).ok();
                let caps = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
                self.cap_effective = Some(caps.ok_or("a hexadecimal number")?);
            }
            b"Seccomp" => {
                self.seccomp = Some(match read::parse(value).ok_or(NUMBER)? {
                    0 => Seccomp::Off,
                    1 => Seccomp::Strict,
                    2 => Seccomp::Filter,
                    other => Seccomp::Other(other),
                });
            }
            b"VmSize" => self.vm_size_bytes = Some(read::kilobytes(value).ok_or(SIZE)?),
            b"VmRSS" => self.vm_rss_bytes = Some(read::kilobytes(value).ok_or(SIZE)?),
            b"VmData" => self.vm_data_bytes = Some(read::kilobytes(value).ok_or(SIZE)?),
            b"VmPTE" => self.vm_pte_bytes = Some(read::kilobytes(value).ok_or(SIZE)?),
            b"VmStk" => self.vm_stack_bytes = Some(read::kilobytes(value).ok_or(SIZE)?),
            b"voluntary_ctxt_switches" => {
                self.voluntary_switches = Some(read::parse(value).ok_or(NUMBER)?);
            }
            _ => {}
        }
        Ok(())
    }
}

fn uids(value: &[u8]) -> Option<Uids> {
    let mut fields = read::fields(value).map(read::parse);
    let mut next = || fields.next().flatten();
    Some(Uids {
        real: next()?,
        effective: next()?,
        saved: next()?,
        filesystem: next()?,
    })
}
