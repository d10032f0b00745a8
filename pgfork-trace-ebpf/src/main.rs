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
use checks::{clone, overcommit, pids, process, rlimit, stages};
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
    attempt::stash([
        ctx.arg(0).unwrap_or(0),
        ctx.arg(1).unwrap_or(0),
        ctx.arg(2).unwrap_or(0),
    ]);
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
check!(AllocPid, stages::error_pointer; alloc_pid_fexit(3), alloc_pid_4_fexit(4); alloc_pid_kretprobe);
check!(CgroupCanFork, stages::error; cgroup_can_fork_fexit(2); cgroup_can_fork_kretprobe);
check!(SchedCgroupFork, stages::error; sched_cgroup_fork_fexit(2); sched_cgroup_fork_kretprobe);
marker!(CgroupCancelFork; cgroup_cancel_fork_fentry; cgroup_cancel_fork_kprobe);
marker!(TryToFreeMemCgroupPages; try_to_free_mem_cgroup_pages_fentry; try_to_free_mem_cgroup_pages_kprobe);
check!(MemCgroupOutOfMemory, stages::false_result; mem_cgroup_out_of_memory_fexit(3); mem_cgroup_out_of_memory_kretprobe);

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
