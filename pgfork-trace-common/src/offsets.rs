//! Offsets of kernel struct fields, resolved at start from the kernel's BTF.

/// Stands for a field that this kernel does not have; it is never read.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[doc = $doc:literal])* $name:ident: $structure:literal, $path:literal;)*) => {
        /// Byte offsets, one per field; [`ABSENT`] when the kernel lacks it.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Offsets { $($(#[doc = $doc])* pub $name: u32,)* }

        /// `(struct, field path)` of each member of [`Offsets`], in order. A path
        /// goes into nested structs by name; anonymous members are looked through.
        pub const OFFSET_FIELDS: &[(&str, &str)] = &[$(($structure, $path),)*];

        impl Offsets {
            /// No field known.
            pub const NONE: Self = Self { $($name: ABSENT,)* };
        }
    };
}

offsets! {
    /// `task_struct.signal`
    task_signal: "task_struct", "signal";
    /// `task_struct.real_cred`
    task_real_cred: "task_struct", "real_cred";
    /// `task_struct.cgroups`
    task_cgroups: "task_struct", "cgroups";
    /// `task_struct.nsproxy`
    task_nsproxy: "task_struct", "nsproxy";
    /// `task_struct.mm`
    task_mm: "task_struct", "mm";
    /// `task_struct.policy`
    task_policy: "task_struct", "policy";
    /// `task_struct.seccomp.mode`
    task_seccomp_mode: "task_struct", "seccomp.mode";
    /// `task_struct.thread.fsbase` (x86)
    task_fsbase: "task_struct", "thread.fsbase";
    /// `task_struct.pending.signal.sig`
    task_pending: "task_struct", "pending.signal.sig";
    /// `signal_struct.oom_mm`
    signal_oom_mm: "signal_struct", "oom_mm";
    /// `signal_struct.rlim`
    signal_rlim: "signal_struct", "rlim";
    /// `cred.uid`
    cred_uid: "cred", "uid";
    /// `cred.cap_effective`
    cred_cap_effective: "cred", "cap_effective";
    /// `cred.user`
    cred_user: "cred", "user";
    /// `cred.user_ns`
    cred_user_ns: "cred", "user_ns";
    /// `cred.ucounts` (5.14 and later)
    cred_ucounts: "cred", "ucounts";
    /// `user_struct.processes` (before 5.14)
    user_processes: "user_struct", "processes";
    /// `ucounts.rlimit` (6.1 and later)
    ucounts_rlimit: "ucounts", "rlimit";
    /// `ucounts.ns`
    ucounts_ns: "ucounts", "ns";
    /// `user_namespace.ucounts`
    userns_ucounts: "user_namespace", "ucounts";
    /// `user_namespace.rlimit_max` (6.1 and later)
    userns_rlimit_max: "user_namespace", "rlimit_max";
    /// `user_namespace.ns.inum`
    userns_inum: "user_namespace", "ns.inum";
    /// `css_set.subsys`
    cset_subsys: "css_set", "subsys";
    /// `cgroup_subsys_state.cgroup`
    css_cgroup: "cgroup_subsys_state", "cgroup";
    /// `cgroup_subsys_state.parent`
    css_parent: "cgroup_subsys_state", "parent";
    /// `cgroup.kn`
    cgroup_kn: "cgroup", "kn";
    /// `kernfs_node.id`
    kn_id: "kernfs_node", "id";
    /// `pids_cgroup.css`
    pids_css: "pids_cgroup", "css";
    /// `pids_cgroup.counter`
    pids_counter: "pids_cgroup", "counter";
    /// `pids_cgroup.limit` (an atomic64_t before 6.1's int64_t; same eight bytes)
    pids_limit: "pids_cgroup", "limit";
    /// `mm_struct.total_vm`
    mm_total_vm: "mm_struct", "total_vm";
    /// `mm_struct.data_vm`
    mm_data_vm: "mm_struct", "data_vm";
    /// `mm_struct.stack_vm`
    mm_stack_vm: "mm_struct", "stack_vm";
    /// `nsproxy.pid_ns_for_children`
    nsproxy_pid_ns: "nsproxy", "pid_ns_for_children";
    /// `pid_namespace.pid_allocated`
    pidns_allocated: "pid_namespace", "pid_allocated";
    /// `pid_namespace.level`
    pidns_level: "pid_namespace", "level";
    /// `pid_namespace.ns.inum`
    pidns_inum: "pid_namespace", "ns.inum";
    /// `pid_namespace.pid_max` (6.18 and later)
    pidns_pid_max: "pid_namespace", "pid_max";
    /// `pid_namespace.parent`
    pidns_parent: "pid_namespace", "parent";
    /// `task_struct.real_parent`
    task_real_parent: "task_struct", "real_parent";
    /// `task_struct.tgid`
    task_tgid: "task_struct", "tgid";
    /// `task_struct.comm`
    task_comm: "task_struct", "comm";
    /// `task_struct.ptrace`
    task_ptrace: "task_struct", "ptrace";
    /// `task_struct.perf_event_ctxp`: two pointers before 6.2, one since
    task_perf_contexts: "task_struct", "perf_event_ctxp";
    /// `task_struct.perf_event_mutex`: right behind them
    task_perf_mutex: "task_struct", "perf_event_mutex";
    /// `perf_event_context.event_list`
    perf_event_list: "perf_event_context", "event_list";
    /// `perf_event.event_entry`
    perf_event_entry: "perf_event", "event_entry";
    /// `perf_event.attr`
    perf_event_attr: "perf_event", "attr";
    /// `task_struct.syscall_dispatch.selector` (5.11 and later)
    task_dispatch_selector: "task_struct", "syscall_dispatch.selector";
    /// `task_struct.syscall_dispatch.len` (5.11 and later)
    task_dispatch_len: "task_struct", "syscall_dispatch.len";
    /// `task_struct.files`
    task_files: "task_struct", "files";
    /// `signal_struct.live`
    signal_live: "signal_struct", "live";
    /// `signal_struct.oom_score_adj`
    signal_oom_score_adj: "signal_struct", "oom_score_adj";
    /// `files_struct.fdt`
    files_fdt: "files_struct", "fdt";
    /// `fdtable.max_fds`
    fdt_max_fds: "fdtable", "max_fds";
    /// `fdtable.fd`
    fdt_fd: "fdtable", "fd";
    /// `fdtable.open_fds`
    fdt_open_fds: "fdtable", "open_fds";
    /// `file.f_inode`
    file_inode: "file", "f_inode";
    /// `file.private_data`
    file_private_data: "file", "private_data";
    /// `inode.i_mode`
    inode_mode: "inode", "i_mode";
    /// `socket.type`
    socket_type: "socket", "type";
    /// `socket.sk`
    socket_sk: "socket", "sk";
    /// `sock.__sk_common.skc_family`
    sk_family: "sock", "__sk_common.skc_family";
    /// `sock.__sk_common.skc_state`
    sk_state: "sock", "__sk_common.skc_state";
    /// `sock.__sk_common.skc_daddr`
    sk_daddr: "sock", "__sk_common.skc_daddr";
    /// `sock.__sk_common.skc_dport`
    sk_dport: "sock", "__sk_common.skc_dport";
    /// `sock.__sk_common.skc_v6_daddr`
    sk_v6_daddr: "sock", "__sk_common.skc_v6_daddr";
    /// `sock.sk_peer_pid`
    sk_peer_pid: "sock", "sk_peer_pid";
    /// `sock.sk_peer_cred`
    sk_peer_cred: "sock", "sk_peer_cred";
    /// `pid.numbers`: the first is the number in the initial namespace
    pid_numbers: "pid", "numbers";
    /// `cred.euid`
    cred_euid: "cred", "euid";
    /// `mem_cgroup.css`
    memcg_css: "mem_cgroup", "css";
    /// `mem_cgroup.memory.usage`
    memcg_usage: "mem_cgroup", "memory.usage";
    /// `mem_cgroup.memory.max`
    memcg_max: "mem_cgroup", "memory.max";
    /// `mem_cgroup.memsw.usage`
    memcg_memsw_usage: "mem_cgroup", "memsw.usage";
    /// `mem_cgroup.memsw.max`
    memcg_memsw_max: "mem_cgroup", "memsw.max";
    /// `mem_cgroup.kmem.usage`
    memcg_kmem_usage: "mem_cgroup", "kmem.usage";
    /// `mem_cgroup.kmem.max`
    memcg_kmem_max: "mem_cgroup", "kmem.max";
    /// `mem_cgroup.oom_kill_disable` (kernels with cgroup v1 memory)
    memcg_oom_kill_disable: "mem_cgroup", "oom_kill_disable";
    /// `mm_struct.map_count`
    mm_map_count: "mm_struct", "map_count";
    /// `inode.i_sb`
    inode_sb: "inode", "i_sb";
    /// `super_block.s_dev`
    sb_dev: "super_block", "s_dev";
    /// `mm_struct.locked_vm`
    mm_locked_vm: "mm_struct", "locked_vm";
    /// `oom_control.memcg`
    oc_memcg: "oom_control", "memcg";
    /// `oom_control.chosen`
    oc_chosen: "oom_control", "chosen";
    /// `percpu_counter.count`
    percpu_count: "percpu_counter", "count";
    /// `kernel_clone_args.flags`
    clone_args_flags: "kernel_clone_args", "flags";
    /// `pt_regs.di` (x86): first argument of a system call
    regs_di: "pt_regs", "di";
    /// `pt_regs.si` (x86): second argument
    regs_si: "pt_regs", "si";
    /// `pt_regs.orig_ax` (x86): number of the system call
    regs_orig_ax: "pt_regs", "orig_ax";
    /// `task_struct.thread_info.status` (x86)
    task_status: "task_struct", "thread_info.status";
    /// `signal_struct.nr_threads`
    signal_nr_threads: "signal_struct", "nr_threads";
}

/// Number of fields in [`Offsets`].
pub const OFFSET_COUNT: usize = OFFSET_FIELDS.len();

const _: () = assert!(size_of::<Offsets>() == 4 * OFFSET_COUNT);
