//! What a process's memory costs in overcommit when it forks.

use super::super::read::{self, ReadError};
use super::super::{Pid, Root};

/// Memory that the kernel charges to the commit counter when this process forks.
///
/// `dup_mmap` (kernel/fork.c 5.10:536, 6.1:648, 6.12:698; mm/mmap.c 6.18:1775, 7.2:1781) charges
/// every mapping with `VM_ACCOUNT` on its own and skips those with
/// `VM_DONTCOPY`. PostgreSQL's shared buffers are shared and cost nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accounted {
    /// Sum over all charged mappings, in bytes.
    pub total_bytes: u64,
    /// The largest single charge, in bytes: what the heuristic mode (0) looks at.
    pub largest_bytes: u64,
    /// Number of charged mappings.
    pub mappings: u64,
    /// Anonymous memory that no other process shares, in bytes, resident or swapped out: what ends
    /// with this process. At most what is private and what is anonymous in each mapping.
    pub private_bytes: u64,
    /// The largest shared writable mapping, in bytes: of a postmaster, the segment that holds
    /// shared_buffers and all else that is shared.
    pub shared_bytes: u64,
    /// It is of huge pages.
    pub shared_is_huge: bool,
    /// Resident memory, pages shared by n processes counted as 1/n (`Pss`), in bytes.
    pub pss_bytes: u64,
}

/// Resident memory whose page tables are walked in one go, at most, in bytes: a walk takes time in
/// proportion to it, and holds up whoever maps memory in that process.
pub const WALKED_BYTES: u64 = 8 << 30;

/// [`accounted`], for as long as `budget` has room for the resident memory of the process; it is
/// charged to it. `None` where nothing can be read, or no room is left.
pub fn accounted_within(root: &Root, pid: Pid, budget: &mut u64) -> Option<Accounted> {
    let resident = super::status(root, pid).ok().flatten()?.vm_rss_bytes;
    *budget = budget.checked_sub(resident.unwrap_or(0))?;
    accounted(root, pid).ok().flatten()
}

/// Adds up the mappings of `pid` in `/proc/PID/smaps` that have the flag `ac` and not `dc`.
/// `Ok(None)` without permission (it takes that of ptrace). An empty result is a process without
/// memory of its own: a kernel thread or a zombie.
///
/// The kernel walks the page tables of the process to produce this file (`show_smap`,
/// fs/proc/task_mmu.c), shared buffers included, so this takes time in proportion to them and is
/// not for the hot path.
///
/// # Errors
/// When a `Size` is not a number of kB.
pub fn accounted(root: &Root, pid: Pid) -> Result<Option<Accounted>, ReadError> {
    let path = root.pid(pid).join("smaps");
    let mut sum = Accounted::default();
    let (mut size, mut private, mut anonymous) = (0, 0, 0);
    let read = read::lines(&path, |number, line| {
        let kilobytes = |value: &[u8]| {
            read::kilobytes(value)
                .ok_or_else(|| ReadError::parse(&path, number, "a number of kB", value))
        };
        if let Some(value) = line.strip_prefix(b"Size:") {
            size = kilobytes(value)?;
            (private, anonymous) = (0, 0);
        } else if let Some(value) = line.strip_prefix(b"Pss:") {
            sum.pss_bytes = sum.pss_bytes.saturating_add(kilobytes(value)?);
        } else if let Some(value) = line
            .strip_prefix(b"Private_Clean:")
            .or_else(|| line.strip_prefix(b"Private_Dirty:"))
        {
            private = u64::saturating_add(private, kilobytes(value)?.min(size));
        } else if let Some(value) = line.strip_prefix(b"Anonymous:") {
            anonymous = kilobytes(value)?;
        } else if let Some(value) = line.strip_prefix(b"SwapPss:") {
            sum.private_bytes = sum.private_bytes.saturating_add(kilobytes(value)?);
        } else if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            // The last line of each mapping.
            let has = |flag: &[u8]| read::fields(flags).any(|field| field == flag);
            if has(b"ac") && !has(b"dc") {
                sum.total_bytes = sum.total_bytes.saturating_add(size);
                sum.largest_bytes = sum.largest_bytes.max(size);
                sum.mappings += 1;
            }
            if has(b"sh") && has(b"wr") && size > sum.shared_bytes {
                sum.shared_bytes = size;
                sum.shared_is_huge = has(b"ht");
            }
            let own = u64::min(private, anonymous);
            sum.private_bytes = sum.private_bytes.saturating_add(own);
            size = 0;
        }
        Ok(())
    })?;
    Ok(read.map(|()| sum))
}
