//! The kernel side: which program hooks what. Records facts, decides nothing.
//!
//! A check is declared once with [`check!`] and becomes a fexit program and a
//! kretprobe program (and a kprobe program where its arguments are needed).
//! Names follow `<function>[_<arguments>]_{fexit,kprobe,kretprobe}`; user space
//! finds them by name, from the one table in its `kernel::plan`.
#![no_std]
#![no_main]
#![allow(
    internal_features,
    reason = "atomic additions on a target without compare-and-swap"
)]
#![feature(core_intrinsics)]

mod attempt;
mod checks;
mod kernel;

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint, uprobe, uretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext},
};
use checks::{
    clone, kill, memcg,
    memory::{self, Request},
    overcommit, pid, pids, process, rlimit, stages, syscall,
};
use pgfork_trace_common::Check;

/// Declares the programs of one check whose result alone matters.
macro_rules! check {
    ($check:ident, $failed:path; $($fexit:ident($nargs:literal)),+; $kretprobe:ident) => {
        $(
            #[fexit]
            fn $fexit(ctx: FExitContext) {
                stages::returned(Check::$check, ctx.arg($nargs), $failed);
            }
        )+
        #[kretprobe]
        fn $kretprobe(ctx: RetProbeContext) {
            stages::returned(Check::$check, ctx.ret(), $failed);
        }
    };
}

/// Declares the programs of a function that only marks how far a fork came.
macro_rules! marker {
    ($check:ident; $fentry:ident; $kprobe:ident) => {
        #[fentry]
        fn $fentry(_ctx: FEntryContext) {
            stages::reached(Check::$check);
        }
        #[kprobe]
        fn $kprobe(_ctx: ProbeContext) {
            stages::reached(Check::$check);
        }
    };
}

/// Declares the programs of a request for memory whose size and flags are arguments.
macro_rules! request {
    ($check:ident, $failed:path; $($fexit:ident($nargs:literal)),+; $kprobe:ident; $kretprobe:ident; $of:tt) => {
        $(
            #[fexit]
            fn $fexit(ctx: FExitContext) {
                let ret = ctx.arg($nargs);
                if $failed(ret).is_some() {
                    memory::returned(Check::$check, ret, $failed, request!(ctx, $of));
                }
            }
        )+
        #[kprobe]
        fn $kprobe(ctx: ProbeContext) {
            let request = request!(probe ctx, $of);
            memory::entered(Check::$check, [request.bytes, request.flags, 0]);
        }
        #[kretprobe]
        fn $kretprobe(ctx: RetProbeContext) {
            memory::returned_kept(Check::$check, ctx.ret(), $failed);
        }
    };
    ($ctx:ident, [$unit:ident $size:literal, flags $flags:literal]) => {
        Request { flags: $ctx.arg($flags), ..Request::$unit($ctx.arg($size)) }
    };
    ($ctx:ident, [$unit:ident $size:literal]) => {
        Request::$unit($ctx.arg($size))
    };
    (probe $ctx:ident, [$unit:ident $size:literal, flags $flags:literal]) => {
        Request { flags: $ctx.arg($flags).unwrap_or(0), ..Request::$unit($ctx.arg($size).unwrap_or(0)) }
    };
    (probe $ctx:ident, [$unit:ident $size:literal]) => {
        Request::$unit($ctx.arg($size).unwrap_or(0))
    };
}

/// The same where the size is not an argument.
macro_rules! unsized_request {
    ($check:ident, $failed:path; $($fexit:ident($nargs:literal)),+; $kretprobe:ident) => {
        $(
            #[fexit]
            fn $fexit(ctx: FExitContext) {
                memory::returned(Check::$check, ctx.arg($nargs), $failed, Request::NONE);
            }
        )+
        #[kretprobe]
        fn $kretprobe(ctx: RetProbeContext) {
            memory::returned(Check::$check, ctx.ret(), $failed, Request::NONE);
        }
    };
}

// The life of an attempt.

#[fentry]
fn kernel_clone_fentry(ctx: FEntryContext) {
    clone::entered(ctx.arg(0));
}

#[fexit]
fn kernel_clone_fexit(ctx: FExitContext) {
    clone::returned(ctx.arg::<u64>(1) as i32);
}

#[kprobe]
fn kernel_clone_kprobe(ctx: ProbeContext) {
    clone::entered(ctx.arg(0).unwrap_or(0));
}

#[kretprobe]
fn kernel_clone_kretprobe(ctx: RetProbeContext) {
    clone::returned(ctx.ret::<u64>() as i32);
}

#[uprobe]
fn libc_fork_uprobe(_ctx: ProbeContext) {
    clone::libc_entered();
}

#[uretprobe]
fn libc_fork_uretprobe(ctx: RetProbeContext) {
    clone::libc_returned(ctx.ret::<u64>() as i32);
}

#[fexit]
fn execve_fexit(ctx: FExitContext) {
    clone::exec_returned(ctx.arg::<u64>(1) as i32);
}

#[kretprobe]
fn execve_kretprobe(ctx: RetProbeContext) {
    clone::exec_returned(ctx.ret::<u64>() as i32);
}

#[raw_tracepoint]
fn sys_enter(ctx: RawTracePointContext) {
    syscall::entered(kill::argument(&ctx, 0), kill::argument(&ctx, 1));
}

#[raw_tracepoint]
fn sys_exit(ctx: RawTracePointContext) {
    syscall::returned(kill::argument(&ctx, 0), kill::argument(&ctx, 1) as i64);
}

// Checks that need more than their result.

#[fexit]
fn vm_enough_memory_fexit(ctx: FExitContext) {
    let ret = ctx.arg::<u64>(3) as i32;
    if ret < 0 {
        overcommit::refused(ret, ctx.arg(0), ctx.arg(1), ctx.arg::<u64>(2) as i32);
    }
}

#[kprobe]
fn vm_enough_memory_kprobe(ctx: ProbeContext) {
    overcommit::entered(
        ctx.arg(0).unwrap_or(0),
        ctx.arg(1).unwrap_or(0),
        ctx.arg(2).unwrap_or(0),
    );
}

#[kretprobe]
fn vm_enough_memory_kretprobe(ctx: RetProbeContext) {
    let ret = ctx.ret::<u64>() as i32;
    if ret < 0 {
        overcommit::refused_stashed(ret);
    }
}

#[fexit]
fn pids_can_fork_fexit(ctx: FExitContext) {
    let ret = ctx.arg::<u64>(2) as i32;
    if ret < 0 {
        pids::refused(ret, ctx.arg(1));
    }
}

#[kprobe]
fn pids_can_fork_kprobe(ctx: ProbeContext) {
    attempt::stash([0, ctx.arg(1).unwrap_or(0), 0]);
}

#[kretprobe]
fn pids_can_fork_kretprobe(ctx: RetProbeContext) {
    let ret = ctx.ret::<u64>() as i32;
    if ret < 0 {
        pids::refused_stashed(ret);
    }
}

#[fexit]
fn is_rlimit_overlimit_fexit(ctx: FExitContext) {
    rlimit::over_limit(ctx.arg::<u64>(3));
}

#[kretprobe]
fn is_rlimit_overlimit_kretprobe(ctx: RetProbeContext) {
    rlimit::over_limit(ctx.ret::<u64>());
}

#[fexit]
fn alloc_pid_fexit(ctx: FExitContext) {
    pid::allocated(ctx.arg(3), ctx.arg(0), ctx.arg(2));
}

#[kprobe]
fn alloc_pid_kprobe(ctx: ProbeContext) {
    attempt::stash([ctx.arg(0).unwrap_or(0), ctx.arg(2).unwrap_or(0), 0]);
}

#[kretprobe]
fn alloc_pid_kretprobe(ctx: RetProbeContext) {
    pid::allocated_stashed(ctx.ret());
}

#[fentry]
fn try_to_free_mem_cgroup_pages_fentry(ctx: FEntryContext) {
    memcg::reclaiming(ctx.arg(0));
}

#[kprobe]
fn try_to_free_mem_cgroup_pages_kprobe(ctx: ProbeContext) {
    memcg::reclaiming(ctx.arg(0).unwrap_or(0));
}

#[fexit]
fn mem_cgroup_out_of_memory_fexit(ctx: FExitContext) {
    memcg::out_of_memory(ctx.arg(3), ctx.arg(0));
}

#[kprobe]
fn mem_cgroup_out_of_memory_kprobe(ctx: ProbeContext) {
    memcg::stash(ctx.arg(0).unwrap_or(0));
}

#[kretprobe]
fn mem_cgroup_out_of_memory_kretprobe(ctx: RetProbeContext) {
    memcg::out_of_memory_stashed(ctx.ret());
}

#[fentry]
fn oom_kill_process_fentry(ctx: FEntryContext) {
    kill::oom_kill_process(ctx.arg(0));
}

#[kprobe]
fn oom_kill_process_kprobe(ctx: ProbeContext) {
    kill::oom_kill_process(ctx.arg(0).unwrap_or(0));
}

// Checks and stages known by their result, in the kernel's order.

check!(CopyProcess, stages::error_pointer; copy_process_fexit(4); copy_process_kretprobe);
check!(ArchDupTaskStruct, stages::error; arch_dup_task_struct_fexit(2); arch_dup_task_struct_kretprobe);
check!(CopyCreds, stages::error; copy_creds_fexit(2); copy_creds_kretprobe);
marker!(CgroupFork; cgroup_fork_fentry; cgroup_fork_kprobe);
check!(SchedFork, stages::error; sched_fork_fexit(2); sched_fork_kretprobe);
check!(PerfEventInitTask, stages::error; perf_event_init_task_fexit(2); perf_event_init_task_kretprobe);
check!(AuditAlloc, stages::error; audit_alloc_fexit(1); audit_alloc_kretprobe);
check!(SecurityTaskAlloc, stages::error; security_task_alloc_fexit(2); security_task_alloc_kretprobe);
check!(DupFd, stages::null_or_error_pointer; dup_fd_2_fexit(2), dup_fd_3_fexit(3); dup_fd_kretprobe);
check!(CopyFsStruct, stages::null_or_error_pointer; copy_fs_struct_fexit(1); copy_fs_struct_kretprobe);
check!(PgdAlloc, stages::null_or_error_pointer; pgd_alloc_fexit(1); pgd_alloc_kretprobe);
check!(CopyNamespaces, stages::error; copy_namespaces_fexit(2); copy_namespaces_kretprobe);
check!(CopyThread, stages::error; copy_thread_2_fexit(2), copy_thread_5_fexit(5); copy_thread_kretprobe);
check!(CgroupCanFork, stages::error; cgroup_can_fork_fexit(2); cgroup_can_fork_kretprobe);
check!(SchedCgroupFork, stages::error; sched_cgroup_fork_fexit(2); sched_cgroup_fork_kretprobe);
marker!(CgroupCancelFork; cgroup_cancel_fork_fentry; cgroup_cancel_fork_kprobe);
check!(TaskExecStateCopy, stages::error; task_exec_state_copy_fexit(1); task_exec_state_copy_kretprobe);
check!(IoUringFork, stages::error; io_uring_fork_fexit(1); io_uring_fork_kretprobe);
check!(CopySemundo, stages::error; copy_semundo_fexit(2); copy_semundo_kretprobe);
check!(CopyIo, stages::error; copy_io_fexit(2); copy_io_kretprobe);
check!(FutexHashAllocate, stages::error; futex_hash_allocate_default_fexit(0); futex_hash_allocate_default_kretprobe);

// Checks on hot paths, attached for a while after a refusal that the others do not explain.

check!(DupMmap, stages::error; dup_mmap_fexit(2); dup_mmap_kretprobe);
check!(VmAreaDup, stages::null_or_error_pointer; vm_area_dup_fexit(1); vm_area_dup_kretprobe);
check!(AnonVmaFork, stages::error; anon_vma_fork_fexit(2); anon_vma_fork_kretprobe);
check!(CopyPageRange, stages::error; copy_page_range_fexit(2); copy_page_range_kretprobe);
check!(TryCharge, stages::error; try_charge_fexit(3); try_charge_kretprobe);
check!(MemcgKmemChargePage, stages::error; memcg_kmem_charge_page_fexit(3); memcg_kmem_charge_page_kretprobe);

#[fexit]
fn memcg_kmem_charge_fexit(ctx: FExitContext) {
    memcg::kmem_refused(ctx.arg::<u64>(3) as i32, ctx.arg(0));
}

#[kretprobe]
fn memcg_kmem_charge_kretprobe(ctx: RetProbeContext) {
    memcg::kmem_refused(ctx.ret::<u64>() as i32, 0);
}

// What running processes ask for, attached when descendants are followed as well.

request!(VmMmapPgoff, stages::error_pointer; vm_mmap_pgoff_fexit(6); vm_mmap_pgoff_kprobe; vm_mmap_pgoff_kretprobe;
    [bytes 2, flags 4]);
request!(GetUnmappedArea, stages::error_pointer; get_unmapped_area_5_fexit(5), get_unmapped_area_6_fexit(6);
    get_unmapped_area_kprobe; get_unmapped_area_kretprobe; [bytes 2, flags 4]);
request!(DoBrkFlags, stages::error; do_brk_flags_5_fexit(5); do_brk_flags_5_kprobe; do_brk_flags_5_kretprobe; [bytes 3]);
request!(DoBrkFlags, stages::error; do_brk_flags_4_fexit(4); do_brk_flags_4_kprobe; do_brk_flags_4_kretprobe; [bytes 1]);
request!(MayExpandVm, stages::false_result; may_expand_vm_fexit(3); may_expand_vm_kprobe; may_expand_vm_kretprobe; [pages 2]);
request!(Mremap, stages::error_pointer; vma_to_resize_4_fexit(4), vma_to_resize_5_fexit(5);
    vma_to_resize_kprobe; vma_to_resize_kretprobe; [bytes 2]);
request!(MlockFuture, stages::error; mlock_future_check_fexit(3);
    mlock_future_check_kprobe; mlock_future_check_kretprobe; [bytes 2]);
request!(MlockFuture, stages::false_result; mlock_future_ok_fexit(3);
    mlock_future_ok_kprobe; mlock_future_ok_kretprobe; [bytes 2]);

#[fexit]
fn shmem_fallocate_fexit(ctx: FExitContext) {
    let ret = ctx.arg(4);
    if stages::error_pointer(ret).is_some() {
        let request = memory::in_file(ctx.arg(0), ctx.arg(3));
        memory::returned(Check::ShmemFallocate, ret, stages::error_pointer, request);
    }
}

#[kprobe]
fn shmem_fallocate_kprobe(ctx: ProbeContext) {
    let request = memory::in_file(ctx.arg(0).unwrap_or(0), ctx.arg(3).unwrap_or(0));
    memory::entered(Check::ShmemFallocate, [request.bytes, request.flags, 0]);
}

#[kretprobe]
fn shmem_fallocate_kretprobe(ctx: RetProbeContext) {
    memory::returned_kept(Check::ShmemFallocate, ctx.ret(), stages::error_pointer);
}

unsized_request!(Mremap, stages::error_pointer; do_mremap_fexit(1); do_mremap_kretprobe);
unsized_request!(Mprotect, stages::error; mprotect_fixup_5_fexit(5), mprotect_fixup_6_fexit(6), mprotect_fixup_7_fexit(7);
    mprotect_fixup_kretprobe);
unsized_request!(ExpandDownwards, stages::error; expand_downwards_fexit(2); expand_downwards_kretprobe);
unsized_request!(HugetlbReservePages, stages::false_result; hugetlb_reserve_pages_bool_fexit(5);
    hugetlb_reserve_pages_bool_kretprobe);
unsized_request!(HugetlbReservePages, stages::error_pointer; hugetlb_reserve_pages_long_fexit(5);
    hugetlb_reserve_pages_long_kretprobe);

// Processes that are killed, and memory cgroups at their limit.

#[raw_tracepoint]
fn mark_victim(ctx: RawTracePointContext) {
    kill::marked(&ctx);
}

#[raw_tracepoint]
fn signal_generate(ctx: RawTracePointContext) {
    kill::signal(&ctx);
}

#[raw_tracepoint]
fn mm_vmscan_memcg_reclaim_begin(_ctx: RawTracePointContext) {
    memcg::reclaim_began();
}

// Processes of interest that appear or end. Raw tracepoints, because the others
// can only be attached where tracefs is mounted.

#[raw_tracepoint]
fn sched_process_exec(ctx: RawTracePointContext) {
    process::exec(&ctx);
}

#[raw_tracepoint]
fn sched_process_exit(ctx: RawTracePointContext) {
    process::exit(&ctx);
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: nothing here can panic; the verifier would reject a program that reached this.
    unsafe { core::hint::unreachable_unchecked() }
}

/// Tracing programs that use GPL-only helpers must say so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
