//! `/proc/PID/limits`.

use super::super::read::{self, Ceiling, ReadError};
use super::super::{Pid, Root};

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RLimit {
    /// The one in force.
    pub soft: Ceiling,
    /// How far the process itself may raise it.
    pub hard: Ceiling,
}

/// The resource limits that matter to fork and to memory. `None` where the line is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// `RLIMIT_NPROC`: tasks of the real user id in its user namespace.
    pub processes: Option<RLimit>,
    /// `RLIMIT_AS`: address space, bytes.
    pub address_space_bytes: Option<RLimit>,
    /// `RLIMIT_DATA`: private writable memory, bytes.
    pub data_bytes: Option<RLimit>,
    /// `RLIMIT_STACK`, bytes.
    pub stack_bytes: Option<RLimit>,
    /// `RLIMIT_MEMLOCK`, bytes.
    pub locked_memory_bytes: Option<RLimit>,
    /// `RLIMIT_NOFILE`: open files.
    pub open_files: Option<RLimit>,
    /// `RLIMIT_SIGPENDING`: queued signals of the real user id.
    pub pending_signals: Option<RLimit>,
}

/// Reads `/proc/PID/limits`.
///
/// # Errors
/// When one of these lines has no soft and hard limit.
pub fn limits(root: &Root, pid: Pid) -> Result<Option<Limits>, ReadError> {
    let path = root.pid(pid).join("limits");
    let mut limits = Limits::default();
    let read = read::lines(&path, |number, line| {
        let Some((field, rest)) = limits.field(line) else {
            return Ok(());
        };
        let mut values = read::fields(rest).map(Ceiling::from_bytes);
        let soft = values.next().flatten();
        let hard = values.next().flatten();
        let (soft, hard) = soft
            .zip(hard)
            .ok_or_else(|| ReadError::parse(&path, number, "soft and hard limit", line))?;
        *field = Some(RLimit { soft, hard });
        Ok(())
    })?;
    Ok(read.map(|()| limits))
}

impl Limits {
    /// The field that a line is for, and what follows its name.
    fn field<'l>(&mut self, line: &'l [u8]) -> Option<(&mut Option<RLimit>, &'l [u8])> {
        let names: [(&[u8], &mut Option<RLimit>); 7] = [
            (b"Max processes ", &mut self.processes),
            (b"Max address space ", &mut self.address_space_bytes),
            (b"Max data size ", &mut self.data_bytes),
            (b"Max stack size ", &mut self.stack_bytes),
            (b"Max locked memory ", &mut self.locked_memory_bytes),
            (b"Max open files ", &mut self.open_files),
            (b"Max pending signals ", &mut self.pending_signals),
        ];
        names
            .into_iter()
            .find_map(|(name, field)| Some((field, line.strip_prefix(name)?)))
    }
}
