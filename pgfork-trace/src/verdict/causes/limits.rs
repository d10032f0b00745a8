//! Limits on tasks and on promised memory.

use super::{Cause, CauseEntry};

pub(super) const ENTRIES: &[CauseEntry] = &[
    CauseEntry {
        cause: Cause::RlimitNproc,
        id: "rlimit_nproc",
        title: "the user has as many tasks as its process limit allows",
        errno: "EAGAIN",
        function: "is_rlimit_overlimit",
        evidence: "Observed (6.1 and later): is_rlimit_overlimit returned true, the process is not exempt, and \
                   cgroup_fork was not reached. Deduced (5.10): the fork ended with EAGAIN before copy_creds, and the \
                   user's count is at the limit. Deduced (tracepoint): the count is at the limit right after.",
        meaning: "RLIMIT_NPROC (ulimit -u, LimitNPROC=) counts all processes and threads of the user on the host, \
                  also those of other services and containers that run as the same user. PostgreSQL needs one more \
                  process for each connection, and the user may not have it; root and CAP_SYS_RESOURCE are exempt.",
        remedy: "Raise the limit of the running postmaster with prlimit, and for the next start with LimitNPROC= of \
                 its systemd unit or nproc in limits.conf. Where other services run as the same uid, give PostgreSQL \
                 a uid or user namespace of its own.",
        verify: "prlimit --pid PID --nproc",
    },
    CauseEntry {
        cause: Cause::ThreadsMax,
        id: "threads_max",
        title: "kernel.threads-max: the host has as many tasks as it may have",
        errno: "EAGAIN",
        function: "copy_process",
        evidence: "Deduced, as the comparison is inline in copy_process: copy_creds succeeded, cgroup_fork was not \
                   reached, and RLIMIT_NPROC did not refuse; nothing else in between gives EAGAIN. \
                   Deduced (tracepoint): as many tasks as kernel.threads-max right after.",
        meaning: "kernel.threads-max limits all processes and threads of the whole host, for every user, root \
                  included. Something on the host, not necessarily PostgreSQL, has used them up.",
        remedy: "Raise kernel.threads-max, and find who has the tasks: a leak of threads fills any limit.",
        verify: "sysctl kernel.threads-max; cut -d' ' -f4 /proc/loadavg   (the number behind the slash stays below)",
    },
    CauseEntry {
        cause: Cause::PidsCgroupMax,
        id: "pids_cgroup_max",
        title: "a control group has as many tasks as it may have",
        errno: "EAGAIN",
        function: "pids_can_fork",
        evidence: "Observed: pids_can_fork returned -EAGAIN; the counters of all levels were read in it. Deduced \
                   (tracepoint): a level is full right after, or the kernel log says \"fork rejected by pids \
                   controller\" for this cgroup.",
        meaning: "A limit on the number of tasks (systemd TasksMax, a container's pids limit) is reached in the \
                  postmaster's cgroup or in one above it. Every process and thread in that cgroup counts.",
        remedy: "Raise TasksMax= of the unit, or the container's pids limit (--pids-limit, podPidsLimit), at every \
                 level that is full; or lower max_connections and put a pooler in front.",
        verify: "systemctl show UNIT -p TasksMax -p TasksCurrent, or pids.max and pids.current of the cgroup",
    },
    CauseEntry {
        cause: Cause::PidSpaceExhausted,
        id: "pid_space_exhausted",
        title: "no process id is left in the pid namespace or one above it",
        errno: "EAGAIN",
        function: "alloc_pid",
        evidence: "Observed: alloc_pid returned -EAGAIN. Deduced (tracepoint): as many numbers are taken as \
                   kernel.pid_max allows; up to 6.12 there is one for all, in 6.18 and later one for each pid namespace.",
        meaning: "Every process and thread needs a number below kernel.pid_max, and all are taken. In 6.18 and later a \
                  container can have a lower limit than the host, and each level above counts as well.",
        remedy: "Raise kernel.pid_max (at most 4194304), inside the namespace whose numbers are used up; find who has \
                 the tasks.",
        verify: "sysctl kernel.pid_max   (of the namespace: nsenter --pid=/proc/PID/ns/pid_for_children sysctl kernel.pid_max)",
    },
    CauseEntry {
        cause: Cause::SchedDeadlineFork,
        id: "sched_deadline_fork",
        title: "the process runs under SCHED_DEADLINE, which may not fork",
        errno: "EAGAIN",
        function: "sched_fork",
        evidence: "Observed: sched_fork returned -EAGAIN. Deduced (tracepoint): the policy is SCHED_DEADLINE, without \
                   the reset-on-fork flag where that could be read.",
        meaning: "Somebody gave the postmaster the real-time policy SCHED_DEADLINE, and the kernel does not let such a \
                  process have children. No limit is reached, and nothing is short.",
        remedy: "Give it a normal policy, or set the reset-on-fork flag with the policy.",
        verify: "chrt --pid PID   (the policy is SCHED_OTHER, or says SCHED_RESET_ON_FORK)",
    },
    CauseEntry {
        cause: Cause::ExecRaceFs,
        id: "exec_race_fs",
        title: "a thread of the process is in execve",
        errno: "EAGAIN",
        function: "copy_fs",
        evidence: "Deduced, as the check is inline: EAGAIN behind security_task_alloc and before copy_namespaces, with \
                   CLONE_FS. A plain fork() cannot meet it.",
        meaning: "The process shares its working directory with a task that is just starting another program, and \
                  must wait for that. PostgreSQL itself does not do this; an extension or a pooler with threads may.",
        remedy: "Nothing to change: the next try succeeds.",
        verify: "the same call succeeds when repeated",
    },
    CauseEntry {
        cause: Cause::CommitLimit,
        id: "commit_limit",
        title: "strict overcommit, the host's commit limit is reached",
        errno: "ENOMEM",
        function: "__vm_enough_memory",
        evidence: "Observed: __vm_enough_memory returned -ENOMEM in strict mode, with its arguments and the kernel's \
                   counter. Deduced, where it was not watched: the fork's accounted memory does not fit under the limit right \
                   after, or the kernel log names this pid (6.1 and later).",
        meaning: "The kernel promises no more memory than CommitLimit, whether or not it is used, and a fork \
                  asks for a copy of all private writable memory of the postmaster. RAM itself may be free.",
        remedy: "Raise vm.overcommit_ratio or vm.overcommit_kbytes, add swap, free unused huge pages, or lower \
                 max_connections and work_mem.",
        verify: "grep -E 'CommitLimit|Committed_AS' /proc/meminfo   (the second stays well below the first)",
    },
    CauseEntry {
        cause: Cause::OvercommitHeuristic,
        id: "overcommit_heuristic",
        title: "heuristic overcommit: one mapping is larger than RAM and swap",
        errno: "ENOMEM",
        function: "__vm_enough_memory",
        evidence: "Observed: __vm_enough_memory returned -ENOMEM in mode 0, with the size of the mapping. Deduced, \
                   where it was not watched (it is from the second refusal on): the largest private mapping is larger than RAM and swap, or the kernel log names \
                   this pid (6.1 and later).",
        meaning: "With vm.overcommit_memory = 0 the kernel refuses only a single private mapping that is larger than \
                  all RAM and swap of the host, and a fork asks for each mapping of the postmaster again. Shared \
                  buffers do not count; a huge private mapping comes from an extension, or the host has lost memory \
                  (ballooning).",
        remedy: "Find the mapping (pmap -x PID) and make it smaller, add swap, give the virtual machine its memory \
                 back, or set vm.overcommit_memory = 1.",
        verify: "grep -E 'MemTotal|SwapTotal' /proc/meminfo   (together more than the mapping)",
    },
];
