//! More than one limit at once: which of them the kernel asks first, and many refusals by many.

use std::{fs, io::Read as _, os::unix::net::UnixStream, process::Child, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    causes::{end_all, set_deadline, take_all_pids},
    fixtures::numbers,
    limits::{
        self, Cgroups, Restored, meminfo, number, set_sysctl, tasks_of_user_of, widen_admin_reserve,
    },
    scenarios::{EAGAIN, ENOMEM, expect_eq, tasks_now},
    server::{PATIENCE, RunningClient, SOCKET, Server, wait_for},
    tracer::{Tracer, is_tracepoint},
};

/// A limit that is set to what is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    Nproc,
    ThreadsMax,
    Pids,
    Deadline,
    PidMax,
}

impl Full {
    const fn cause(self) -> &'static str {
        match self {
            Self::Nproc => "rlimit_nproc",
            Self::ThreadsMax => "threads_max",
            Self::Pids => "pids_cgroup_max",
            Self::Deadline => "sched_deadline_fork",
            Self::PidMax => "pid_space_exhausted",
        }
    }

    /// What it is called among others.
    const fn what(self) -> &'static str {
        match self {
            Self::Nproc => "RLIMIT_NPROC",
            Self::ThreadsMax => "kernel.threads-max",
            Self::Pids => "pids cgroup",
            Self::Deadline => "deadline scheduling",
            Self::PidMax => "kernel.pid_max",
        }
    }

    /// Then nobody can fork, this program included.
    const fn is_of_the_host(self) -> bool {
        matches!(self, Self::ThreadsMax | Self::PidMax)
    }
}

/// Two limits that give the same error, the one first that the kernel asks first (kernel/fork.c
/// `copy_process`, 5.10 to 7.2).
const PAIRS: [(Full, Full); 5] = [
    (Full::Nproc, Full::Pids),
    (Full::Nproc, Full::ThreadsMax),
    (Full::ThreadsMax, Full::Pids),
    (Full::Deadline, Full::Pids),
    (Full::PidMax, Full::Pids),
];

/// What the limits are set on, and how they were.
struct Limits<'a> {
    server: &'a Server,
    cgroups: &'a Cgroups,
    threads_max: Restored,
    pid_max: Restored,
    taken: Vec<Child>,
}

impl Limits<'_> {
    fn close(&mut self, full: Full) -> Result<()> {
        let pid = self.server.pid;
        match full {
            Full::Nproc => limits::set_nproc(pid, tasks_of_user_of(pid)?.1),
            // Below what there are: threads of the kernel end at any time, and would make room.
            Full::ThreadsMax => set_sysctl("kernel/threads-max", tasks_now()?.saturating_sub(8)),
            Full::Pids => {
                let inner = &self.cgroups.inner;
                let tasks = number(inner.join("pids.current"))?;
                Ok(fs::write(inner.join("pids.max"), tasks.to_string())?)
            }
            Full::Deadline => set_deadline(pid, true),
            Full::PidMax => take_all_pids(&mut self.taken),
        }
    }

    fn open(&mut self, full: Full) -> Result<()> {
        match full {
            Full::Nproc => limits::set_nproc(self.server.pid, 4096),
            Full::ThreadsMax => self.threads_max.restore(),
            Full::Pids => self.cgroups.open(),
            Full::Deadline => set_deadline(self.server.pid, false),
            Full::PidMax => {
                self.pid_max.restore()?;
                end_all(&mut self.taken);
                Ok(())
            }
        }
    }

    fn open_all(&mut self) -> Result<()> {
        [
            Full::PidMax,
            Full::ThreadsMax,
            Full::Nproc,
            Full::Deadline,
            Full::Pids,
        ]
        .into_iter()
        .try_for_each(|full| self.open(full))
    }
}

/// The refusal of a client that runs already.
fn refused(server: &Server, tracer: &Tracer, client: &mut RunningClient) -> Result<Value> {
    let (said, logged) = (tracer.refusals(), server.refused_in_log(EAGAIN));
    client.reconnect()?;
    // A client of PostgreSQL 13 tries twice.
    let count = wait_for("the server refuses", || {
        let count = server.refused_in_log(EAGAIN) - logged;
        (count > 0).then_some(count)
    })?;
    wait_for("pgfork-trace reports it", || {
        (tracer.refusals() >= said + count).then_some(())
    })?;
    tracer
        .lines()
        .into_iter()
        .filter(|line| line["type"] == "refusal")
        .nth(said)
        .context("no refusal")
}

/// Both limits of a pair are full: the kernel's order decides, the other one is named as well, and
/// refuses when the first is out of the way.
pub(crate) fn two_causes(server: &mut Server, method: &str) -> Result<()> {
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let mut limits = Limits {
        server,
        cgroups: &cgroups,
        threads_max: Restored::remember("kernel/threads-max")?,
        pid_max: Restored::remember("kernel/pid_max")?,
        taken: Vec::new(),
    };
    PAIRS.into_iter().try_for_each(|(first, second)| {
        // What refuses next is read seldom: a tracer for each.
        let tracer = Tracer::start("two_causes", method, &[])?;
        let outcome = pair(&mut limits, &tracer, method, first, second);
        limits.open_all()?;
        outcome.with_context(|| format!("{first:?} and {second:?}"))?;
        let said = tracer.stop()?;
        expect_eq!(said.only("end")?["accounted"], true, "accounted");
        Ok(())
    })?;
    server.settle()?;
    server.connect()
}

fn pair(
    limits: &mut Limits,
    tracer: &Tracer,
    method: &str,
    first: Full,
    second: Full,
) -> Result<()> {
    let server = limits.server;
    server.settle()?;
    let mut clients = [RunningClient::start()?, RunningClient::start()?];
    server.wait_for_backends(2)?;
    let mut both = [first, second];
    both.sort_unstable_by_key(|full| full.is_of_the_host());
    for full in both {
        limits.close(full)?;
    }
    let refusal = refused(server, tracer, &mut clients[0])?;
    if is_tracepoint(method) && first == Full::PidMax {
        // Which numbers are taken cannot be read afterwards: it may have been either.
        expect_eq!(refusal["cause"], "unknown", "cause");
        for full in [first, second] {
            ensure!(
                names(&refusal, "also_possible").contains(&full.what()),
                "{full:?} is not named: {refusal}"
            );
        }
    } else {
        expect_eq!(refusal["cause"], first.cause(), "the kernel's order");
        named(&refusal, second).with_context(|| refusal.to_string())?;
    }
    limits.open(first)?;
    // What refused its new connection took its old one from the client.
    server.wait_for_backends(1)?;
    limits.close(second)?;
    // Facts of the host are read anew after 200 ms.
    thread::sleep(Duration::from_millis(500));
    let refusal = refused(server, tracer, &mut clients[1])?;
    expect_eq!(refusal["cause"], second.cause(), "the second one");
    for list in ["also_full", "also_possible"] {
        ensure!(
            !names(&refusal, list).contains(&first.what()),
            "{first:?} is not full any more, and in {list}: {refusal}"
        );
    }
    Ok(())
}

fn names<'a>(refusal: &'a Value, list: &str) -> Vec<&'a str> {
    let list = refusal[list].as_array().into_iter().flatten();
    list.filter_map(|it| it["what"].as_str()).collect()
}

/// The one behind the limit that refused, and what refuses next.
fn named(refusal: &Value, second: Full) -> Result<()> {
    numbers::also(refusal, second.what())?;
    let next = &refusal["next_limit"];
    if refusal["cause"] == Full::Deadline.cause() {
        expect_eq!(*next, Value::Null, "no limit was reached");
        return Ok(());
    }
    expect_eq!(next["limit"], second.cause(), "the next limit");
    // Its client may have ended by now, with its old connection.
    ensure!(next["backends"].as_u64() <= Some(2), "room for {next}");
    Ok(())
}

/// Clients at a time, and connections that each tries.
const CLIENTS: usize = 4;
const EACH: usize = 5;

/// Connections from several threads; each is refused, and reported while the limit still stands.
/// Returns how many the server says.
fn refuse_many(server: &Server, tracer: &Tracer, strerror: &str) -> Result<usize> {
    let said = tracer.refusals();
    let before = server.refused_in_log(strerror);
    let refused = || -> Result<()> {
        for _ in 0..EACH {
            let mut client = UnixStream::connect(SOCKET)?;
            client.set_read_timeout(Some(PATIENCE))?;
            let mut answer = Vec::new();
            // Until the server has hung up.
            client.read_to_end(&mut answer)?;
            let answer = String::from_utf8_lossy(&answer);
            ensure!(answer.contains("could not fork"), "{answer}");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(refused)).collect();
        clients.into_iter().try_for_each(|client| {
            let ended = client.join();
            ended.map_err(|_| anyhow::anyhow!("a client panicked"))?
        })
    })?;
    let count = server.refused_in_log(strerror) - before;
    expect_eq!(count, CLIENTS * EACH, "refused in the server's log");
    wait_for("pgfork-trace reports all", || {
        (tracer.refusals() >= said + count).then_some(())
    })?;
    Ok(count)
}

/// Strict overcommit, with nothing left for who is not root.
fn without_promises(server: &Server, tracer: &Tracer, method: &str) -> Result<usize> {
    let _mode = Restored::remember("vm/overcommit_memory")?;
    // Setting the ratio is what resets overcommit_kbytes.
    let _ratio = Restored::remember("vm/overcommit_ratio")?;
    let _reserve = Restored::remember("vm/admin_reserve_kbytes")?;
    let left = widen_admin_reserve()?;
    set_sysctl(
        "vm/overcommit_kbytes",
        (meminfo("Committed_AS")? + left) / 1024,
    )?;
    set_sysctl("vm/overcommit_memory", 2)?;
    tracer.watches_strict(method)?;
    // What the tracer has read of the host serves for a fifth of a second.
    thread::sleep(Duration::from_millis(500));
    refuse_many(server, tracer, ENOMEM)
}

/// Three causes of two errors in one watch, each met by several clients at once: the totals are
/// exact, each by its cause.
pub(crate) fn storm_mixed(server: &mut Server, method: &str) -> Result<()> {
    let cgroups = Cgroups::make()?;
    server.enter(&cgroups.inner)?;
    let tracer = Tracer::start("storm_mixed", method, &[])?;
    let mut counts = [
        ("pids_cgroup_max", 0),
        ("rlimit_nproc", 0),
        ("commit_limit", 0),
    ];
    for _ in 0..2 {
        let tasks = number(cgroups.inner.join("pids.current"))?;
        fs::write(cgroups.inner.join("pids.max"), tasks.to_string())?;
        let pids = refuse_many(server, &tracer, EAGAIN);
        cgroups.open()?;
        let (_, own) = tasks_of_user_of(server.pid)?;
        limits::set_nproc(server.pid, own)?;
        let nproc = refuse_many(server, &tracer, EAGAIN);
        limits::set_nproc(server.pid, 4096)?;
        let commit = without_promises(server, &tracer, method);
        for ((_, count), more) in counts.iter_mut().zip([pids, nproc, commit]) {
            *count += more?;
        }
    }
    let all: usize = counts.iter().map(|(_, count)| count).sum();
    let said = tracer.stop()?;
    let totals = said.only("totals")?;
    expect_eq!(totals["refused"], all, "refused");
    let refusals = said.of("refusal");
    expect_eq!(refusals.len(), all, "JSON keeps every record");
    let by_cause = totals["refused_by_cause"].as_object();
    let causes = by_cause.map_or(0, serde_json::Map::len);
    expect_eq!(causes, counts.len(), "causes");
    for (cause, count) in counts {
        expect_eq!(totals["refused_by_cause"][cause], count, cause);
        let lines = refusals.iter().filter(|line| line["cause"] == cause);
        expect_eq!(lines.count(), count, cause);
    }
    expect_eq!(said.only("end")?["accounted"], true, "accounted");
    server.connect()
}
