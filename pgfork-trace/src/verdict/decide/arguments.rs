//! What the arguments of clone and clone3 bring about, where the system call itself was watched:
//! `sys_enter` was seen, so no filter or tracer answered, and the error is the kernel's own.

use pgfork_trace_common::{
    Check,
    syscall::{CLONE, CLONE3, ENTERED},
};

use super::{
    super::{Cause, call_name, errno_name},
    Found,
    before::with_vetoes,
    view::View,
};

// include/uapi/linux/sched.h, 5.10 to 7.2.
const VM: u64 = 0x100;
const FS: u64 = 0x200;
const SIGHAND: u64 = 0x800;
const PIDFD: u64 = 0x1000;
const PARENT: u64 = 0x8000;
const THREAD: u64 = 0x1_0000;
const NEWNS: u64 = 0x2_0000;
const DETACHED: u64 = 0x40_0000;
const NEWUSER: u64 = 0x1000_0000;
const NEWPID: u64 = 0x2000_0000;
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_NEWTIME`, `NEWNS`, `NEWCGROUP`, `NEWUTS`, `NEWIPC`, `NEWUSER`, `NEWPID`, `NEWNET`.
const NAMESPACES: u64 = 0x7e02_0080;

/// Flags that always give EINVAL together, before anything is copied (kernel/fork.c `copy_process`
/// and `clone3_args_valid`, 5.10 to 7.2).
const TOGETHER: [u64; 6] = [
    FS | NEWNS,
    FS | NEWUSER,
    THREAD | NEWUSER,
    THREAD | NEWPID,
    PIDFD | DETACHED,
    SIGHAND | CLEAR_SIGHAND,
];
/// Flags that give it without the second.
const WITHOUT: [(u64, u64); 2] = [(THREAD, SIGHAND), (SIGHAND, VM)];

/// Errors of clone that are for its arguments.
pub(super) fn refused(view: &View) -> Option<Found> {
    if !view.seen(ENTERED) {
        return None;
    }
    let (cause, check, why) = match -view.ret? {
        libc::EINVAL if contradict(view.attempt.clone_flags) => (
            Cause::InvalidCloneFlags,
            None,
            "its flags contradict each other, which is tested before anything else",
        ),
        libc::E2BIG if view.is_call(CLONE3) => (
            Cause::InvalidCloneFlags,
            None,
            "which only arguments that this kernel does not know give",
        ),
        libc::EFAULT if view.is_call(CLONE3) || pidfd_of_clone(view) => (
            Cause::InvalidCloneFlags,
            None,
            "which only a bad address among the arguments gives",
        ),
        libc::EEXIST if asks_for_pids(view) => (
            Cause::SetTidConflict,
            Some(Check::AllocPid),
            "which only a pid that was asked for and is taken gives",
        ),
        libc::EPERM | libc::EINVAL if asks_for_pids(view) && !has(view, NAMESPACES) => (
            Cause::SetTidConflict,
            Some(Check::AllocPid),
            "certain pids were asked for, and its flags do not contradict each other",
        ),
        libc::EBADF | libc::ENODEV | libc::EACCES | libc::EBUSY | libc::EOPNOTSUPP
            if has(view, INTO_CGROUP) =>
        {
            (
                Cause::CloneIntoCgroupFailed,
                Some(Check::CgroupCanFork),
                "which, of what was asked for, only the wish for a certain cgroup gives",
            )
        }
        libc::EPERM if has(view, NAMESPACES) && !asks_for_pids(view) => denied(view),
        libc::ENOSPC | libc::EUSERS if has(view, NAMESPACES) => denied(view),
        _ => return None,
    };
    let because = format!(
        "{} failed with {}, and no filter or tracer answered: {why}",
        call_name(view.attempt)?,
        errno_name(view.attempt.ret)
    );
    Some(with_vetoes(
        view,
        Found::deduced(cause, check, because),
        cause,
    ))
}

/// A user namespace is made by `copy_creds`, the others by `copy_namespaces`.
fn denied(view: &View) -> (Cause, Option<Check>, &'static str) {
    let check = (!has(view, NEWUSER)).then_some(Check::CopyNamespaces);
    let why = "which, of what was asked for, only the wish for a new namespace gives";
    (Cause::NamespaceDenied, check, why)
}

fn has(view: &View, any_of: u64) -> bool {
    view.flags(any_of) == Some(true)
}

fn asks_for_pids(view: &View) -> bool {
    view.attempt.set_tid_size != 0
}

fn pidfd_of_clone(view: &View) -> bool {
    view.is_call(CLONE) && has(view, PIDFD)
}

fn contradict(flags: u64) -> bool {
    TOGETHER.iter().any(|all| flags & all == *all)
        || WITHOUT
            .iter()
            .any(|(one, other)| flags & one != 0 && flags & other == 0)
}

/// Whether the call asks for nothing that has errors of its own.
pub(super) fn is_plain(view: &View) -> bool {
    let special = NAMESPACES | INTO_CGROUP | PIDFD | PARENT | THREAD;
    view.flags(special) == Some(false) && !asks_for_pids(view)
}
