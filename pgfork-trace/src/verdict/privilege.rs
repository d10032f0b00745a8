//! What the refused process may do, as the kernel asks it.

use pgfork_trace_common::{Attempt, valid};

use crate::host::capability;

/// `PROC_USER_INIT_INO`: inode number of the initial user namespace
/// (include/linux/proc_ns.h, 5.10 to 7.2).
const INITIAL_USERNS: u32 = 0xEFFF_FFFD;
pub(super) const CAP_SYS_ADMIN: u64 = capability::mask(capability::SYS_ADMIN);
const CAP_SYS_RESOURCE: u64 = capability::mask(capability::SYS_RESOURCE);

/// Whether the process has one of these capabilities in the initial user
/// namespace (kernel/capability.c `capable`): in a namespace of its own it has
/// none there. `None` when that could not be read.
pub(super) fn has(attempt: &Attempt, any_of: u64) -> Option<bool> {
    if attempt.valid & valid::CRED == 0 {
        return None;
    }
    if attempt.state.cap_effective & any_of == 0 {
        return Some(false);
    }
    let own = attempt.nproc[0].userns_inum;
    (attempt.valid & valid::NPROC != 0 && own != 0).then_some(own == INITIAL_USERNS)
}

/// kernel/fork.c `copy_process`, 5.10 to 7.2: `RLIMIT_NPROC` does not apply to
/// `INIT_USER`, which is the host's uid 0 in whatever user namespace, nor with
/// `CAP_SYS_RESOURCE` or `CAP_SYS_ADMIN` in the initial one.
pub(super) fn exempt_from_nproc(attempt: &Attempt) -> Option<bool> {
    let privileged = has(attempt, CAP_SYS_ADMIN | CAP_SYS_RESOURCE);
    if attempt.valid & valid::CRED != 0 && attempt.state.uid == 0 {
        return Some(true);
    }
    privileged
}
