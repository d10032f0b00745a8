//! A real PostgreSQL on this host, refused in harmless ways: by limits of a
//! cgroup that the test made, and of the server's own process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests are tests"
)]

#[path = "native/check.rs"]
mod check;
mod support;

use std::{path::Path, process::Command};

use serde_json::Value;
use support::{
    Tracer,
    cgroup::Pids,
    server::{self, Options, Server, as_user},
    skipped, wait_for,
};

macro_rules! needs_server {
    () => {
        needs_root!();
        needs_tracing!();
        if server::binaries().is_none() {
            return skipped("no PostgreSQL is installed");
        }
    };
}

fn of<'a>(server: &'a Server) -> impl Fn(&Value) -> bool + 'a {
    let data_dir = server.data_dir();
    move |line| line["postmaster"]["data_dir"] == data_dir.to_str().unwrap()
}

/// The remedy's command, typed as it is printed.
#[track_caller]
fn apply(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// Closes a cgroup, is refused, applies the remedy, and is served.
#[track_caller]
fn refused_by_cgroup(pids: &Pids, closed: &Path, ancestor: u64) {
    let server = Server::running(Options {
        cgroup: Some(pids.leaf()),
        ..Options::default()
    });
    let mut tracer = Tracer::watching(&["--port", &server.port()]);
    let tasks = Pids::close(closed);
    server.refused();
    let refusal = tracer.line("refusal", of(&server));
    assert_eq!(refusal["cause"], "pids_cgroup_max", "{refusal:#}");
    assert_ne!(refusal["certainty"], "unknown");
    assert_eq!(refusal["errno"]["name"], "EAGAIN");
    assert_eq!(refusal["postmaster"]["pid"], server.pid());
    let scope = &refusal["scope"];
    assert_eq!(scope["kind"], "cgroup");
    assert_eq!(scope["ancestor"], ancestor);
    assert_eq!(scope["path"], pids.name_of(closed));
    let level = &refusal["evidence"]["pids"][usize::try_from(ancestor).unwrap()];
    assert_eq!(level["tasks"], tasks);
    assert_eq!(level["limit"], tasks);
    let remedies = refusal["remedy"].as_array().unwrap();
    assert_eq!(remedies.len(), 1, "{refusal:#}");
    apply(remedies[0]["command"].as_str().unwrap());
    server.connect().unwrap();
    let finished = tracer.stop();
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(finished.end("signal")["refusals"], 1);
    let totals = finished.of("totals");
    assert_eq!(totals[0]["refused"], 1);
    assert!(totals[0]["forks"].as_u64().unwrap() >= 2);
    assert_eq!(totals[0]["refused_by_cause"]["pids_cgroup_max"], 1);
}

#[test]
fn the_pids_limit_of_the_own_cgroup() {
    needs_server!();
    match Pids::new() {
        Ok(pids) => refused_by_cgroup(&pids, &pids.leaf(), 0),
        Err(why) => skipped(&why),
    }
}

#[test]
fn the_pids_limit_of_an_ancestor() {
    needs_server!();
    match Pids::new() {
        Ok(pids) => refused_by_cgroup(&pids, pids.outer(), 1),
        Err(why) => skipped(&why),
    }
}

/// A soft limit; root may lack the capability to do it for others.
fn limit_tasks(server: &Server, limit: &str) {
    let status = as_user("prlimit")
        .args(["--pid", &server.pid().to_string()])
        .arg(format!("--nproc={limit}"))
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_limit_of_tasks_of_the_user() {
    needs_server!();
    let server = Server::running(Options::default());
    let mut tracer = Tracer::watching(&["--data-dir", server.data_dir().to_str().unwrap()]);
    limit_tasks(&server, "1:");
    server.refused();
    let refusal = tracer.line("refusal", of(&server));
    assert_eq!(refusal["cause"], "rlimit_nproc", "{refusal:#}");
    assert_eq!(refusal["scope"]["kind"], "user");
    let nproc = &refusal["evidence"]["nproc"];
    assert_eq!(nproc["exempt"], false);
    assert_eq!(nproc["levels"][0]["limit"], 1);
    assert!(nproc["levels"][0]["tasks"].as_u64().unwrap() >= 1);
    let command = refusal["remedy"][0]["command"].as_str().unwrap();
    // As the user itself, who may raise a soft limit.
    let status = as_user("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
    server.connect().unwrap();
    let finished = tracer.stop();
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(finished.end("signal")["refusals"], 1);
}

#[test]
fn whose_connection_it_was() {
    needs_server!();
    let server = Server::running(Options {
        tcp: true,
        ..Options::default()
    });
    let mut tracer = Tracer::watching(&["--port", &server.port()]);
    server.connect().unwrap();
    limit_tasks(&server, "1:");
    server.refused();
    let local = tracer.line("refusal", of(&server));
    assert_eq!(local["client"]["kind"], "unix", "{local:#}");
    assert_eq!(local["client"]["pid"], std::process::id());
    assert_eq!(local["client"]["uid"], 0);
    assert!(local["client"]["comm"].is_string());
    assert_eq!(local["child"]["kind"], "client_backend");
    assert_eq!(local["child"]["certainty"], "observed");
    for (address, kind) in [("127.0.0.1", "tcp4"), ("::1", "tcp6")] {
        let port = server.refused_over(address);
        let refusal = tracer.line("refusal", of(&server));
        assert_eq!(refusal["client"]["kind"], kind, "{refusal:#}");
        assert_eq!(refusal["client"]["address"], address);
        assert_eq!(refusal["client"]["port"], port);
    }
    let finished = tracer.stop();
    assert_eq!(finished.end("signal")["refusals"], 3);
    let connections = &finished.of("totals")[0]["connections"];
    assert_eq!(connections["connects"], 4, "{connections:#}");
    assert_eq!(connections["unattributed"], Value::Null);
    let of = |key: &str, wanted: Value| {
        let clients = connections["clients"].as_array().unwrap();
        let found = clients.iter().find(|client| client[key] == wanted);
        found.map(|client| client["connects"].clone())
    };
    assert_eq!(of("uid", 0.into()), Some(2.into()), "{connections:#}");
    assert_eq!(of("address", "127.0.0.1".into()), Some(1.into()));
    assert_eq!(of("address", "::1".into()), Some(1.into()));
}

#[test]
fn a_process_of_the_servers_own_is_told_from_a_connection() {
    needs_server!();
    let server = Server::running(Options::default());
    let mut tracer = Tracer::watching(&["--port", &server.port()]);
    limit_tasks(&server, "1:");
    let writer = wait_for("the background writer", || {
        server.child("background writer")
    });
    // SAFETY: a process of this test; it ends in good order, and the postmaster starts another.
    assert_eq!(unsafe { libc::kill(writer as i32, libc::SIGTERM) }, 0);
    let refusal = tracer.line("refusal", of(&server));
    assert_eq!(refusal["client"], Value::Null, "{refusal:#}");
    let child = &refusal["child"];
    // The server's log may name it a moment later only.
    if child["kind"] == "worker" {
        assert_eq!(child["certainty"], "deduced");
        assert_eq!(child["likely"], "background writer");
    } else {
        assert_eq!(child["kind"], "background_writer");
        assert_eq!(child["certainty"], "observed");
    }
    wait_for("the line in the server's log", || {
        let log = server.log();
        log.contains("could not fork").then_some(())
    });
    let finished = tracer.stop();
    finished.end("signal");
    let logged = &finished.of("totals")[0]["server_log"]["could_not_fork"];
    assert!(
        logged["background_writer"].as_u64().unwrap() >= 1,
        "{logged}"
    );
}

#[test]
fn what_refuses_next() {
    needs_server!();
    let pids = match Pids::new() {
        Ok(pids) => pids,
        Err(why) => return skipped(&why),
    };
    let server = Server::running(Options {
        cgroup: Some(pids.leaf()),
        ..Options::default()
    });
    let mut tracer = Tracer::watching(&["--port", &server.port()]);
    // Seven more fit into the cgroup: fewer than the server has slots.
    let room = 7;
    let limit = Pids::current(&pids.leaf()) + room;
    std::fs::write(pids.leaf().join("pids.max"), limit.to_string()).unwrap();
    limit_tasks(&server, "1:");
    server.refused();
    let refusal = tracer.line("refusal", of(&server));
    assert_eq!(refusal["cause"], "rlimit_nproc");
    let next = &refusal["next_limit"];
    assert_eq!(next["limit"], "pids_cgroup_max", "{refusal:#}");
    assert_eq!(next["scope"]["path"], pids.name_of(&pids.leaf()));
    assert_eq!(next["room"], room);
    assert_eq!(next["backends"], room);
    assert_eq!(next["max"], limit);
    tracer.stop().end("signal");
}

#[test]
fn nothing_refused_nothing_reported() {
    needs_server!();
    let server = Server::running(Options::default());
    let tracer = Tracer::watching(&["--port", &server.port()]);
    for _ in 0..20 {
        server.connect().unwrap();
    }
    let finished = tracer.stop();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert_eq!(finished.end("signal")["refusals"], 0);
    assert_eq!(finished.of("refusal").len(), 0);
    let totals = finished.of("totals");
    assert!(totals[0]["forks"].as_u64().unwrap() >= 20, "{totals:?}");
    assert!(totals[0]["fork_time_ns"]["p50"].as_u64().unwrap() > 0);
}

#[test]
fn a_postmaster_that_starts_later_and_again() {
    needs_server!();
    let mut server = Server::new(Options::default());
    let mut tracer = Tracer::watching(&[]);
    server.start();
    let appeared = tracer.line("postmaster", of(&server));
    assert_eq!(appeared["event"], "appeared");
    assert_eq!(appeared["postmaster"]["pid"], server.pid());
    assert_eq!(appeared["postmaster"]["port"].to_string(), server.port());
    limit_tasks(&server, "1:");
    server.refused();
    assert_eq!(tracer.line("refusal", of(&server))["cause"], "rlimit_nproc");

    let first = server.pid();
    server.stop();
    assert_eq!(tracer.line("postmaster", of(&server))["event"], "gone");
    server.start();
    let restarted = tracer.line("postmaster", of(&server));
    assert_eq!(restarted["event"], "restarted", "{restarted:#}");
    assert_eq!(restarted["previous_pid"], first);
    limit_tasks(&server, "1:");
    server.refused();
    let refusal = tracer.line("refusal", of(&server));
    assert_eq!(refusal["postmaster"]["pid"], server.pid());
    let finished = tracer.stop();
    assert_eq!(finished.status.code(), Some(1));
    finished.end("signal");
    let totals = finished.of("totals");
    let ours: Vec<_> = totals
        .into_iter()
        .filter(|line| of(&server)(line))
        .collect();
    assert_eq!(ours.len(), 2, "one for each life");
    assert!(ours.iter().all(|totals| totals["refused"] == 1));
}

#[test]
fn two_postmasters_at_once_are_told_apart() {
    needs_server!();
    let one = Server::running(Options::default());
    let two = Server::running(Options::default());
    let ports = format!("{},{}", one.port(), two.port());
    let mut tracer = Tracer::watching(&["--port", &ports]);
    for postmaster in tracer.seen("start")["postmasters"].as_array().unwrap() {
        let started: jiff::Timestamp = postmaster["started"].as_str().unwrap().parse().unwrap();
        let age = jiff::Timestamp::now().duration_since(started);
        // Of this test, not of the host's boot nor of the epoch.
        assert!((0..=600).contains(&age.as_secs()), "{postmaster:#}");
        assert_eq!(postmaster["version"].as_str(), two.version().as_deref());
    }
    limit_tasks(&two, "1:");
    two.refused();
    one.connect().unwrap();
    let refusal = tracer.line("refusal", |_| true);
    assert_eq!(refusal["postmaster"]["pid"], two.pid());
    limit_tasks(&one, "1:");
    one.refused();
    let refusal = tracer.line("refusal", |_| true);
    assert_eq!(refusal["postmaster"]["pid"], one.pid());
    let finished = tracer.stop();
    assert_eq!(finished.end("signal")["refusals"], 2);
    for totals in finished.of("totals") {
        assert_eq!(totals["refused"], 1, "{totals:#}");
    }
}

#[test]
fn an_executable_of_another_name() {
    needs_server!();
    for name in ["postmaster", "edb-postgres"] {
        let server = Server::running(Options {
            name: Some(name),
            ..Options::default()
        });
        let exe = std::fs::read_link(format!("/proc/{}/exe", server.pid())).unwrap();
        assert!(exe.ends_with(name), "{}", exe.display());
        let mut tracer = Tracer::watching(&["--port", &server.port()]);
        limit_tasks(&server, "1:");
        server.refused();
        let refusal = tracer.line("refusal", of(&server));
        assert_eq!(refusal["cause"], "rlimit_nproc");
        assert_eq!(refusal["process"]["comm"], name);
        assert_eq!(tracer.stop().end("signal")["refusals"], 1);
    }
}

#[test]
fn a_postmaster_in_namespaces_of_its_own() {
    needs_server!();
    let server = Server::running(Options {
        namespaces: true,
        ..Options::default()
    });
    let mut tracer = Tracer::watching(&["--port", &server.port()]);
    limit_tasks(&server, "1:");
    server.refused();
    let refusal = tracer.line("refusal", of(&server));
    assert_eq!(refusal["cause"], "rlimit_nproc", "{refusal:#}");
    // The pid of this host, not the 1 that it has there.
    assert_eq!(refusal["postmaster"]["pid"], server.pid());
    assert_eq!(refusal["process"]["pid"], server.pid());
    assert_eq!(tracer.stop().end("signal")["refusals"], 1);
}
