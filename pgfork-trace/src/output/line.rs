//! What there is to say: one value for each JSON line. Plain data; text is rendered from the same.

mod children;

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::verdict::{
    Cause, Certainty, Scope, Verdict,
    client::{Child, Client},
    errno_name,
    headroom::NextLimit,
};

/// Name and version of the format, in every line.
pub const SCHEMA: &str = "pgfork-trace/1";

/// Key of [`Totals::refused_by_cause`] for refusals that were counted while their record was lost.
pub const DETAILS_LOST: &str = "details_lost";

pub use crate::kernel::plan::Method;
pub use crate::postgres::Role;
pub use children::{Killed, KilledBy, MemoryRefusal, OomKill, Refused, Sender};

/// One JSON line without its envelope (`schema`, `time`).
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// Watching begins.
    Start(Start),
    /// A fork was refused.
    Refusal(Box<Refusal>),
    /// A request for memory was refused.
    MemoryRefusal(Box<MemoryRefusal>),
    /// The OOM killer chose a process.
    OomKill(Box<OomKill>),
    /// SIGKILL was sent to a watched process or to a child of one.
    Killed(Killed),
    /// Refusals that were counted instead of written.
    Repeat(Repeat),
    /// A watched process came or went.
    Postmaster(PostmasterChange),
    /// Something was missed.
    Lost(Lost),
    /// Something the user must know.
    Notice(Notice),
    /// Counts of one watched process.
    Totals(Totals),
    /// Watching ended; the last line.
    End(End),
}

/// A line as it is written.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Record<'a> {
    /// Format.
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    /// When: UTC, RFC 3339 with microseconds.
    #[schemars(extend("format" = "date-time"))]
    time: String,
    #[serde(flatten)]
    line: &'a Line,
}

impl<'a> Record<'a> {
    /// Puts a line into its envelope.
    #[must_use]
    pub fn new(time: Timestamp, line: &'a Line) -> Self {
        Self {
            schema: SCHEMA,
            time: format!("{time:.6}"),
            line,
        }
    }
}

/// What a watched process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WatchedKind {
    /// A PostgreSQL postmaster.
    #[default]
    Postmaster,
    /// Any other process, named with `--pid` or `--comm`.
    Process,
}

/// A watched process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Postmaster {
    /// Pid on the host.
    pub pid: u32,
    /// What it is.
    pub kind: WatchedKind,
    /// Its name (`comm`), where it is not a postmaster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// TCP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Data directory as the postmaster sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<String>,
    /// Major version of PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Container id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// When it was started: UTC, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub started: Option<Timestamp>,
}

/// Whole seconds: the start of a process is known no better.
fn seconds<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&format_args!("{time:.0}")),
        None => serializer.serialize_none(),
    }
}

/// Watching begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Start {
    /// Version of this tool.
    pub tool_version: String,
    /// Kernel release.
    pub kernel: String,
    /// Method in use.
    pub method: Method,
    /// Number of attached programs.
    pub probes: u64,
    /// From the start of the tool to the last attached program.
    pub attach_ns: u64,
    /// Checks that cannot be watched here, and why.
    pub not_seen: Vec<String>,
    /// Watched processes; empty while waiting for a postmaster.
    pub postmasters: Vec<Postmaster>,
    /// Names asked for with `--comm`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// The process that something happened to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name (`comm`); bytes that are not UTF-8 as `\xNN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// What it called itself last (`postgres: app db 10.0.3.17(52114) SELECT`), where it is not
    /// the watched process: text that others choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it is to its postmaster, by its title and those of the processes above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Which helper process it is, or what a program was started for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

/// An error of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Errno {
    /// Number, positive.
    pub number: i32,
    /// Name, for example `ENOMEM`.
    pub name: String,
}

impl Errno {
    /// From a kernel result, for example -12.
    #[must_use]
    pub fn from_ret(ret: i32) -> Self {
        Self {
            number: ret.saturating_neg(),
            name: errno_name(ret),
        }
    }
}

/// A fork was refused.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Refusal {
    /// The watched process that it belongs to.
    pub postmaster: Postmaster,
    /// Who called.
    pub process: Process,
    /// Whose connection it was, where a postmaster forked for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// What the child was to be, where a postmaster forked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child: Option<Child>,
    /// System call, where system calls are what is watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syscall: Option<&'static str>,
    /// Flags given to clone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clone_flags: Option<u64>,
    /// What the process got; absent when it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
    /// Time spent in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ns: Option<u64>,
    /// How it was seen.
    pub method: Method,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Which limit refuses a postmaster next, once the remedy is in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_limit: Option<NextLimit>,
    /// Records lost between the previous one and this.
    pub lost_before: u64,
}

impl Refusal {
    /// Whether a postmaster itself forked: then it was for a client, or for a worker.
    #[must_use]
    pub fn is_for_postmaster(&self) -> bool {
        self.postmaster.kind == WatchedKind::Postmaster && self.process.pid == self.postmaster.pid
    }
}

/// Refusals that were counted instead of written.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Repeat {
    /// The watched process.
    pub postmaster: Postmaster,
    /// What was refused.
    pub refused: Refused,
    /// Cause.
    pub cause: Cause,
    /// How sure.
    pub certainty: Certainty,
    /// Whose limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// How many.
    pub refusals: u64,
}

/// What happened to a watched process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It started, or became a postmaster.
    Appeared,
    /// It ended.
    Gone,
    /// It ended, and another with the same data directory took its place.
    Restarted,
}

/// A watched process came or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PostmasterChange {
    /// What happened.
    pub event: Change,
    /// Which; the new one after a restart.
    pub postmaster: Postmaster,
    /// Its predecessor, after a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_pid: Option<u32>,
    /// What ended it by force, where that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killed_by: Option<KilledBy>,
}

/// What was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LostWhat {
    /// Records of refusals: the ring buffer was full. The refusals are counted all the same.
    Records,
    /// Ends of attempts that were not seen: the kernel did not report the return (kretprobes in
    /// use), or the process was killed within its C library's `fork`.
    Returns,
    /// Attempts that were not followed: too many at once.
    Attempts,
    /// Records of anything else (requests for memory, kills, processes that start or end): the
    /// ring buffer was full. What they told is not counted elsewhere.
    Events,
}

/// Something was missed since the last such line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Lost {
    /// What.
    pub what: LostWhat,
    /// How many.
    pub count: u64,
}

/// Something the user must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Notice {
    /// Which notice: `snake_case`, never renamed.
    pub code: String,
    /// What it says.
    pub message: String,
}

impl Notice {
    /// A notice as a line.
    pub fn line(code: &str, message: impl Into<String>) -> Line {
        Line::Notice(Self {
            code: code.to_owned(),
            message: message.into(),
        })
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Time from the entry to the exit of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ForkTime {
    /// Median, in nanoseconds.
    pub p50: u64,
    /// 99th percentile, in nanoseconds.
    pub p99: u64,
}

/// Connections from one place.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ClientCount {
    /// TCP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub address: Option<IpAddr>,
    /// User on this host, for Unix sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Connections, refused ones included.
    pub connects: u64,
    /// The same over the time watched.
    pub connects_per_second: f64,
}

/// Connections to one postmaster: forks for a client.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Connects {
    /// All of them, refused ones included.
    pub connects: u64,
    /// The same over the time watched.
    pub connects_per_second: f64,
    /// Forks without a client: for workers and processes of the server's own.
    pub without_client: u64,
    /// Forks of which it is not known whether there was one: its open files could not be read,
    /// or there were more clients than are counted apart.
    #[serde(skip_serializing_if = "is_zero")]
    pub unattributed: u64,
    /// Clients with most connections first, ten at most.
    pub clients: Vec<ClientCount>,
    /// How many more clients there were.
    pub other_clients: u64,
    /// Connections of those.
    pub other_connects: u64,
}

/// Counts of one watched process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Totals {
    /// Which.
    pub postmaster: Postmaster,
    /// So many processes of the same name had ended before, and their counts are added to these.
    #[serde(skip_serializing_if = "is_zero")]
    pub merged: u64,
    /// Attempts, refused ones included.
    pub forks: u64,
    /// Attempts that ended with an error.
    pub refused: u64,
    /// Attempts that the kernel restarted after a signal; they are no refusals.
    pub restarted: u64,
    /// Refusals whose record was lost.
    pub lost: u64,
    /// Attempts that were not followed from entry to exit.
    pub untracked: u64,
    /// Refusals by cause; `details_lost` for those whose record was lost.
    pub refused_by_cause: BTreeMap<String, u64>,
    /// Attempts of its descendants, refused ones included; absent without `--all-children`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_forks: Option<u64>,
    /// Attempts of its descendants that ended with an error; not part of `refused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_refused: Option<u64>,
    /// The same by cause; `details_lost` for those whose record was lost.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub child_refused_by_cause: BTreeMap<String, u64>,
    /// Refused requests for memory of it and its descendants, by cause; absent without
    /// `--all-children`. Requests whose record was lost are not in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_refusals: Option<BTreeMap<String, u64>>,
    /// Kills by the OOM killer, of it and its descendants.
    pub oom_kills: u64,
    /// Time a fork takes, in nanoseconds; absent when it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork_time_ns: Option<ForkTime>,
    /// Connections by client; absent where they were not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connects>,
    /// What the server's own log says of refused forks; absent where it says nothing or cannot be
    /// read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_log: Option<ServerLogged>,
}

/// What was appended to a server's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ServerLogged {
    /// Lines "could not fork ...", by kind of child.
    pub could_not_fork: BTreeMap<String, u64>,
    /// There may be more: the log was rotated, or grew faster than it was read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Why watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Ctrl-C, SIGTERM, SIGHUP, or the reader of the output went away.
    Signal,
    /// `--for` is over.
    Duration,
    /// `--until` is reached.
    Until,
    /// Every process named with `--pid` has ended.
    NoMore,
}

/// Watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct End {
    /// From the last attached program to now.
    pub watched_ns: u64,
    /// Refused forks of all watched processes, and with `--all-children` of their descendants.
    pub refusals: u64,
    /// Refused requests for memory; absent without `--all-children`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_refusals: Option<u64>,
    /// Kills by the OOM killer, of any process of the host.
    pub oom_kills: u64,
    /// Events lost in all: records, returns, attempts.
    pub lost: u64,
    /// Why.
    pub reason: EndReason,
    /// Every attempt of every watched process is in the totals.
    pub accounted: bool,
}
