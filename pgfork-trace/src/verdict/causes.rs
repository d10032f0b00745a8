//! The catalogue of causes: text, JSON enumeration and documentation come from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a fork was refused. Ids are never renamed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Strict overcommit (vm.overcommit_memory = 2): the commit limit is reached.
    CommitLimit,
    /// A pids cgroup is full: its own limit or that of any ancestor.
    PidsCgroupMax,
    /// `RLIMIT_NPROC`: the user has as many tasks as the process may have.
    RlimitNproc,
    /// No cause could be proven.
    Unknown,
}

/// One entry of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseEntry {
    /// The cause.
    pub cause: Cause,
    /// Its id in output.
    pub id: &'static str,
    /// One line: what it is.
    pub title: &'static str,
    /// errno that the process gets.
    pub errno: &'static str,
    /// Kernel function of the check.
    pub function: &'static str,
    /// What it means, for a database administrator.
    pub meaning: &'static str,
}

const CATALOGUE: &[CauseEntry] = &[
    CauseEntry {
        cause: Cause::CommitLimit,
        id: "commit_limit",
        title: "strict overcommit, the host's commit limit is reached",
        errno: "ENOMEM",
        function: "__vm_enough_memory",
        meaning: "The kernel promises no more memory than CommitLimit, whether or not it is used, and a fork \
                  asks for a copy of all private writable memory of the postmaster. RAM itself may be free.",
    },
    CauseEntry {
        cause: Cause::PidsCgroupMax,
        id: "pids_cgroup_max",
        title: "a control group has as many tasks as it may have",
        errno: "EAGAIN",
        function: "pids_can_fork",
        meaning: "A limit on the number of tasks (systemd TasksMax, a container's pids limit) is reached in the \
                  postmaster's cgroup or in one above it. Every process and thread in that cgroup counts.",
    },
    CauseEntry {
        cause: Cause::RlimitNproc,
        id: "rlimit_nproc",
        title: "the user has as many tasks as its process limit allows",
        errno: "EAGAIN",
        function: "is_rlimit_overlimit",
        meaning: "RLIMIT_NPROC (ulimit -u, LimitNPROC=) counts all processes and threads of the user on the host, \
                  also those of other services and containers that run as the same user.",
    },
    CauseEntry {
        cause: Cause::Unknown,
        id: "unknown",
        title: "no check could be proven to have refused",
        errno: "any",
        function: "",
        meaning: "The kernel refused the fork at a place that could not be identified. What was seen and what was \
                  ruled out is listed.",
    },
];

impl Cause {
    /// Its entry in the catalogue.
    #[must_use]
    pub fn entry(self) -> &'static CauseEntry {
        // A test holds the catalogue to one entry for each cause.
        CATALOGUE
            .iter()
            .find(|entry| entry.cause == self)
            .unwrap_or(&CATALOGUE[CATALOGUE.len() - 1])
    }

    /// Its id in output.
    #[must_use]
    pub fn id(self) -> &'static str {
        self.entry().id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_json_values() {
        for entry in CATALOGUE {
            assert_eq!(entry.cause.entry(), entry);
            assert_eq!(serde_json::to_value(entry.cause).unwrap(), entry.id);
        }
    }
}
