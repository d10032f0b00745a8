//! What a running process asks for: mappings, stack, shared memory; and the OOM killer.

use super::{Cause, CauseEntry};

pub(super) const ENTRIES: &[CauseEntry] = &[
    CauseEntry {
        cause: Cause::RlimitAs,
        id: "rlimit_as",
        title: "RLIMIT_AS: the address space of the process is full",
        errno: "ENOMEM",
        function: "may_expand_vm",
        evidence: "Observed: may_expand_vm returned false, and address space and request together are above RLIMIT_AS.",
        meaning: "ulimit -v or LimitAS= limits the address space of each process, shared buffers included, whether or \
                  not it is used. A backend asked for memory beyond that; forks are never refused by it.",
        remedy: "LimitAS=infinity in the unit, or ulimit -v unlimited where the server is started.",
        verify: "prlimit --pid PID --as",
    },
    CauseEntry {
        cause: Cause::RlimitData,
        id: "rlimit_data",
        title: "RLIMIT_DATA: the private writable memory of the process is full",
        errno: "ENOMEM",
        function: "may_expand_vm",
        evidence: "Observed: may_expand_vm returned false, and private writable memory and request together are above \
                   RLIMIT_DATA.",
        meaning: "ulimit -d or LimitDATA= limits the private memory of each process. A backend asked for more, for \
                  work_mem or a large query; forks are never refused by it.",
        remedy: "LimitDATA=infinity in the unit, or ulimit -d unlimited where the server is started.",
        verify: "prlimit --pid PID --data",
    },
    CauseEntry {
        cause: Cause::MaxMapCount,
        id: "max_map_count",
        title: "vm.max_map_count: the process has as many mappings as it may have",
        errno: "ENOMEM",
        function: "do_mmap",
        evidence: "Deduced, as the check is inline: the request was refused, no other check refused, and the process has \
                   as many mappings as vm.max_map_count.",
        meaning: "The kernel limits into how many pieces the memory of a process may be divided. A backend has reached \
                  that, by JIT, an extension that leaks, or very many small allocations.",
        remedy: "Raise vm.max_map_count; look for a leak (jit, extensions).",
        verify: "sysctl vm.max_map_count; wc -l /proc/PID/maps",
    },
    CauseEntry {
        cause: Cause::RlimitMemlock,
        id: "rlimit_memlock",
        title: "RLIMIT_MEMLOCK: the process may not lock more memory",
        errno: "EAGAIN",
        function: "mlock_future_ok",
        evidence: "Deduced: mmap ended with EAGAIN, and what the process locks would pass the limit. Observed: \
                   mlock_future_ok (mlock_future_check before 6.12) was seen refusing. mlock itself is not watched.",
        meaning: "A process asked for memory that must never be swapped out, and may not have more of it. PostgreSQL \
                  itself does not lock memory; an extension or io_uring may.",
        remedy: "LimitMEMLOCK= in the unit, or ulimit -l where the server is started.",
        verify: "prlimit --pid PID --memlock; grep VmLck /proc/PID/status",
    },
    CauseEntry {
        cause: Cause::HugetlbExhausted,
        id: "hugetlb_exhausted",
        title: "the pool of huge pages is used up",
        errno: "ENOMEM",
        function: "hugetlb_reserve_pages",
        evidence: "Observed: hugetlb_reserve_pages refused, with the request and the pool.",
        meaning: "The server asked for its shared memory in huge pages, and the host has too few of them free. With \
                  huge_pages = on it does not start; with try it takes normal pages.",
        remedy: "Raise vm.nr_hugepages, or set huge_pages = try.",
        verify: "grep HugePages /proc/meminfo; postgres -C shared_memory_size_in_huge_pages",
    },
    CauseEntry {
        cause: Cause::AddressSpaceExhausted,
        id: "address_space_exhausted",
        title: "no hole in the address space is large enough",
        errno: "ENOMEM",
        function: "get_unmapped_area",
        evidence: "Observed: get_unmapped_area returned -ENOMEM, with the request.",
        meaning: "The process asked for a piece of address space that does not fit between what it has already. On 64 \
                  bits that takes an absurd request.",
        remedy: "Look at what was asked for: a setting with a wrong unit, or an error in an extension.",
        verify: "the request succeeds",
    },
    CauseEntry {
        cause: Cause::StackGrowthRefused,
        id: "stack_growth_refused",
        title: "the stack had to grow and could not",
        errno: "SIGSEGV",
        function: "expand_downwards",
        evidence: "Observed: expand_downwards returned -ENOMEM, with the check that refused, if it was another one.",
        meaning: "A backend needed more stack and did not get it. That cannot be reported by an error: it was ended by \
                  a signal, and the server restarted all connections.",
        remedy: "Raise LimitSTACK= or lower max_stack_depth; where the commit limit refused, raise that.",
        verify: "prlimit --pid PID --stack; psql -c 'SHOW max_stack_depth'",
    },
    CauseEntry {
        cause: Cause::ShmCommitRefused,
        id: "shm_commit_refused",
        title: "shared memory did not fit under the commit limit",
        errno: "ENOMEM",
        function: "__vm_enough_memory",
        evidence: "Observed: __vm_enough_memory returned -ENOMEM for a shared mapping.",
        meaning: "Shared memory is promised as a whole when it is made, and there was not as much left to promise. The \
                  server does not start, or a parallel query fails.",
        remedy: "Lower shared_buffers, or raise the commit limit (vm.overcommit_ratio, swap).",
        verify: "grep -E 'CommitLimit|Committed_AS' /proc/meminfo",
    },
    CauseEntry {
        cause: Cause::ShmTmpfsFull,
        id: "shm_tmpfs_full",
        title: "a tmpfs (/dev/shm) is full",
        errno: "ENOSPC",
        function: "shmem_fallocate",
        evidence: "Observed: shmem_fallocate returned -ENOSPC, and __vm_enough_memory, which also has it do so, did not \
                   refuse. The tmpfs is found by its device in the mounts of the process.",
        meaning: "Parallel queries put their shared memory into /dev/shm, which is full. Containers have 64 MiB of it \
                  unless told otherwise.",
        remedy: "Start the container with a larger --shm-size, or mount /dev/shm with a larger size=.",
        verify: "df /dev/shm   (in the container)",
    },
    CauseEntry {
        cause: Cause::MemcgOomKill,
        id: "memcg_oom_kill",
        title: "the OOM killer of a memory cgroup killed a process",
        errno: "SIGKILL",
        function: "oom_kill_process",
        evidence: "Observed: the OOM killer chose the process, for a memory cgroup that was read.",
        meaning: "The memory limit of the service or container was reached, and the kernel killed one of its \
                  processes. PostgreSQL then ends all connections and recovers.",
        remedy: "Raise MemoryMax=, or lower work_mem, shared_buffers or max_connections.",
        verify: "cat .../memory.events   (oom_kill does not grow)",
    },
    CauseEntry {
        cause: Cause::GlobalOomKill,
        id: "global_oom_kill",
        title: "the OOM killer of the host killed a process",
        errno: "SIGKILL",
        function: "oom_kill_process",
        evidence: "Observed: the OOM killer chose the process, for the whole host.",
        meaning: "The host ran out of memory, and the kernel killed a process to get some. PostgreSQL then ends all \
                  connections and recovers.",
        remedy: "Lower work_mem, shared_buffers or max_connections, add RAM, or set vm.overcommit_memory = 2.",
        verify: "journalctl -k --grep 'Out of memory'   (no new line)",
    },
    CauseEntry {
        cause: Cause::Unknown,
        id: "unknown",
        title: "no check could be proven to have refused",
        errno: "any",
        function: "",
        evidence: "None that suffices; what was seen, ruled out and not visible is listed.",
        meaning: "The kernel refused the fork at a place that could not be identified. What was seen and what was \
                  ruled out is listed.",
        remedy: "None can be given: start with what is possible, and with pgfork-trace probes, which says what cannot \
                 be seen on this kernel.",
        verify: "nothing to verify",
    },
];
