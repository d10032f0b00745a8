//! Processes of interest that appear or end.

use aya_ebpf::{helpers::bpf_get_current_comm, macros::map, maps::HashMap};
use aya_log_ebpf::debug;
use pgfork_trace_common::{ProcessEvent, record};

use crate::attempt::{self, RECORDS};

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

/// A task ended; sent when it was the last word of a watched process.
#[inline(always)]
pub fn exit<C: aya_ebpf::EbpfContext>(ctx: &C) {
    attempt::abandon();
    let (tgid, tid) = attempt::ids();
    if tgid == tid && attempt::watched(tgid).is_some() {
        debug!(ctx, "watched pid {} ended", tgid);
        send(record::EXIT, tgid);
    }
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
