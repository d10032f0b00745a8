//! What `check` has to say, for all forms of output.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    connections::Connections,
    history::{HostHistory, ServerHistory},
    origins::Origin,
    settings::SettingReport,
};
use crate::verdict::{
    findings::Finding,
    headroom::{Cost, Limit, Near, Row},
};

/// Version of the document.
pub const SCHEMA: &str = "pgfork-trace-check/1";

/// One look at a host.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Report {
    /// `pgfork-trace-check/1`.
    pub schema: &'static str,
    /// When, RFC 3339.
    pub time: String,
    /// Kernel release.
    pub kernel: String,
    /// How long the look took, in microseconds.
    pub took_us: u64,
    /// Limits that are close or reached, over all servers.
    pub near: u64,
    /// Limits that every server has and that could not be read, over all servers.
    pub unread: u64,
    /// The servers, by pid.
    pub servers: Vec<ServerReport>,
    /// What already happened on this host.
    pub history: HostHistory,
    /// What could not be seen on this host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_seen: Vec<String>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ServerReport {
    /// Pid of the postmaster.
    pub pid: u32,
    /// TCP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Data directory, as the server sees it.
    pub data_dir: String,
    /// Major version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What refuses next, and how soon: one sentence.
    pub summary: String,
    /// Where that is close: what to type to make room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub make_room: Option<String>,
    /// Limits that every server has, and that could not be read: one of them may be the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<Limit>,
    /// The limit that the sentence is about: position in `limits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<usize>,
    /// Every limit, the one that refuses first at the top.
    pub limits: Vec<LimitReport>,
    /// What one more backend costs.
    pub backend_cost: Cost,
    /// Bytes of commit charge that a fork of the postmaster asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork_charge_bytes: Option<u64>,
    /// Settings that decide how many processes there may be, and how large.
    pub settings: Vec<SettingReport>,
    /// Connections and other children.
    pub connections: Connections,
    /// Settings that contradict each other, or what the files say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Where limits were set, by file and line; the one in force last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<Origin>,
    /// What already happened to it.
    pub history: ServerHistory,
    /// What could not be seen of this server.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_seen: Vec<String>,
}

/// A limit and whether it is close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LimitReport {
    /// The numbers.
    #[serde(flatten)]
    pub row: Row,
    /// Close or reached, by the thresholds asked for.
    pub near: bool,
    /// With `--watch`: how it moved over the last looks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trend: Option<Trend>,
}

/// How a limit moved: the line that fits best through up to ten looks before and this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Trend {
    /// Change of what is used over that time, in the limit's unit.
    pub used_change: i64,
    /// Time from the oldest of these looks, in milliseconds.
    pub over_ms: u64,
    /// At this rate nothing is left after so many seconds; absent when it does not grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_in_s: Option<u64>,
}

impl LimitReport {
    pub(super) fn new(row: Row, near: Near) -> Self {
        Self {
            near: row.is_near(near),
            row,
            trend: None,
        }
    }
}

/// A file's time as RFC 3339.
pub(super) fn time_of(time: std::time::SystemTime) -> Option<String> {
    let time = jiff::Timestamp::try_from(time).ok()?;
    Some(format!("{time:.0}"))
}
