//! Whose connection a refused fork was for. Pure.
//!
//! While a postmaster forks for a connection it holds its copy of the client's socket open:
//! src/backend/postmaster/postmaster.c `ServerLoop` accepts, `BackendStartup` forks, and only
//! then is the socket closed (PostgreSQL 13 to 18). At every other fork none is open.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pgfork_trace_common::{Attempt, ClientKey, valid};
use schemars::JsonSchema;
use serde::Serialize;

use super::Certainty;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Client {
    /// TCP over IPv4, also where the server's socket is an IPv6 one.
    Tcp4 {
        /// Address.
        address: String,
        /// Port.
        port: u16,
    },
    /// TCP over IPv6.
    Tcp6 {
        /// Address.
        address: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix {
        /// Process that connected.
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        /// Its effective user when it connected.
        uid: u32,
        /// Its name (`comm`) right after the refusal.
        #[serde(skip_serializing_if = "Option::is_none")]
        comm: Option<String>,
    },
}

/// What a child of a postmaster was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChildKind {
    /// A client backend; a walsender begins as one too.
    ClientBackend,
    /// Not for a connection: an autovacuum, background or parallel worker, or a process of the
    /// server's own.
    Worker,
    /// Not known.
    Unknown,
    // The kernel cannot tell the rest from each other; the server's own log names them.
    /// An autovacuum worker.
    AutovacuumWorker,
    /// The autovacuum launcher.
    AutovacuumLauncher,
    /// A background worker; parallel workers and those of logical replication are some.
    BackgroundWorker,
    /// The startup process.
    Startup,
    /// The checkpointer.
    Checkpointer,
    /// The background writer.
    BackgroundWriter,
    /// The WAL writer.
    WalWriter,
    /// The WAL receiver of a standby.
    WalReceiver,
    /// The WAL summarizer (17 and later).
    WalSummarizer,
    /// The archiver.
    Archiver,
    /// The slot synchronization worker (17 and later).
    SlotSyncWorker,
    /// A worker for asynchronous input and output (18 and later).
    IoWorker,
    /// The statistics collector (to 14).
    StatisticsCollector,
    /// The logger.
    Logger,
}

impl ChildKind {
    /// The name used in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClientBackend => "client_backend",
            Self::Worker => "worker",
            Self::Unknown => "unknown",
            Self::AutovacuumWorker => "autovacuum_worker",
            Self::AutovacuumLauncher => "autovacuum_launcher",
            Self::BackgroundWorker => "background_worker",
            Self::Startup => "startup",
            Self::Checkpointer => "checkpointer",
            Self::BackgroundWriter => "background_writer",
            Self::WalWriter => "wal_writer",
            Self::WalReceiver => "wal_receiver",
            Self::WalSummarizer => "wal_summarizer",
            Self::Archiver => "archiver",
            Self::SlotSyncWorker => "slot_sync_worker",
            Self::IoWorker => "io_worker",
            Self::StatisticsCollector => "statistics_collector",
            Self::Logger => "logger",
        }
    }
}

/// What the refused child of a postmaster was to be, and how sure that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Child {
    /// What.
    pub kind: ChildKind,
    /// How sure. Observed: the client's socket was seen, or the server's log names the child.
    pub certainty: Certainty,
    /// A process that every such server has and this one lacks: most likely it was this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub likely: Option<&'static str>,
}

/// Whom connections are counted for: ports and pids are new at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A TCP address.
    Address(IpAddr),
    /// A local user.
    Uid(u32),
    /// Forks without a client.
    Nobody,
}

/// An address as people know it: IPv4 in IPv6 is IPv4.
fn address(family: u16, bytes: [u8; 16]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => {
            let [a, b, c, d, ..] = bytes;
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        libc::AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

/// The client of a refused fork, where one was found; without the name of a local one.
#[must_use]
pub fn client(attempt: &Attempt) -> Option<Client> {
    if attempt.valid & valid::CLIENT == 0 {
        return None;
    }
    let seen = &attempt.client;
    if i32::from(seen.family) == libc::AF_UNIX {
        return Some(Client::Unix {
            pid: Some(seen.peer_pid).filter(|pid| *pid != 0),
            uid: seen.peer_uid,
            comm: None,
        });
    }
    let port = seen.port;
    Some(match address(seen.family, seen.address)? {
        IpAddr::V4(address) => Client::Tcp4 {
            address: address.to_string(),
            port,
        },
        IpAddr::V6(address) => Client::Tcp6 {
            address: address.to_string(),
            port,
        },
    })
}

/// What the refused child of a postmaster was to be.
#[must_use]
pub fn child(attempt: &Attempt) -> Child {
    let all_looked_through =
        attempt.valid & (valid::CLIENT | valid::CLIENT_TRUNCATED) == valid::CLIENT;
    let (kind, certainty) = match client(attempt) {
        Some(_) => (ChildKind::ClientBackend, Certainty::Observed),
        None if all_looked_through && attempt.client.family == 0 => {
            (ChildKind::Worker, Certainty::Deduced)
        }
        None => (ChildKind::Unknown, Certainty::Unknown),
    };
    Child {
        kind,
        certainty,
        likely: None,
    }
}

/// The same, as the server's log names it.
#[must_use]
pub const fn logged(kind: ChildKind) -> Child {
    Child {
        kind,
        certainty: Certainty::Observed,
        likely: None,
    }
}

/// Whom a count of connections is for. `None` for a family that is none of ours.
#[must_use]
pub fn origin(key: &ClientKey) -> Option<Origin> {
    let family = u16::try_from(key.family).ok()?;
    match i32::from(family) {
        0 => Some(Origin::Nobody),
        libc::AF_UNIX => Some(Origin::Uid(key.uid)),
        _ => address(family, key.address).map(Origin::Address),
    }
}

/// What a postmaster's children say of themselves in their titles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Household {
    /// Names of helpers, as [`crate::postgres::titles`] has them.
    pub helpers: Vec<String>,
    /// Children without a title: started a moment ago, or not readable.
    pub untitled: usize,
    /// Major version.
    pub version: Option<u64>,
    /// The setting `autovacuum`, where it could be read.
    pub autovacuum: Option<bool>,
}

/// First version whose checkpointer and background writer run during any recovery
/// (src/backend/postmaster/postmaster.c `PostmasterMain`, 15 to 18).
const EARLY_CHECKPOINTER: u64 = 15;

/// A process that this server ought to have and lacks. `None` when nothing is missing, and where
/// that cannot be told: a child without a title may be the one.
#[must_use]
pub fn missing(household: &Household) -> Option<&'static str> {
    if household.untitled > 0 {
        return None;
    }
    let has = |name: &str| household.helpers.iter().any(|helper| helper == name);
    let writer = has("walwriter") || has("wal writer");
    let recovering = has("startup");
    // A server that runs, or is about to: without any of these it cannot be past its start.
    if !recovering && !writer && !has("checkpointer") && !has("background writer") {
        return Some("startup");
    }
    let early = household
        .version
        .is_some_and(|version| version >= EARLY_CHECKPOINTER);
    if recovering && !early {
        return None;
    }
    if !has("checkpointer") {
        return Some("checkpointer");
    }
    if !has("background writer") {
        return Some("background writer");
    }
    if recovering {
        return None;
    }
    if !writer {
        return Some("walwriter");
    }
    let launcher = household.autovacuum == Some(true) && !has("autovacuum launcher");
    launcher.then_some("autovacuum launcher")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgfork_trace_common::Client as Seen;

    fn with(valid: u32, family: i32, address: &[u8]) -> Attempt {
        // SAFETY: an Attempt is made of integers only.
        let mut attempt: Attempt = unsafe { std::mem::zeroed() };
        let mut bytes = [0; 16];
        bytes[..address.len()].copy_from_slice(address);
        attempt.valid = valid;
        attempt.client = Seen {
            family: u16::try_from(family).unwrap(),
            port: 52114,
            peer_pid: 77,
            peer_uid: 1000,
            address: bytes,
        };
        attempt
    }

    #[test]
    fn a_client_is_seen() {
        let tcp = with(valid::CLIENT, libc::AF_INET, &[10, 0, 3, 17]);
        let four = Client::Tcp4 {
            address: "10.0.3.17".to_owned(),
            port: 52114,
        };
        assert_eq!(client(&tcp), Some(four.clone()));
        assert_eq!(child(&tcp).kind, ChildKind::ClientBackend);
        assert_eq!(child(&tcp).certainty, Certainty::Observed);
        // A server that listens on :: sees IPv4 clients so.
        let mapped = with(
            valid::CLIENT,
            libc::AF_INET6,
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 3, 17],
        );
        assert_eq!(client(&mapped), Some(four));
        let six = with(
            valid::CLIENT,
            libc::AF_INET6,
            &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
        );
        assert!(
            matches!(client(&six), Some(Client::Tcp6 { address, .. }) if address == "2001:db8::7")
        );
        let unix = with(valid::CLIENT, libc::AF_UNIX, &[]);
        assert_eq!(
            client(&unix),
            Some(Client::Unix {
                pid: Some(77),
                uid: 1000,
                comm: None
            })
        );
    }

    #[test]
    fn found_among_many_is_found() {
        let both = valid::CLIENT | valid::CLIENT_TRUNCATED;
        let attempt = with(both, libc::AF_INET, &[10, 0, 3, 17]);
        assert_eq!(child(&attempt).certainty, Certainty::Observed);
    }

    #[test]
    fn without_a_client_it_was_a_worker_only_if_all_was_seen() {
        let none = with(valid::CLIENT, 0, &[]);
        assert_eq!(client(&none), None);
        assert_eq!(
            child(&none),
            Child {
                kind: ChildKind::Worker,
                certainty: Certainty::Deduced,
                likely: None
            }
        );
        for attempt in [
            with(valid::CLIENT | valid::CLIENT_TRUNCATED, 0, &[]),
            with(0, 0, &[]),
            // What is left over from another reading proves nothing.
            with(0, libc::AF_INET, &[10, 0, 3, 17]),
        ] {
            assert_eq!(client(&attempt), None);
            assert_eq!(child(&attempt).kind, ChildKind::Unknown);
            assert_eq!(child(&attempt).certainty, Certainty::Unknown);
        }
    }

    #[test]
    fn kinds_have_the_names_of_json() {
        for kind in [
            ChildKind::ClientBackend,
            ChildKind::AutovacuumWorker,
            ChildKind::BackgroundWorker,
            ChildKind::WalWriter,
            ChildKind::SlotSyncWorker,
            ChildKind::IoWorker,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn origins() {
        let key = |family: i32, address: [u8; 16]| ClientKey {
            tgid: 1,
            family: u32::try_from(family).unwrap(),
            uid: 26,
            address,
        };
        let four = [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        let same = origin(&key(libc::AF_INET, four));
        assert_eq!(
            same,
            Some(Origin::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))))
        );
        assert_eq!(origin(&key(libc::AF_INET6, mapped)), same);
        assert_eq!(origin(&key(libc::AF_UNIX, [0; 16])), Some(Origin::Uid(26)));
        assert_eq!(origin(&key(0, [0; 16])), Some(Origin::Nobody));
        assert_eq!(origin(&key(libc::AF_NETLINK, [0; 16])), None);
    }

    fn household(helpers: &[&str]) -> Household {
        Household {
            helpers: helpers.iter().map(|it| (*it).to_owned()).collect(),
            untitled: 0,
            version: Some(15),
            autovacuum: Some(true),
        }
    }

    #[test]
    fn what_a_server_lacks() {
        let all = [
            "checkpointer",
            "background writer",
            "walwriter",
            "autovacuum launcher",
        ];
        assert_eq!(missing(&household(&all)), None);
        for (at, gone) in all.iter().enumerate() {
            let mut rest = all.to_vec();
            rest.remove(at);
            assert_eq!(missing(&household(&rest)), Some(*gone));
        }
        assert_eq!(missing(&household(&["logger"])), Some("startup"));
        // A standby writes no WAL of its own.
        let standby = ["startup", "checkpointer", "background writer"];
        assert_eq!(missing(&household(&standby)), None);
        assert_eq!(missing(&household(&standby[..2])), Some(standby[2]));
        // Until 14 they start later.
        let old = Household {
            version: Some(14),
            ..household(&standby[..1])
        };
        assert_eq!(missing(&old), None);
    }

    #[test]
    fn what_cannot_be_told_is_not_told() {
        let young = Household {
            untitled: 1,
            ..household(&["checkpointer"])
        };
        assert_eq!(missing(&young), None);
        for autovacuum in [None, Some(false)] {
            let without = Household {
                autovacuum,
                ..household(&["checkpointer", "background writer", "walwriter"])
            };
            assert_eq!(missing(&without), None);
        }
    }
}
