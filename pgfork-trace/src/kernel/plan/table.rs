//! Every check, in the kernel's order: the table of [`super`].

use pgfork_trace_common::Check;

use super::{
    Alternative,
    Parameter::{self, Int, Pointer, To},
    Returns, Row,
};

const fn result(
    function: &'static str,
    parameters: &'static [Parameter],
    returns: Returns,
    fexit: &'static str,
    kretprobe: &'static str,
) -> Alternative {
    Alternative {
        function,
        parameters,
        returns,
        fentry: None,
        fexit: Some(fexit),
        kprobe: None,
        kretprobe: Some(kretprobe),
    }
}

const fn marker(
    function: &'static str,
    parameters: &'static [Parameter],
    fentry: &'static str,
    kprobe: &'static str,
) -> Alternative {
    Alternative {
        function,
        parameters,
        returns: Returns::Any,
        fentry: Some(fentry),
        fexit: None,
        kprobe: Some(kprobe),
        kretprobe: None,
    }
}

const KERNEL_CLONE: &[&str] = &[];
const IN_CLONE: &[&str] = &["kernel_clone"];
const IN_PROCESS: &[&str] = &["kernel_clone", "copy_process"];

const fn checked(check: Check, alternatives: &'static [Alternative]) -> Row {
    below(check, IN_PROCESS, alternatives)
}

const fn below(
    check: Check,
    path: &'static [&'static str],
    alternatives: &'static [Alternative],
) -> Row {
    Row {
        check,
        path,
        alternatives,
        essential: false,
        newer: false,
    }
}

/// Every check, in the kernel's order.
pub const TABLE: &[Row] = &[
    Row {
        check: Check::KernelClone,
        path: KERNEL_CLONE,
        alternatives: &[Alternative {
            function: "kernel_clone",
            parameters: &[To("kernel_clone_args")],
            returns: Returns::Int,
            fentry: Some("kernel_clone_fentry"),
            fexit: Some("kernel_clone_fexit"),
            kprobe: Some("kernel_clone_kprobe"),
            kretprobe: Some("kernel_clone_kretprobe"),
        }],
        essential: true,
        newer: false,
    },
    below(
        Check::CopyProcess,
        IN_CLONE,
        &[result(
            "copy_process",
            &[To("pid"), Int, Int, To("kernel_clone_args")],
            Returns::Pointer,
            "copy_process_fexit",
            "copy_process_kretprobe",
        )],
    ),
    below(
        Check::ArchDupTaskStruct,
        &["kernel_clone", "copy_process", "dup_task_struct"],
        &[result(
            "arch_dup_task_struct",
            &[To("task_struct"), To("task_struct")],
            Returns::Int,
            "arch_dup_task_struct_fexit",
            "arch_dup_task_struct_kretprobe",
        )],
    ),
    checked(
        Check::CopyCreds,
        &[result(
            "copy_creds",
            &[To("task_struct"), Int],
            Returns::Int,
            "copy_creds_fexit",
            "copy_creds_kretprobe",
        )],
    ),
    checked(
        Check::IsRlimitOverlimit,
        &[result(
            "is_rlimit_overlimit",
            &[To("ucounts"), Int, Int],
            Returns::Bool,
            "is_rlimit_overlimit_fexit",
            "is_rlimit_overlimit_kretprobe",
        )],
    ),
    checked(
        Check::CgroupFork,
        &[marker(
            "cgroup_fork",
            &[To("task_struct")],
            "cgroup_fork_fentry",
            "cgroup_fork_kprobe",
        )],
    ),
    checked(
        Check::SchedFork,
        &[result(
            "sched_fork",
            &[Int, To("task_struct")],
            Returns::Int,
            "sched_fork_fexit",
            "sched_fork_kretprobe",
        )],
    ),
    checked(
        Check::PerfEventInitTask,
        &[result(
            "perf_event_init_task",
            &[To("task_struct"), Int],
            Returns::Int,
            "perf_event_init_task_fexit",
            "perf_event_init_task_kretprobe",
        )],
    ),
    checked(
        Check::AuditAlloc,
        &[result(
            "audit_alloc",
            &[To("task_struct")],
            Returns::Int,
            "audit_alloc_fexit",
            "audit_alloc_kretprobe",
        )],
    ),
    checked(
        Check::SecurityTaskAlloc,
        &[result(
            "security_task_alloc",
            &[To("task_struct"), Int],
            Returns::Int,
            "security_task_alloc_fexit",
            "security_task_alloc_kretprobe",
        )],
    ),
    below(
        Check::DupFd,
        &["kernel_clone", "copy_process", "copy_files"],
        &[
            result(
                "dup_fd",
                &[To("files_struct"), Pointer],
                Returns::Pointer,
                "dup_fd_2_fexit",
                "dup_fd_kretprobe",
            ),
            result(
                "dup_fd",
                &[To("files_struct"), Int, Pointer],
                Returns::Pointer,
                "dup_fd_3_fexit",
                "dup_fd_kretprobe",
            ),
        ],
    ),
    below(
        Check::CopyFsStruct,
        &["kernel_clone", "copy_process", "copy_fs"],
        &[result(
            "copy_fs_struct",
            &[To("fs_struct")],
            Returns::Pointer,
            "copy_fs_struct_fexit",
            "copy_fs_struct_kretprobe",
        )],
    ),
    below(
        Check::PgdAlloc,
        &[
            "kernel_clone",
            "copy_process",
            "copy_mm",
            "dup_mm",
            "mm_init",
        ],
        &[result(
            "pgd_alloc",
            &[To("mm_struct")],
            Returns::Pointer,
            "pgd_alloc_fexit",
            "pgd_alloc_kretprobe",
        )],
    ),
    below(
        Check::VmEnoughMemory,
        &[
            "kernel_clone",
            "copy_process",
            "copy_mm",
            "dup_mm",
            "dup_mmap",
        ],
        &[Alternative {
            function: "__vm_enough_memory",
            parameters: &[To("mm_struct"), Int, Int],
            returns: Returns::Int,
            fentry: None,
            fexit: Some("vm_enough_memory_fexit"),
            kprobe: Some("vm_enough_memory_kprobe"),
            kretprobe: Some("vm_enough_memory_kretprobe"),
        }],
    ),
    checked(
        Check::CopyNamespaces,
        &[result(
            "copy_namespaces",
            &[Int, To("task_struct")],
            Returns::Int,
            "copy_namespaces_fexit",
            "copy_namespaces_kretprobe",
        )],
    ),
    checked(
        Check::CopyThread,
        &[
            result(
                "copy_thread",
                &[To("task_struct"), To("kernel_clone_args")],
                Returns::Int,
                "copy_thread_2_fexit",
                "copy_thread_kretprobe",
            ),
            result(
                "copy_thread",
                &[Int, Int, Int, To("task_struct"), Int],
                Returns::Int,
                "copy_thread_5_fexit",
                "copy_thread_kretprobe",
            ),
        ],
    ),
    checked(
        Check::AllocPid,
        &[result(
            "alloc_pid",
            &[To("pid_namespace"), Pointer, Int],
            Returns::Pointer,
            "alloc_pid_fexit",
            "alloc_pid_kretprobe",
        )],
    ),
    checked(
        Check::CgroupCanFork,
        &[result(
            "cgroup_can_fork",
            &[To("task_struct"), To("kernel_clone_args")],
            Returns::Int,
            "cgroup_can_fork_fexit",
            "cgroup_can_fork_kretprobe",
        )],
    ),
    below(
        Check::PidsCanFork,
        &["kernel_clone", "copy_process", "cgroup_can_fork"],
        &[Alternative {
            function: "pids_can_fork",
            parameters: &[To("task_struct"), To("css_set")],
            returns: Returns::Int,
            fentry: None,
            fexit: Some("pids_can_fork_fexit"),
            kprobe: Some("pids_can_fork_kprobe"),
            kretprobe: Some("pids_can_fork_kretprobe"),
        }],
    ),
    // Absent before 5.17 and without a result before 6.12 (kernel/sched/core.c).
    Row {
        newer: true,
        ..checked(
            Check::SchedCgroupFork,
            &[result(
                "sched_cgroup_fork",
                &[To("task_struct"), To("kernel_clone_args")],
                Returns::Int,
                "sched_cgroup_fork_fexit",
                "sched_cgroup_fork_kretprobe",
            )],
        )
    },
    checked(
        Check::CgroupCancelFork,
        &[marker(
            "cgroup_cancel_fork",
            &[To("task_struct"), To("kernel_clone_args")],
            "cgroup_cancel_fork_fentry",
            "cgroup_cancel_fork_kprobe",
        )],
    ),
    below(
        Check::TryToFreeMemCgroupPages,
        &["kernel_clone", "copy_process", "try_charge_memcg"],
        &[
            marker(
                "try_to_free_mem_cgroup_pages",
                &[To("mem_cgroup"), Int, Int, Int],
                "try_to_free_mem_cgroup_pages_fentry",
                "try_to_free_mem_cgroup_pages_kprobe",
            ),
            marker(
                "try_to_free_mem_cgroup_pages",
                &[To("mem_cgroup"), Int, Int, Int, Pointer],
                "try_to_free_mem_cgroup_pages_fentry",
                "try_to_free_mem_cgroup_pages_kprobe",
            ),
        ],
    ),
    below(
        Check::MemCgroupOutOfMemory,
        &["kernel_clone", "copy_process", "try_charge_memcg"],
        &[result(
            "mem_cgroup_out_of_memory",
            &[To("mem_cgroup"), Int, Int],
            Returns::Bool,
            "mem_cgroup_out_of_memory_fexit",
            "mem_cgroup_out_of_memory_kretprobe",
        )],
    ),
];
