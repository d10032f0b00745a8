//! What happens inside watched processes and their children: memory refused, and kills.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Errno, Postmaster, Process};
use crate::{
    kernel::plan::Method,
    verdict::{memory::MemoryVerdict, oom::OomVerdict},
};

/// What was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// A fork.
    #[default]
    Fork,
    /// A request for memory.
    Memory,
}

/// A process asked for memory and did not get it. One line for each request: a C library asks the
/// kernel in more than one way before its malloc fails.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MemoryRefusal {
    /// The watched process that it belongs to.
    pub postmaster: Postmaster,
    /// Who asked.
    pub process: Process,
    /// What the last call ended with; absent when its return was not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
    /// How it was seen.
    pub method: Method,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: MemoryVerdict,
}

/// The OOM killer chose a process.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct OomKill {
    /// The watched process that the victim is, or descends from; absent for any other process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postmaster: Option<Postmaster>,
    /// The victim.
    pub victim: Process,
    /// The process whose request brought it about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_pid: Option<u32>,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: OomVerdict,
}

/// Who sent a signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Sender {
    /// Its pid.
    pub pid: u32,
    /// Its name (`comm`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Its real uid, as the initial user namespace has it.
    pub uid: u32,
}

/// What ended a process by force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum KilledBy {
    /// SIGKILL from a process.
    Signal {
        /// Who sent it.
        sender: Sender,
    },
    /// SIGKILL from the kernel, and no OOM kill of this process was seen: its pid namespace
    /// ended, it used up `RLIMIT_CPU`, or the OOM killer ended it along with another process.
    Kernel,
    /// The OOM killer.
    OomKiller,
}

/// SIGKILL was sent to a watched process or to a child of one. A kill by the OOM killer is an
/// `oom_kill` line instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Killed {
    /// The watched process that the target is, or descends from.
    pub postmaster: Postmaster,
    /// The target.
    pub target: Process,
    /// By what.
    #[serde(flatten)]
    pub killed_by: KilledBy,
}
