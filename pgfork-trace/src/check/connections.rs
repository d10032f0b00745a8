//! Who is connected, from process titles: a refused fork means no new SQL session.

use std::collections::HashMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    gather::text,
    host::{
        Pid, Root,
        census::{Census, Seen},
        process::ProcessId,
        sockets,
    },
    postgres::{Kind, Postmaster},
};

use super::{
    ages::{self, Arrivals, StateAge},
    server::Child,
};

/// Names listed of each kind.
const TOP: usize = 10;
/// From this many connections on, a pattern is a pattern.
const PATTERN: u64 = 20;

/// How many have one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Tally {
    /// The name, as the server or a client chose it.
    pub name: String,
    /// How many.
    pub count: u64,
}

/// Connections of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Connections {
    /// Backends that serve clients.
    pub clients: u64,
    /// Of these: waiting for their client, outside of a transaction.
    pub idle: u64,
    /// Of these: waiting for their client inside of a transaction.
    pub idle_in_transaction: u64,
    /// Of these: waiting for a lock.
    pub waiting: u64,
    /// Of these: not yet let in.
    pub starting: u64,
    /// Titles do not say what backends do (update_process_title is off).
    pub activity_hidden: bool,
    /// How long clients have been in their state, most clients first.
    pub states: Vec<StateAge>,
    /// With `--watch`: connections since the look before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrivals: Option<Arrivals>,
    /// Processes that send the log to standbys and backups.
    pub wal_senders: u64,
    /// Age of the oldest connection, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_s: Option<u64>,
    /// Median age of the connections, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub median_age_s: Option<u64>,
    /// By activity, most first; at most ten.
    pub by_activity: Vec<Tally>,
    /// By address of the client, most first; at most ten.
    pub by_address: Vec<Tally>,
    /// By user, most first; at most ten.
    pub by_user: Vec<Tally>,
    /// By database, most first; at most ten.
    pub by_database: Vec<Tally>,
    /// Processes of the server's own, by job.
    pub helpers: Vec<Tally>,
    /// Children that ended and were not reaped; each still counts as a task.
    pub zombies: u64,
    /// Processes that children started, and those that these started: archive and restore commands,
    /// COPY FROM/TO PROGRAM. By the child's job and the name of the process.
    pub started_by_children: Vec<Tally>,
    /// The same from the kernel's side: connections that no backend serves yet too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<SocketCounts>,
    /// When the numbers look like clients without a pooler: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooler: Option<String>,
}

/// Sockets at the server's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SocketCounts {
    /// Established TCP connections.
    pub tcp: u64,
    /// TCP connections whose client is gone, or that are being closed.
    pub tcp_closing: u64,
    /// TCP connections that the postmaster has not accepted yet.
    pub tcp_to_accept: u64,
    /// Connections to its Unix sockets, accepted or not.
    pub unix: u64,
    /// Of these: the postmaster has not accepted them yet.
    pub unix_to_accept: u64,
    /// TCP connections by address of the client, most first; at most ten.
    pub by_address: Vec<Tally>,
}

/// Counts sockets; without a port or permission there are none.
pub(super) fn count_sockets(root: &Root, postmaster: &Postmaster) -> Option<SocketCounts> {
    let found = sockets::sockets(root, postmaster.pid, postmaster.port?)
        .ok()
        .flatten()?;
    let mut addresses = Tallies::default();
    for (address, number) in &found.by_address {
        addresses.0.insert(address.to_string(), *number);
    }
    Some(SocketCounts {
        tcp: found.established,
        tcp_closing: found.closing,
        tcp_to_accept: found.to_accept,
        unix: found.unix,
        unix_to_accept: found.unix_to_accept,
        by_address: addresses.top(),
    })
}

/// Counts them.
pub(super) fn count(
    census: &Census,
    postmaster: &Postmaster,
    children: &[Child<'_>],
    uptime: Option<Duration>,
) -> Connections {
    let mut found = Connections::default();
    let mut activity = Tallies::default();
    let (mut address, mut user, mut database) = <(Tallies, Tallies, Tallies)>::default();
    let (mut helpers, mut started) = <(Tallies, Tallies)>::default();
    let mut ages = Vec::new();
    let mut parents = HashMap::<Pid, String>::new();
    for child in children {
        if child.seen.state == 'Z' {
            found.zombies += 1;
            continue;
        }
        let Some(title) = &child.title else {
            helpers.add("starting");
            continue;
        };
        match &title.kind {
            Kind::Client(client) => {
                found.clients += 1;
                found.tell(&client.activity);
                activity.add(&client.activity);
                address.add(&client.host);
                user.add(&client.user);
                database.add(&client.database);
                let id = ProcessId {
                    pid: child.seen.pid,
                    start_ticks: child.seen.start_ticks,
                };
                ages.extend(uptime.map(|uptime| id.age(uptime).as_secs()));
                parents.insert(child.seen.pid, "client backend".to_owned());
            }
            Kind::WalSender(_) => {
                found.wal_senders += 1;
                parents.insert(child.seen.pid, "wal sender".to_owned());
            }
            Kind::Helper(job) => {
                helpers.add(job);
                parents.insert(child.seen.pid, job.clone());
            }
            Kind::Other => helpers.add("unnamed"),
        }
    }
    for (job, comm) in below(census, postmaster.pid, &parents) {
        started.add(&format!("{job} ({comm})"));
    }
    ages.sort_unstable();
    found.oldest_s = ages.last().copied();
    found.median_age_s = ages.get(ages.len() / 2).copied();
    found.activity_hidden = found.clients > 0 && activity.0.keys().all(String::is_empty);
    if !found.activity_hidden {
        found.by_activity = activity.top();
    }
    found.by_address = address.top();
    found.by_user = user.top();
    found.by_database = database.top();
    found.helpers = helpers.top();
    found.started_by_children = started.top();
    found.pooler = found.pooler_hint();
    found
}

/// Everything below the children in `jobs`, however deep, with the job of the child and its own name.
fn below<'j>(
    census: &Census,
    postmaster: Pid,
    jobs: &'j HashMap<Pid, String>,
) -> Vec<(&'j str, String)> {
    let mut of_parent = HashMap::<Pid, Vec<&Seen>>::new();
    for seen in &census.processes {
        if seen.parent != postmaster {
            of_parent.entry(seen.parent).or_default().push(seen);
        }
    }
    let mut found = Vec::new();
    let mut rest: Vec<(Pid, &str)> = jobs.iter().map(|(pid, job)| (*pid, job.as_str())).collect();
    while let Some((pid, job)) = rest.pop() {
        // Taken out, so that numbers that point at each other end.
        for seen in of_parent.remove(&pid).unwrap_or_default() {
            found.push((job, text(&seen.comm)));
            rest.push((seen.pid, job));
        }
    }
    found
}

impl Connections {
    fn tell(&mut self, activity: &str) {
        match ages::state(activity) {
            "idle" => self.idle += 1,
            "starting" => self.starting += 1,
            "idle in transaction" => self.idle_in_transaction += 1,
            "waiting" => self.waiting += 1,
            _ => {}
        }
    }

    /// Most connections do nothing: a pooler would serve the same clients with fewer.
    fn pooler_hint(&self) -> Option<String> {
        let busy = self.clients - self.idle;
        if self.clients < PATTERN || self.activity_hidden || self.idle * 10 < self.clients * 6 {
            return None;
        }
        let first = self.by_address.first()?;
        Some(format!(
            "{} of {} connections are idle, {} of all come from {}: a pooler in front could serve the same clients with about {} backends",
            self.idle,
            self.clients,
            first.count,
            first.name,
            (busy * 2).max(10).min(self.clients)
        ))
    }
}

#[derive(Default)]
struct Tallies(HashMap<String, u64>);

impl Tallies {
    fn add(&mut self, name: &str) {
        if let Some(count) = self.0.get_mut(name) {
            *count += 1;
        } else {
            self.0.insert(name.to_owned(), 1);
        }
    }

    fn top(self) -> Vec<Tally> {
        let mut sorted: Vec<Tally> = self
            .0
            .into_iter()
            .map(|(name, count)| Tally { name, count })
            .collect();
        sorted.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        sorted.truncate(TOP);
        sorted
    }
}
