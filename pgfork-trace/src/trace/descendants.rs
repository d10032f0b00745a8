//! Processes below the watched ones: what they are, read from `/proc` when something happens.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use pgfork_trace_common::MAX_GENERATIONS;

use crate::{
    gather::text,
    host::{Pid, Root, process},
    output::line::{self, WatchedKind},
    postgres::{self, Role, Title},
};

/// The name of a cluster is looked for again after this time, while it is not known.
const FRESH: Duration = Duration::from_secs(5);
/// How a title begins; anything else in the arguments of a program may be a secret.
const TITLE: &str = "postgres: ";

/// Knows the `cluster_name` of each postmaster: without it a title cannot be taken apart.
#[derive(Debug, Default)]
pub(super) struct Descendants {
    clusters: HashMap<Pid, (Instant, Option<String>)>,
}

impl Descendants {
    /// A process that belongs to a watched one, as output shows it.
    pub(super) fn process(
        &mut self,
        root: &Root,
        ids: (Pid, Pid),
        comm: Option<String>,
        watched: &line::Postmaster,
        now: Instant,
    ) -> line::Process {
        let (pid, tid) = ids;
        let mut shown = line::Process {
            pid,
            tid,
            comm,
            ..line::Process::default()
        };
        if watched.kind != WatchedKind::Postmaster {
            return shown;
        }
        if pid == watched.pid {
            shown.role = Some(Role::Postmaster);
            return shown;
        }
        let Some(titles) = titles(root, pid, watched.pid) else {
            return shown;
        };
        let cluster = self.cluster(root, watched.pid, now);
        let described = postgres::describe(&titles, cluster.as_deref());
        shown.title = titles
            .into_iter()
            .next()
            .flatten()
            .filter(|title| title.starts_with(TITLE) && described.role != Role::Program);
        (shown.role, shown.job) = (Some(described.role), described.job);
        shown
    }

    /// Forgets a postmaster that ended.
    pub(super) fn forget(&mut self, pid: Pid) {
        self.clusters.remove(&pid);
    }

    fn cluster(&mut self, root: &Root, postmaster: Pid, now: Instant) -> Option<String> {
        if let Some((at, cluster)) = self.clusters.get(&postmaster)
            && (cluster.is_some() || now.duration_since(*at) < FRESH)
        {
            return cluster.clone();
        }
        let named = postgres::settings(root, postmaster)
            .text("cluster_name")
            .map(str::to_owned);
        let cluster = named.or_else(|| {
            process::children(root, postmaster)
                .into_iter()
                .filter_map(|child| first_argument(root, child))
                .find_map(|title| Title::cluster_in(&title).map(str::to_owned))
        });
        self.clusters.insert(postmaster, (now, cluster.clone()));
        cluster
    }
}

/// First arguments of `pid` and of those above it, up to the child of `postmaster`; `None` when it
/// is gone, or does not descend from there any more.
fn titles(root: &Root, pid: Pid, postmaster: Pid) -> Option<Vec<Option<String>>> {
    let mut titles = Vec::new();
    let mut current = pid;
    for _ in 0..=MAX_GENERATIONS {
        titles.push(first_argument(root, current));
        current = process::stat(root, current).ok().flatten()?.parent;
        if current == postmaster {
            return Some(titles);
        }
    }
    None
}

fn first_argument(root: &Root, pid: Pid) -> Option<String> {
    let arguments = process::cmdline(root, pid).ok()?;
    Some(text(arguments.first()?).trim_end().to_owned())
}

/// The nearest of the processes above `pid`, itself included, that `is_watched` knows.
pub(super) fn watched_above(
    root: &Root,
    pid: Pid,
    is_watched: impl Fn(Pid) -> bool,
) -> Option<Pid> {
    let mut current = pid;
    for _ in 0..=MAX_GENERATIONS {
        if is_watched(current) {
            return Some(current);
        }
        current = process::stat(root, current).ok().flatten()?.parent;
    }
    None
}

/// A name as the kernel holds it; `None` when it was not recorded.
pub(super) fn comm(bytes: &[u8; 16]) -> Option<String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    (end > 0).then(|| text(OsStr::from_bytes(&bytes[..end])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{FakeProcess, FakeRoot};

    fn fake() -> FakeRoot {
        let fake = FakeRoot::new();
        let add = |pid, parent, arguments: &'static [&'static str]| {
            fake.process(&FakeProcess {
                parent,
                ..FakeProcess::new(pid)
            });
            fake.write(format!("proc/{pid}/cmdline"), arguments.join("\0"));
        };
        add(10, 1, &["/usr/bin/postgres", "-D", "/data"]);
        add(11, 10, &["postgres: 15/main: checkpointer "]);
        add(12, 10, &["postgres: 15/main: archiver archiving 01"]);
        add(13, 12, &["sh", "-c", "secret"]);
        add(14, 10, &["postgres: 15/main: app db [local] SELECT"]);
        add(15, 1, &["other"]);
        fake
    }

    #[test]
    fn what_a_descendant_is() {
        let fake = fake();
        let watched = line::Postmaster {
            pid: 10,
            ..line::Postmaster::default()
        };
        let mut descendants = Descendants::default();
        let now = Instant::now();
        let mut of = |pid| {
            let process = descendants.process(fake.root(), (pid, pid), None, &watched, now);
            (process.role, process.job, process.title)
        };
        assert_eq!(of(10).0, Some(Role::Postmaster));
        let (role, job, title) = of(12);
        assert_eq!(
            (role, job.as_deref()),
            (Some(Role::Helper), Some("archiver"))
        );
        assert!(title.unwrap().contains("archiving"));
        // The arguments of a program may hold a password.
        assert_eq!(
            of(13),
            (
                Some(Role::Program),
                Some("archive_command".to_owned()),
                None
            )
        );
        assert_eq!(of(14).0, Some(Role::ClientBackend));
        // Somebody else's, and gone.
        assert_eq!(of(15), (None, None, None));
        assert_eq!(of(99), (None, None, None));
    }

    #[test]
    fn the_watched_process_above() {
        let fake = fake();
        let above = |pid| watched_above(fake.root(), pid, |it| it == 10);
        assert_eq!(above(13), Some(10));
        assert_eq!(above(10), Some(10));
        assert_eq!(above(15), None);
        assert_eq!(above(99), None);
    }

    #[test]
    fn names() {
        assert_eq!(
            comm(b"postgres\0\0\0\0\0\0\0\0").as_deref(),
            Some("postgres")
        );
        assert_eq!(
            comm(b"0123456789abcdef").as_deref(),
            Some("0123456789abcdef")
        );
        assert_eq!(comm(&[0; 16]), None);
    }
}
