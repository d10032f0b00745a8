//! Processes of interest that appear or end.

use aya_ebpf::{helpers::bpf_get_current_comm, macros::map, maps::HashMap};
use aya_log_ebpf::debug;
use pgfork_trace_common::{ProcessEvent, record};

use crate::{
    attempt::{self, RECORDS},
    kernel::{self, offset, read_at},
};

/// Names (`comm`) that a postmaster's program may have.
#[map]
static EXEC_NAMES: HashMap<[u8; 16], u8> = HashMap::with_max_entries(16, 0);

/// A program was executed.
#[inline(always)]
pub fn exec<C: aya_ebpf::EbpfContext>(ctx: &C) {
    let Ok(comm) = bpf_get_current_comm() else {
        return;
    };
    // SAFETY: the entry is only tested for presence.
    if unsafe { EXEC_NAMES.get(&comm) }.is_none() {
        return;
    }
    let (tgid, _) = attempt::ids();
    debug!(ctx, "exec of a watched name by pid {}", tgid);
    send(record::EXEC, tgid);
}

/// A task ended; sent when it was the last one of a watched process. The first one may end long
/// before the others, or be replaced by another one that executes a program.
#[inline(always)]
pub fn exit<C: aya_ebpf::EbpfContext>(ctx: &C) {
    attempt::abandon();
    let (tgid, tid) = attempt::ids();
    if attempt::watched(tgid).is_some() && was_last().unwrap_or(tgid == tid) {
        debug!(ctx, "watched pid {} ended", tgid);
        send(record::EXIT, tgid);
    }
}

/// kernel/exit.c `do_exit` has taken the task out of `live` by then, 5.10 to 7.2.
#[inline(always)]
fn was_last() -> Option<bool> {
    let signal = read_at::<u64>(kernel::current(), offset!(task_signal))?;
    let live = read_at::<i32>(signal, offset!(signal_live))?;
    Some(live == 0)
}

#[inline(always)]
fn send(kind: u32, tgid: u32) {
    // User space then finds out at its next look at /proc.
    if RECORDS
        .output::<ProcessEvent>(&ProcessEvent { kind, tgid }, 0)
        .is_err()
    {
        attempt::lost_event();
    }
}
