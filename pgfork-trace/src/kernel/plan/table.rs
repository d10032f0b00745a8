//! Every check, in the kernel's order: the table of [`super`].

use pgfork_trace_common::Check;

use super::{
    Alternative, Group,
    Parameter::{self, Flags, Int, Pointer, To},
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
        group: Group::Base,
    }
}

/// A check that older kernels do not have.
const fn newer(row: Row) -> Row {
    Row { newer: true, ..row }
}

const fn armed(row: Row) -> Row {
    Row {
        group: Group::Armed,
        ..row
    }
}

/// A check on what a running process asks for.
const fn request(check: Check, alternatives: &'static [Alternative]) -> Row {
    Row {
        group: Group::Requests,
        ..below(check, &[], alternatives)
    }
}

const fn asked(
    function: &'static str,
    parameters: &'static [Parameter],
    returns: Returns,
    fexit: &'static str,
    kprobe: &'static str,
    kretprobe: &'static str,
) -> Alternative {
    Alternative {
        kprobe: Some(kprobe),
        ..result(function, parameters, returns, fexit, kretprobe)
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
        group: Group::Base,
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
    newer(checked(
        Check::TaskExecStateCopy,
        &[result(
            "task_exec_state_copy",
            &[To("task_struct")],
            Returns::Int,
            "task_exec_state_copy_fexit",
            "task_exec_state_copy_kretprobe",
        )],
    )),
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
        &[
            result(
                "is_rlimit_overlimit",
                &[To("ucounts"), Int, Int],
                Returns::Bool,
                "is_rlimit_overlimit_fexit",
                "is_rlimit_overlimit_kretprobe",
            ),
            // 5.14 to 5.18 (kernel/ucount.c).
            result(
                "is_ucounts_overlimit",
                &[To("ucounts"), Int, Int],
                Returns::Bool,
                "is_rlimit_overlimit_fexit",
                "is_rlimit_overlimit_kretprobe",
            ),
        ],
    ),
    newer(checked(
        Check::IoUringFork,
        &[result(
            "__io_uring_fork",
            &[To("task_struct")],
            Returns::Int,
            "io_uring_fork_fexit",
            "io_uring_fork_kretprobe",
        )],
    )),
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
    checked(
        Check::CopySemundo,
        &[result(
            "copy_semundo",
            &[Int, To("task_struct")],
            Returns::Int,
            "copy_semundo_fexit",
            "copy_semundo_kretprobe",
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
    armed(newer(below(
        Check::DupMmap,
        &["kernel_clone", "copy_process", "copy_mm", "dup_mm"],
        &[result(
            "dup_mmap",
            &[To("mm_struct"), To("mm_struct")],
            Returns::Int,
            "dup_mmap_fexit",
            "dup_mmap_kretprobe",
        )],
    ))),
    Row {
        group: Group::Strict,
        ..below(
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
        )
    },
    armed(below(
        Check::VmAreaDup,
        &[
            "kernel_clone",
            "copy_process",
            "copy_mm",
            "dup_mm",
            "dup_mmap",
        ],
        &[result(
            "vm_area_dup",
            &[To("vm_area_struct")],
            Returns::Pointer,
            "vm_area_dup_fexit",
            "vm_area_dup_kretprobe",
        )],
    )),
    armed(below(
        Check::AnonVmaFork,
        &[
            "kernel_clone",
            "copy_process",
            "copy_mm",
            "dup_mm",
            "dup_mmap",
        ],
        &[result(
            "anon_vma_fork",
            &[To("vm_area_struct"), To("vm_area_struct")],
            Returns::Int,
            "anon_vma_fork_fexit",
            "anon_vma_fork_kretprobe",
        )],
    )),
    armed(below(
        Check::CopyPageRange,
        &[
            "kernel_clone",
            "copy_process",
            "copy_mm",
            "dup_mm",
            "dup_mmap",
        ],
        &[result(
            "copy_page_range",
            &[To("vm_area_struct"), To("vm_area_struct")],
            Returns::Int,
            "copy_page_range_fexit",
            "copy_page_range_kretprobe",
        )],
    )),
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
    newer(checked(
        Check::CopyIo,
        &[result(
            "__copy_io",
            &[Int, To("task_struct")],
            Returns::Int,
            "copy_io_fexit",
            "copy_io_kretprobe",
        )],
    )),
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
        &[asked(
            "alloc_pid",
            &[To("pid_namespace"), Pointer, Int],
            Returns::Pointer,
            "alloc_pid_fexit",
            "alloc_pid_kprobe",
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
    newer(checked(
        Check::FutexHashAllocate,
        &[result(
            "futex_hash_allocate_default",
            &[],
            Returns::Int,
            "futex_hash_allocate_default_fexit",
            "futex_hash_allocate_default_kretprobe",
        )],
    )),
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
        IN_CHARGE,
        &[asked(
            "mem_cgroup_out_of_memory",
            &[To("mem_cgroup"), Int, Int],
            Returns::Bool,
            "mem_cgroup_out_of_memory_fexit",
            "mem_cgroup_out_of_memory_kprobe",
            "mem_cgroup_out_of_memory_kretprobe",
        )],
    ),
    armed(below(
        Check::TryCharge,
        IN_PROCESS,
        &[
            result(
                "try_charge_memcg",
                CHARGE,
                Returns::Int,
                "try_charge_fexit",
                "try_charge_kretprobe",
            ),
            // Before 5.13.
            result(
                "try_charge",
                CHARGE,
                Returns::Int,
                "try_charge_fexit",
                "try_charge_kretprobe",
            ),
        ],
    )),
    // The limit on kernel memory is enforced up to 5.15 (mm/memcontrol.c).
    armed(newer(below(
        Check::MemcgKmemCharge,
        IN_PROCESS,
        &[result(
            "__memcg_kmem_charge",
            CHARGE,
            Returns::Int,
            "memcg_kmem_charge_fexit",
            "memcg_kmem_charge_kretprobe",
        )],
    ))),
    armed(below(
        Check::MemcgKmemChargePage,
        IN_PROCESS,
        &[result(
            "__memcg_kmem_charge_page",
            &[To("page"), Int, Int],
            Returns::Int,
            "memcg_kmem_charge_page_fexit",
            "memcg_kmem_charge_page_kretprobe",
        )],
    )),
    request(
        Check::VmMmapPgoff,
        &[asked(
            "vm_mmap_pgoff",
            &[To("file"), Int, Int, Int, Int, Int],
            Returns::Int,
            "vm_mmap_pgoff_fexit",
            "vm_mmap_pgoff_kprobe",
            "vm_mmap_pgoff_kretprobe",
        )],
    ),
    request(
        Check::DoBrkFlags,
        &[
            asked(
                "do_brk_flags",
                &[Pointer, To("vm_area_struct"), Int, Int, Flags],
                Returns::Int,
                "do_brk_flags_5_fexit",
                "do_brk_flags_5_kprobe",
                "do_brk_flags_5_kretprobe",
            ),
            asked(
                "do_brk_flags",
                &[Int, Int, Int, To("list_head")],
                Returns::Int,
                "do_brk_flags_4_fexit",
                "do_brk_flags_4_kprobe",
                "do_brk_flags_4_kretprobe",
            ),
        ],
    ),
    request(
        Check::MayExpandVm,
        &[asked(
            "may_expand_vm",
            &[To("mm_struct"), Flags, Int],
            Returns::Bool,
            "may_expand_vm_fexit",
            "may_expand_vm_kprobe",
            "may_expand_vm_kretprobe",
        )],
    ),
    request(
        Check::Mremap,
        &[
            result(
                "do_mremap",
                &[To("vma_remap_struct")],
                Returns::Int,
                "do_mremap_fexit",
                "do_mremap_kretprobe",
            ),
            asked(
                "vma_to_resize",
                &[Int, Int, Int, Int],
                Returns::Pointer,
                "vma_to_resize_4_fexit",
                "vma_to_resize_kprobe",
                "vma_to_resize_kretprobe",
            ),
            asked(
                "vma_to_resize",
                &[Int, Int, Int, Int, Pointer],
                Returns::Pointer,
                "vma_to_resize_5_fexit",
                "vma_to_resize_kprobe",
                "vma_to_resize_kretprobe",
            ),
        ],
    ),
    request(
        Check::Mprotect,
        &[
            result(
                "mprotect_fixup",
                &[
                    To("vma_iterator"),
                    To("mmu_gather"),
                    To("vm_area_struct"),
                    Pointer,
                    Int,
                    Int,
                    Int,
                ],
                Returns::Int,
                "mprotect_fixup_7_fexit",
                "mprotect_fixup_kretprobe",
            ),
            result(
                "mprotect_fixup",
                &[
                    To("mmu_gather"),
                    To("vm_area_struct"),
                    Pointer,
                    Int,
                    Int,
                    Int,
                ],
                Returns::Int,
                "mprotect_fixup_6_fexit",
                "mprotect_fixup_kretprobe",
            ),
            result(
                "mprotect_fixup",
                &[To("vm_area_struct"), Pointer, Int, Int, Int],
                Returns::Int,
                "mprotect_fixup_5_fexit",
                "mprotect_fixup_kretprobe",
            ),
        ],
    ),
    request(
        Check::ExpandDownwards,
        &[result(
            "expand_downwards",
            &[To("vm_area_struct"), Int],
            Returns::Int,
            "expand_downwards_fexit",
            "expand_downwards_kretprobe",
        )],
    ),
    request(
        Check::HugetlbReservePages,
        &[
            // true is success before 6.18, a negative number an error since (mm/hugetlb.c).
            result(
                "hugetlb_reserve_pages",
                HUGETLB,
                Returns::Bool,
                "hugetlb_reserve_pages_bool_fexit",
                "hugetlb_reserve_pages_bool_kretprobe",
            ),
            result(
                "hugetlb_reserve_pages",
                HUGETLB,
                Returns::Int,
                "hugetlb_reserve_pages_long_fexit",
                "hugetlb_reserve_pages_long_kretprobe",
            ),
        ],
    ),
    request(
        Check::MlockFuture,
        &[
            asked(
                "mlock_future_ok",
                &[To("mm_struct"), Int, Int],
                Returns::Bool,
                "mlock_future_ok_fexit",
                "mlock_future_ok_kprobe",
                "mlock_future_ok_kretprobe",
            ),
            asked(
                "mlock_future_check",
                &[To("mm_struct"), Int, Int],
                Returns::Int,
                "mlock_future_check_fexit",
                "mlock_future_check_kprobe",
                "mlock_future_check_kretprobe",
            ),
        ],
    ),
    request(
        Check::GetUnmappedArea,
        &[
            asked(
                "__get_unmapped_area",
                &[To("file"), Int, Int, Int, Int, Flags],
                Returns::Int,
                "get_unmapped_area_6_fexit",
                "get_unmapped_area_kprobe",
                "get_unmapped_area_kretprobe",
            ),
            asked(
                "get_unmapped_area",
                &[To("file"), Int, Int, Int, Int],
                Returns::Int,
                "get_unmapped_area_5_fexit",
                "get_unmapped_area_kprobe",
                "get_unmapped_area_kretprobe",
            ),
        ],
    ),
    request(
        Check::ShmemFallocate,
        &[asked(
            "shmem_fallocate",
            &[To("file"), Int, Int, Int],
            Returns::Int,
            "shmem_fallocate_fexit",
            "shmem_fallocate_kprobe",
            "shmem_fallocate_kretprobe",
        )],
    ),
    below(
        Check::Execve,
        &[],
        &[result(
            "__x64_sys_execve",
            &[To("pt_regs")],
            Returns::Int,
            "execve_fexit",
            "execve_kretprobe",
        )],
    ),
    below(
        Check::OomKillProcess,
        &[],
        &[marker(
            "oom_kill_process",
            &[To("oom_control"), Pointer],
            "oom_kill_process_fentry",
            "oom_kill_process_kprobe",
        )],
    ),
];

/// A memory cgroup's limit may be hit at any stage.
const IN_CHARGE: &[&str] = &["kernel_clone", "copy_process", "try_charge_memcg"];
const CHARGE: &[Parameter] = &[To("mem_cgroup"), Int, Int];
const HUGETLB: &[Parameter] = &[To("inode"), Int, Int, To("vm_area_struct"), Flags];
