//! What stands before the fork path, vetoes in it, and the state of the process itself.

use super::{Cause, CauseEntry};

pub(super) const ENTRIES: &[CauseEntry] = &[
    CauseEntry {
        cause: Cause::PidNamespaceDying,
        id: "pid_namespace_dying",
        title: "the init process of the pid namespace is gone",
        errno: "ENOMEM",
        function: "alloc_pid",
        evidence: "Observed: alloc_pid returned -ENOMEM, and the namespace that it was called with (or one above) takes \
                   no new process. Deduced (tracepoint): the namespace for children takes none right after.",
        meaning: "The first process of the container, or of the pid namespace made with unshare, has ended, and the \
                  kernel lets no new process into such a namespace. The message speaks of memory, but no memory is \
                  short; nothing helps but to start anew.",
        remedy: "Restart the container. Where the server was started under unshare --pid, add --fork.",
        verify: "readlink /proc/PID/ns/pid_for_children; lsns -t pid   (the namespace has a process with number 1)",
    },
    CauseEntry {
        cause: Cause::PidNamespaceDyingLate,
        id: "pid_namespace_dying_late",
        title: "the init process of the pid namespace went during the fork",
        errno: "ENOMEM",
        function: "copy_process",
        evidence: "Deduced, as the check is inline: cgroup_cancel_fork was reached with ENOMEM, and neither the \
                   scheduler nor the futex hash, the only others there, refused.",
        meaning: "The first process of the container ended at the very moment of the fork. From then on every fork in \
                  it fails.",
        remedy: "Find out why the container's first process ended, and restart the container.",
        verify: "lsns -t pid   (the namespace has a process with number 1)",
    },
    CauseEntry {
        cause: Cause::SeccompDenied,
        id: "seccomp_denied",
        title: "a seccomp filter refused the system call",
        errno: "any",
        function: "__seccomp_filter",
        evidence: "Deduced: fork() of the C library failed, kernel_clone was hooked and not entered, and the process \
                   has a seccomp filter. Without hooks: it has a filter, and nothing else that gives this error fits; \
                   with --syscalls, sys_exit was seen without sys_enter.",
        meaning: "A filter of system calls (systemd SystemCallFilter=, a container's seccomp profile) does not let the \
                  process make new processes, and answers with an error of its author's choice. That error says \
                  nothing about memory or limits.",
        remedy: "Allow clone, clone3, fork and vfork: SystemCallFilter=@process in the unit, or another seccomp profile \
                 for the container.",
        verify: "grep Seccomp: /proc/PID/status   (0: no filter), and a new connection works",
    },
    CauseEntry {
        cause: Cause::PtraceOrUserDispatch,
        id: "ptrace_or_user_dispatch",
        title: "a tracer or syscall user dispatch took the system call",
        errno: "any",
        function: "syscall_trace_enter",
        evidence: "Deduced: fork() of the C library failed, kernel_clone was hooked and not entered, the process has no \
                   seccomp filter, and a tracer is attached (or nothing else stands before the kernel's fork path).",
        meaning: "A debugger or sandbox that is attached to the process takes its system calls and answers them \
                  itself. What it answered is its own decision.",
        remedy: "Detach the tracer.",
        verify: "grep TracerPid /proc/PID/status   (0: none)",
    },
    CauseEntry {
        cause: Cause::LsmDenied,
        id: "lsm_denied",
        title: "a security module refused the new process",
        errno: "any",
        function: "security_task_alloc",
        evidence: "Observed: security_task_alloc returned the error. Deduced with ENOMEM, which want of memory for the \
                   module's data gives as well.",
        meaning: "A security module of the kernel (SELinux, TOMOYO, a BPF program) does not allow the process to make \
                  another. The rule is its administrator's; no limit is reached.",
        remedy: "Look in the audit log for the denial, and change the module's policy.",
        verify: "ausearch -m avc,user_avc -ts recent; cat /sys/kernel/security/lsm",
    },
    CauseEntry {
        cause: Cause::SchedExtRejected,
        id: "sched_ext_rejected",
        title: "a BPF scheduler (sched_ext) refused the new process",
        errno: "any",
        function: "scx_fork",
        evidence: "Observed: sched_cgroup_fork, which asks the BPF scheduler, returned the error (6.12 and later).",
        meaning: "The host runs a scheduler that was loaded as a BPF program, and that refused to take the new \
                  process. No limit of the kernel is reached.",
        remedy: "Stop the BPF scheduler: the kernel's own takes over at once.",
        verify: "cat /sys/kernel/sched_ext/state   (disabled)",
    },
    CauseEntry {
        cause: Cause::PerfInheritFailed,
        id: "perf_inherit_failed",
        title: "inherited perf events could not be set up",
        errno: "any",
        function: "perf_event_init_task",
        evidence: "Observed: perf_event_init_task returned the error (6.1 and later; not visible on 5.10), and no memory \
                   cgroup refused.",
        meaning: "Somebody measures the postmaster with perf so that its children are measured too, and that could not \
                  be set up for the new one. No limit of PostgreSQL or systemd is involved.",
        remedy: "Stop perf on the postmaster, or measure without inheritance (perf record --no-inherit).",
        verify: "a new connection works while perf is off",
    },
    CauseEntry {
        cause: Cause::AuditAllocFailed,
        id: "audit_alloc_failed",
        title: "the audit context could not be allocated",
        errno: "ENOMEM",
        function: "audit_alloc",
        evidence: "Observed: audit_alloc returned the error, and no memory cgroup refused. Deduced (tracepoint): the \
                   kernel log says \"audit: out of memory in audit_alloc\".",
        meaning: "System call auditing needs some kernel memory for each process, and there was none. The host is out \
                  of memory.",
        remedy: "Free memory on the host; auditctl -a task,never turns this kind of auditing off for new processes.",
        verify: "auditctl -l; grep MemAvailable /proc/meminfo",
    },
    CauseEntry {
        cause: Cause::NamespaceDenied,
        id: "namespace_denied",
        title: "a new namespace was asked for and refused",
        errno: "EPERM, ENOSPC, EUSERS, EINVAL",
        function: "copy_namespaces",
        evidence: "Observed: copy_creds (user namespace) or copy_namespaces (the others) returned the error. Deduced: \
                   EPERM before either, with CLONE_NEWUSER (kernel.unprivileged_userns_clone of Debian and Ubuntu); \
                   with --syscalls, the flags ask for a namespace, and nothing else asked for gives the error.",
        meaning: "The process asked for a new process in a namespace of its own, as containers have, and may not, or \
                  there are too many already. PostgreSQL itself never asks for one.",
        remedy: "Give the caller CAP_SYS_ADMIN (EPERM), or raise user.max_*_namespaces (ENOSPC, EUSERS).",
        verify: "sysctl -a --pattern 'user.max_.*_namespaces'",
    },
    CauseEntry {
        cause: Cause::InvalidCloneFlags,
        id: "invalid_clone_flags",
        title: "the flags or arguments of clone are not valid",
        errno: "EINVAL, E2BIG, EFAULT",
        function: "copy_process",
        evidence: "Deduced, as the checks are inline: EINVAL, and nothing behind the entry of copy_process was reached. \
                   With --syscalls: flags that contradict each other and EINVAL, or E2BIG or EFAULT of clone3.",
        meaning: "The program called clone with flags that do not go together, or clone3 with arguments that this \
                  kernel does not take. That is an error in the program, and fork() cannot meet it.",
        remedy: "Correct the program that called clone.",
        verify: "the call succeeds",
    },
    CauseEntry {
        cause: Cause::SetTidConflict,
        id: "set_tid_conflict",
        title: "the pid that clone3 asked for cannot be had",
        errno: "EEXIST, EPERM, EINVAL",
        function: "alloc_pid",
        evidence: "Observed: alloc_pid returned the error, which it does only where certain numbers are asked for. \
                   Deduced (--syscalls): clone3 asked for some, and nothing else asked for gives the error.",
        meaning: "The program asked for a process with a certain number, as a tool that restores checkpoints does \
                  (CRIU), and that number is taken, not allowed or not valid. PostgreSQL itself never asks.",
        remedy: "Restore in a pid namespace where the number is free, with CAP_CHECKPOINT_RESTORE.",
        verify: "the restore succeeds",
    },
    CauseEntry {
        cause: Cause::CloneIntoCgroupFailed,
        id: "clone_into_cgroup_failed",
        title: "the cgroup that clone3 asked for cannot be entered",
        errno: "EBADF, EACCES, EBUSY, EOPNOTSUPP, ENODEV",
        function: "cgroup_can_fork",
        evidence: "Observed: cgroup_can_fork returned the error, pids_can_fork did not refuse, and CLONE_INTO_CGROUP was \
                   asked for (or the flags are not known). Deduced (--syscalls): CLONE_INTO_CGROUP and the error.",
        meaning: "A service manager asked for a process in a certain cgroup, and that cgroup is gone, not its own, or \
                  has children. PostgreSQL itself never asks.",
        remedy: "See that the cgroup exists, is delegated to the caller (Delegate=) and has no controllers enabled for \
                 children.",
        verify: "systemctl status UNIT; cat .../cgroup.subtree_control",
    },
    CauseEntry {
        cause: Cause::FatalSignal,
        id: "fatal_signal",
        title: "the process was being killed while it forked",
        errno: "EINTR, or ENOMEM while memory is copied",
        function: "copy_process",
        evidence: "Deduced, as the check is inline: cgroup_cancel_fork was reached with EINTR. Observed with the armed \
                   checks: dup_mmap returned -EINTR, which copy_mm turns into ENOMEM.",
        meaning: "Somebody sent SIGKILL to the process while it made a new one. No limit is reached; the process is \
                  gone.",
        remedy: "Find out who sent SIGKILL: an operator, a manager whose stop time ran out, or the OOM killer.",
        verify: "journalctl -u UNIT; journalctl -k --grep 'Killed process'",
    },
    CauseEntry {
        cause: Cause::SignalRestart,
        id: "signal_restart",
        title: "a signal was pending; the kernel repeats the fork",
        errno: "ERESTARTNOINTR (-513)",
        function: "copy_process",
        evidence: "Never reported: the kernel repeats the call, and the program does not see it. Counted as restarted in \
                   the totals.",
        meaning: "A signal came at the moment of the fork, and the kernel handles it first and forks then. This is \
                  normal for a postmaster, and nothing failed.",
        remedy: "None is needed.",
        verify: "nothing to verify",
    },
    CauseEntry {
        cause: Cause::ExecAfterSetuidNproc,
        id: "exec_after_setuid_nproc",
        title: "setuid passed RLIMIT_NPROC, and execve refuses",
        errno: "EAGAIN",
        function: "do_execveat_common",
        evidence: "is_rlimit_overlimit returned true outside of a fork, in execve.",
        meaning: "A program changed to a user that has as many processes as it may have, and starting another program \
                  then fails. This hits su postgres -c and start scripts, not the server's connections.",
        remedy: "As for rlimit_nproc: raise LimitNPROC= or nproc in limits.conf for the user.",
        verify: "su postgres -c true",
    },
];
