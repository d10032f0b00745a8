//! Whose connection it was, as far as that has to be read from `/proc`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use pgfork_trace_common::Attempt;

use crate::{
    gather::text,
    host::{Pid, Root, process},
    postgres::{self, Kind, Title},
    verdict::client::{self, Child, ChildKind, Client, Household},
};

/// Titles are read anew after this time: a storm of refusals must not become a storm of reading.
const FRESH: Duration = Duration::from_secs(5);

/// Completes what the kernel side saw of clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    missing: HashMap<Pid, (Instant, Option<&'static str>)>,
}

impl Clients {
    /// The client of a refused fork, and what the child was to be.
    pub(super) fn of(
        &mut self,
        root: &Root,
        attempt: &Attempt,
        version: Option<&str>,
        now: Instant,
    ) -> (Option<Client>, Child) {
        let mut child = client::child(attempt);
        if child.kind == ChildKind::Worker {
            child.likely = self.missing(root, attempt.tgid, version, now);
        }
        (client::client(attempt).map(|it| named(root, it)), child)
    }

    /// Forgets a process that ended.
    pub(super) fn forget(&mut self, pid: Pid) {
        self.missing.remove(&pid);
    }

    fn missing(
        &mut self,
        root: &Root,
        pid: Pid,
        version: Option<&str>,
        now: Instant,
    ) -> Option<&'static str> {
        if let Some((at, missing)) = self.missing.get(&pid)
            && now.duration_since(*at) < FRESH
        {
            return *missing;
        }
        let missing = client::missing(&household(root, pid, version));
        self.missing.insert(pid, (now, missing));
        missing
    }
}

/// The name that a local client has right now: it waits for its answer.
fn named(root: &Root, mut client: Client) -> Client {
    if let Client::Unix {
        pid: Some(pid),
        comm,
        ..
    } = &mut client
    {
        let stat = process::stat(root, *pid).ok().flatten();
        *comm = stat.map(|stat| text(&stat.comm));
    }
    client
}

/// The children of a postmaster, by their titles.
fn household(root: &Root, pid: Pid, version: Option<&str>) -> Household {
    let settings = postgres::settings(root, pid);
    let mut found = Household {
        version: version.and_then(|version| version.split('.').next()?.parse().ok()),
        autovacuum: settings.switch("autovacuum", true),
        ..Household::default()
    };
    let titles: Vec<Option<String>> = process::children(root, pid)
        .into_iter()
        .map(|child| {
            let arguments = process::cmdline(root, child).ok()?;
            Some(text(arguments.first()?))
        })
        .collect();
    let named = settings.text("cluster_name").map(str::to_owned);
    let cluster = named.or_else(|| {
        let mut titles = titles.iter().flatten();
        titles.find_map(|title| Title::cluster_in(title).map(str::to_owned))
    });
    for title in titles {
        match title.and_then(|title| Title::parse(&title, cluster.as_deref())) {
            Some(Title {
                kind: Kind::Helper(name),
            }) => found.helpers.push(name),
            Some(_) => {}
            None => found.untitled += 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use pgfork_trace_common::valid;

    use super::*;
    use crate::host::fake::{FakeProcess, FakeRoot};

    fn child(fake: &FakeRoot, pid: Pid, title: &str) {
        fake.process(&FakeProcess {
            parent: 700,
            ..FakeProcess::new(pid)
        });
        fake.write(format!("proc/{pid}/cmdline"), title);
    }

    fn server() -> FakeRoot {
        let fake = FakeRoot::new();
        fake.process(&FakeProcess::new(700));
        fake.write("proc/700/cmdline", "/usr/bin/postgres\0-D\0/pg\0");
        child(&fake, 701, "postgres: a: checkpointer ");
        child(&fake, 702, "postgres: a: background writer ");
        child(&fake, 703, "postgres: a: walwriter ");
        fake
    }

    fn attempt(valid: u32) -> Attempt {
        // SAFETY: an Attempt is made of integers only.
        let mut attempt: Attempt = unsafe { std::mem::zeroed() };
        attempt.tgid = 700;
        attempt.valid = valid;
        attempt
    }

    #[test]
    fn what_is_missing_is_likely_and_read_once_in_a_while() {
        let fake = server();
        fake.remove("proc/702");
        let mut clients = Clients::default();
        let now = Instant::now();
        let mut likely = |after: Duration| {
            let of = clients.of(
                fake.root(),
                &attempt(valid::CLIENT),
                Some("15"),
                now + after,
            );
            assert_eq!(of.0, None);
            of.1.likely
        };
        assert_eq!(likely(Duration::ZERO), Some("background writer"));
        child(&fake, 702, "postgres: a: background writer ");
        assert_eq!(
            likely(FRESH - Duration::from_millis(1)),
            Some("background writer")
        );
        assert_eq!(likely(FRESH), None);
    }

    #[test]
    fn nothing_is_likely_where_a_client_was_seen_or_nothing_was() {
        let fake = FakeRoot::new();
        let mut clients = Clients::default();
        let (client, child) = clients.of(fake.root(), &attempt(0), Some("15"), Instant::now());
        assert_eq!(
            (client, child.kind, child.likely),
            (None, ChildKind::Unknown, None)
        );
    }

    #[test]
    fn a_local_client_has_a_name_while_it_lives() {
        let fake = FakeRoot::new();
        fake.process(&FakeProcess {
            comm: b"psql\xff".to_vec(),
            ..FakeProcess::new(77)
        });
        let mut attempt = attempt(valid::CLIENT);
        attempt.client.family = u16::try_from(libc::AF_UNIX).unwrap();
        attempt.client.peer_uid = 1000;
        let mut name = |pid| {
            attempt.client.peer_pid = pid;
            let of = Clients::default().of(fake.root(), &attempt, None, Instant::now());
            match of.0 {
                Some(Client::Unix {
                    pid,
                    uid: 1000,
                    comm,
                }) => (pid, comm),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(name(77), (Some(77), Some("psql\\xff".to_owned())));
        assert_eq!(name(78), (Some(78), None));
        // Outside of every pid namespace that this host shows.
        assert_eq!(name(0), (None, None));
    }
}
