//! How long clients have been in the state that their titles tell. A title has no time: of TCP
//! connections the kernel knows when data last went each way; of others, that a backend has not
//! woken up since an earlier look.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

use super::server::Child;
use crate::host::{
    Pid,
    process::ProcessId,
    sock_diag::{Peer, Silence},
};
use crate::postgres::{Client, Kind};

/// Longer than this inside of a transaction without doing anything is a fault of the client.
const LONG: Duration = Duration::from_secs(300);

/// What a client backend does, in words of one kind.
pub(super) fn state(activity: &str) -> &'static str {
    match activity {
        "" => "unknown",
        "idle" => "idle",
        "authentication" | "initializing" | "startup" => "starting",
        _ if activity.starts_with("idle in transaction") => "idle in transaction",
        _ if activity.ends_with(" waiting") => "waiting",
        _ => "active",
    }
}

/// How long clients have been in one state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct StateAge {
    /// `idle`, `idle in transaction`, `waiting`, `starting`, `active`, or `unknown`.
    pub state: String,
    /// Clients in it.
    pub clients: u64,
    /// Of these, how many of which the time is known.
    pub known: u64,
    /// Of these, how many of which only the least is known: they were seen in it for so long.
    pub at_least: u64,
    /// Longest, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_s: Option<u64>,
    /// Median, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub median_s: Option<u64>,
    /// How many for more than 5 minutes.
    pub over_5min: u64,
}

/// Connections made between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Arrivals {
    /// Backends that are there now and were not at the look before. Those that came and went
    /// meanwhile are not among them.
    pub backends: u64,
    /// Time between the looks, in milliseconds.
    pub over_ms: u64,
}

/// What earlier looks saw. Holds the clients of the last look only.
#[derive(Debug, Default)]
pub struct Memory {
    servers: HashMap<ProcessId, Earlier>,
}

#[derive(Debug)]
struct Earlier {
    at: Instant,
    clients: HashMap<ProcessId, Seen>,
}

#[derive(Debug)]
struct Seen {
    activity: String,
    switches: Option<u64>,
    since: Instant,
}

/// What is told about the clients of one server.
#[derive(Debug, Default)]
pub(super) struct Ages {
    pub(super) states: Vec<StateAge>,
    pub(super) arrivals: Option<Arrivals>,
}

impl Memory {
    /// Forgets servers that are gone.
    pub(super) fn keep(&mut self, pids: &[Pid]) {
        self.servers.retain(|server, _| pids.contains(&server.pid));
    }

    /// Ages at `now`; `silences` are of TCP connections, where the kernel tells.
    pub(super) fn look(
        &mut self,
        postmaster: ProcessId,
        children: &[Child<'_>],
        silences: Option<&HashMap<Peer, Silence>>,
        now: Instant,
    ) -> Ages {
        let mut before = self.servers.remove(&postmaster);
        let mut clients = HashMap::new();
        let mut states: HashMap<&'static str, (StateAge, Vec<Duration>)> = HashMap::new();
        let mut new = 0;
        for child in children {
            let Some(Kind::Client(client)) = child.title.as_ref().map(|title| &title.kind) else {
                continue;
            };
            let id = ProcessId {
                pid: child.seen.pid,
                start_ticks: child.seen.start_ticks,
            };
            let earlier = before.as_mut().and_then(|it| it.clients.remove(&id));
            new += u64::from(earlier.is_none());
            let switches = child.seen.switches;
            // Asleep all the time: the state cannot have changed and come back meanwhile.
            let since = earlier
                .filter(|it| {
                    it.activity == client.activity && it.switches == switches && switches.is_some()
                })
                .map(|it| it.since);
            let state = state(&client.activity);
            let (told, ages) = states.entry(state).or_default();
            told.clients += 1;
            let known = silences.and_then(|all| exact(state, client, all));
            let least = since.map(|since| now.saturating_duration_since(since));
            told.at_least += u64::from(known.is_none() && least.is_some());
            ages.extend(known.or(least));
            let seen = Seen {
                activity: client.activity.clone(),
                switches,
                since: since.unwrap_or(now),
            };
            clients.insert(id, seen);
        }
        let arrivals = before.map(|before| Arrivals {
            backends: new,
            over_ms: u64::try_from(now.saturating_duration_since(before.at).as_millis())
                .unwrap_or(u64::MAX),
        });
        self.servers
            .insert(postmaster, Earlier { at: now, clients });
        Ages {
            states: summed(states),
            arrivals,
        }
    }
}

fn summed(states: HashMap<&'static str, (StateAge, Vec<Duration>)>) -> Vec<StateAge> {
    let mut all: Vec<StateAge> = states
        .into_iter()
        .map(|(state, (told, mut ages))| {
            ages.sort_unstable();
            StateAge {
                state: state.to_owned(),
                known: ages.len() as u64,
                oldest_s: ages.last().map(Duration::as_secs),
                median_s: ages.get(ages.len() / 2).map(Duration::as_secs),
                over_5min: ages.iter().filter(|age| **age > LONG).count() as u64,
                ..told
            }
        })
        .collect();
    all.sort_unstable_by(|a, b| {
        b.clients
            .cmp(&a.clients)
            .then_with(|| a.state.cmp(&b.state))
    });
    all
}

/// A backend that waits for its client has sent its last answer when that began, one that works
/// has got its order.
fn exact(state: &str, client: &Client, silences: &HashMap<Peer, Silence>) -> Option<Duration> {
    let peer = (client.host.parse().ok()?, client.port?);
    let silence = silences.get(&peer)?;
    match state {
        "idle" | "idle in transaction" => Some(silence.sent.min(silence.received)),
        "active" | "waiting" => Some(silence.received),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::census;
    use crate::postgres::Title;

    fn seen(pid: Pid, switches: u64) -> census::Seen {
        census::Seen {
            pid,
            parent: 7,
            comm: "postgres".into(),
            state: 'S',
            kernel_thread: false,
            start_ticks: 100,
            uid: Some(26),
            threads: 1,
            switches: Some(switches),
        }
    }

    fn child<'h>(seen: &'h census::Seen, title: &str) -> Child<'h> {
        Child {
            seen,
            title: Title::parse(title, None),
        }
    }

    const POSTMASTER: ProcessId = ProcessId {
        pid: 7,
        start_ticks: 1,
    };

    fn of<'a>(ages: &'a Ages, state: &str) -> &'a StateAge {
        ages.states.iter().find(|it| it.state == state).unwrap()
    }

    #[test]
    fn tcp_connections_tell_exactly() {
        let silence = |sent, received| Silence {
            sent: Duration::from_secs(sent),
            received: Duration::from_secs(received),
        };
        let silences = HashMap::from([
            (("10.0.0.1".parse().unwrap(), 1), silence(400, 401)),
            (("10.0.0.1".parse().unwrap(), 2), silence(20, 21)),
            (("10.0.0.1".parse().unwrap(), 3), silence(0, 90)),
        ]);
        let all = [seen(8, 0), seen(9, 0), seen(10, 0), seen(11, 0)];
        let children = [
            child(&all[0], "postgres: app db 10.0.0.1(1) idle in transaction"),
            child(&all[1], "postgres: app db 10.0.0.1(2) idle in transaction"),
            child(&all[2], "postgres: app db 10.0.0.1(3) SELECT"),
            // Another namespace's, or a host name: nothing is told of it.
            child(&all[3], "postgres: app db 10.0.0.9(1) SELECT"),
        ];
        let mut memory = Memory::default();
        let ages = memory.look(POSTMASTER, &children, Some(&silences), Instant::now());
        let idle = of(&ages, "idle in transaction");
        assert_eq!((idle.clients, idle.known, idle.at_least), (2, 2, 0));
        assert_eq!((idle.oldest_s, idle.over_5min), (Some(400), 1));
        let active = of(&ages, "active");
        assert_eq!((active.clients, active.known), (2, 1));
        assert_eq!(active.median_s, Some(90));
        assert_eq!(ages.arrivals, None);
    }

    #[test]
    fn a_backend_that_never_woke_up_was_idle_at_least_so_long() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut memory = Memory::default();
        let title = "postgres: app db [local] idle";
        let first = [seen(8, 5), seen(9, 5)];
        memory.look(
            POSTMASTER,
            &first.each_ref().map(|it| child(it, title)),
            None,
            start,
        );
        // 9 worked meanwhile, and is idle again; 10 is new.
        let then = [seen(8, 5), seen(9, 6), seen(10, 1)];
        let ages = memory.look(
            POSTMASTER,
            &then.each_ref().map(|it| child(it, title)),
            None,
            after(10),
        );
        let idle = of(&ages, "idle");
        assert_eq!((idle.clients, idle.known, idle.at_least), (3, 1, 1));
        assert_eq!(idle.oldest_s, Some(10));
        let arrivals = ages.arrivals.unwrap();
        assert_eq!((arrivals.backends, arrivals.over_ms), (1, 10_000));
        let ages = memory.look(
            POSTMASTER,
            &then.each_ref().map(|it| child(it, title)),
            None,
            after(400),
        );
        let idle = of(&ages, "idle");
        assert_eq!(
            (idle.known, idle.oldest_s, idle.over_5min),
            (3, Some(400), 3)
        );
        memory.keep(&[]);
        assert!(memory.servers.is_empty());
    }
}
