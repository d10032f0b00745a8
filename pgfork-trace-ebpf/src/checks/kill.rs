//! Processes that are killed: by the OOM killer, or by SIGKILL from anybody.

use aya_ebpf::{EbpfContext, helpers::bpf_get_current_comm, programs::RawTracePointContext};
use pgfork_trace_common::{OomKill, Sigkill, oom_valid, record};

use crate::{
    attempt::{self, RECORDS},
    kernel::{self, offset, read_at},
};

/// `SIGKILL` (include/uapi/asm-generic/signal.h).
const SIGKILL: u64 = 9;
/// `TRACE_SIGNAL_DELIVERED` (include/trace/events/signal.h).
const DELIVERED: u32 = 0;
/// `SEND_SIG_PRIV` (include/linux/signal_types.h): sent by the kernel itself.
const SEND_SIG_PRIV: u64 = 1;

/// Arguments of a raw tracepoint.
#[inline(always)]
pub fn argument(ctx: &RawTracePointContext, number: usize) -> u64 {
    // SAFETY: the kernel hands over at least as many arguments as the tracepoint has.
    unsafe { *ctx.as_ptr().cast::<u64>().add(number) }
}

/// `mark_victim` (mm/oom_kill.c `mark_oom_victim`): a pid before 6.8, a task since, and
/// in stable releases that took it over. A pid is an `int`, a task a kernel address.
#[inline(always)]
pub fn marked(ctx: &RawTracePointContext) {
    let victim = argument(ctx, 0);
    if victim >> 32 != 0 {
        send(victim, 0, 0, false);
    } else {
        send(0, victim as u32, 0, false);
    }
}

/// `oom_kill_process` was entered with its `struct oom_control` (mm/oom_kill.c, 5.10 to 7.2).
#[inline(always)]
pub fn oom_kill_process(control: u64) {
    let Some(chosen) = read_at::<u64>(control, offset!(oc_chosen)) else {
        return;
    };
    if let Some(memcg) = read_at::<u64>(control, offset!(oc_memcg)) {
        send(chosen, 0, memcg, true);
    } else {
        send(chosen, 0, 0, false);
    }
}

/// `memcg` is 0 for the whole host; `known` says whether whose memory was short is known.
#[inline(never)]
fn send(task: u64, pid: u32, memcg: u64, known: bool) {
    let Some(mut entry) = RECORDS.reserve::<OomKill>(0) else {
        attempt::lost_event();
        return;
    };
    let (trigger, _) = attempt::ids();
    let kill = entry.as_mut_ptr();
    // SAFETY: reserved, aligned and large enough; every field is written.
    unsafe {
        kill.write(OomKill {
            kind: record::OOM_KILL,
            victim: pid,
            watched: 0,
            trigger,
            time_ns: aya_ebpf::helpers::bpf_ktime_get_ns(),
            total_vm_pages: 0,
            memcg_id: 0,
            memcg_usage: 0,
            memcg_max: 0,
            oom_score_adj: 0,
            valid: 0,
            comm: [0; 16],
        });
    }
    // SAFETY: written above.
    let kill = unsafe { &mut *kill };
    if task != 0 {
        victim(kill, task);
    }
    if known {
        kill.valid |= oom_valid::SCOPE;
        if let Some(id) = kernel::cgroup_id_of_memcg(memcg) {
            kill.memcg_id = id;
        }
        if let Some(usage) = read_at(memcg, offset!(memcg_usage)) {
            kill.memcg_usage = usage;
        }
        if let Some(max) = read_at(memcg, offset!(memcg_max)) {
            kill.memcg_max = max;
        }
    }
    entry.submit(0);
}

#[inline(always)]
fn victim(kill: &mut OomKill, task: u64) {
    if let Some(tgid) = read_at(task, offset!(task_tgid)) {
        kill.victim = tgid;
        kill.valid |= oom_valid::TASK;
    }
    kill.watched = attempt::related(task);
    if let Some(comm) = read_at(task, offset!(task_comm)) {
        kill.comm = comm;
    }
    if let Some(signal) = read_at::<u64>(task, offset!(task_signal))
        && let Some(adjustment) = read_at::<i16>(signal, offset!(signal_oom_score_adj))
    {
        kill.oom_score_adj = adjustment as i32;
    }
    if let Some(mm) = read_at::<u64>(task, offset!(task_mm))
        && let Some(pages) = read_at(mm, offset!(mm_total_vm))
    {
        kill.total_vm_pages = pages;
    }
}

/// `signal_generate` (kernel/signal.c `__send_signal`, later `__send_signal_locked`, 5.10 to 7.2):
/// sig, info, task, group, result. A signal that is ignored, as one to the init of a pid namespace
/// from inside it, or that was pending already, kills nobody.
#[inline(always)]
pub fn signal(ctx: &RawTracePointContext) {
    if argument(ctx, 0) as u32 as u64 != SIGKILL || argument(ctx, 4) as u32 != DELIVERED {
        return;
    }
    let task = argument(ctx, 2);
    let watched = attempt::related(task);
    if watched == 0 {
        return;
    }
    let Some(mut entry) = RECORDS.reserve::<Sigkill>(0) else {
        attempt::lost_event();
        return;
    };
    let (sender, _) = attempt::ids();
    let event = entry.as_mut_ptr();
    // SAFETY: reserved, aligned and large enough; every field is written.
    unsafe {
        event.write(Sigkill {
            kind: record::SIGKILL,
            target: 0,
            watched,
            sender,
            sender_uid: aya_ebpf::helpers::bpf_get_current_uid_gid() as u32,
            from_kernel: (argument(ctx, 1) == SEND_SIG_PRIV) as u32,
            sender_comm: [0; 16],
            target_comm: [0; 16],
        });
    }
    // SAFETY: written above.
    let event = unsafe { &mut *event };
    if let Some(tgid) = read_at(task, offset!(task_tgid)) {
        event.target = tgid;
    }
    if let Some(comm) = read_at(task, offset!(task_comm)) {
        event.target_comm = comm;
    }
    if let Ok(comm) = bpf_get_current_comm() {
        event.sender_comm = comm;
    }
    entry.submit(0);
}
