//! The program `check` as a user runs it, on a real server.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use crate::{
    needs_root,
    support::{
        BINARY, as_nobody, assert_refuses, output, run, seccomp,
        server::{self, Options, Server},
        skipped, stderr,
    },
};

macro_rules! needs_postgres {
    () => {
        needs_root!();
        if server::binaries().is_none() {
            return skipped("no PostgreSQL is installed");
        }
    };
}

/// A document as its schema describes it.
#[track_caller]
fn document(text: &str) -> Value {
    static VALIDATOR: OnceLock<jsonschema::Validator> = OnceLock::new();
    let validator = VALIDATOR.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/check-schema.json");
        let text = std::fs::read_to_string(path).unwrap();
        jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
    });
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    if let Some(error) = validator.iter_errors(&value).next() {
        panic!("{error} at {}: {value:#}", error.instance_path());
    }
    value
}

#[track_caller]
fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn limit<'a>(document: &'a Value, id: &str) -> &'a Value {
    let limits = document["servers"][0]["limits"].as_array().unwrap();
    limits.iter().find(|row| row["limit"] == id).unwrap()
}

#[test]
fn what_it_sees_and_its_exit_status() {
    needs_postgres!();
    let server = Server::running(Options::default());
    let port = server.port();
    let _client = server.connect().unwrap();
    // 20 slots, 3 of them reserved, one taken.
    let close = run(&["check", "--json", "--port", &port]);
    assert_eq!(close.status.code(), Some(1), "{}", stderr(&close));
    let found = document(text(&close));
    let row = limit(&found, "max_connections");
    assert_eq!(
        (&row["used"], &row["max"], &row["backends"], &row["near"]),
        (&1.into(), &17.into(), &16.into(), &true.into())
    );
    assert_eq!(found["servers"][0]["pid"], server.pid());
    let settings = found["servers"][0]["settings"].as_array().unwrap();
    let max = settings
        .iter()
        .find(|it| it["name"] == "max_connections")
        .unwrap();
    assert_eq!(
        (&max["value"], &max["source"]),
        (&"20".into(), &"command line".into())
    );
    let far = [
        "check",
        "--port",
        &port,
        "--near-backends",
        "0",
        "--near-percent",
        "0",
    ];
    let comfortable = run(&far);
    assert_eq!(comfortable.status.code(), Some(0), "{}", text(&comfortable));
    assert!(
        text(&comfortable).contains("Comfortable. First would be "),
        "{}",
        text(&comfortable)
    );
    assert!(text(&comfortable).contains("max_connections"));
    // What it says to type works as it is, for this server.
    let command = row["remedy"][0]["command"].as_str().unwrap();
    let typed = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(typed.status.success(), "{command}: {typed:?}");
    assert_refuses(&run(&["check", "--port", "1"]), &["port 1"]);
    for (arguments, status) in [(&far[..], 0), (&["check", "--port", &port][..], 1)] {
        let quiet = run(&[arguments, &["-q"]].concat());
        assert_eq!(quiet.status.code(), Some(status));
        assert!(
            quiet.stdout.is_empty() && quiet.stderr.is_empty(),
            "{quiet:?}"
        );
    }
}

#[test]
fn watching_looks_again_until_a_signal_and_keeps_json_in_a_file() {
    needs_postgres!();
    let server = Server::running(Options::default());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("watch.json");
    let mut child = Command::new(BINARY)
        .args([
            "check",
            "--json",
            "--watch",
            "1",
            "--port",
            &server.port(),
            "-o",
        ])
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || document(&lines.next().unwrap().unwrap());
    let connections = |look: &Value| look["servers"][0]["connections"].clone();
    let first = next();
    assert_eq!(connections(&first)["clients"], 0);
    assert_eq!(connections(&first)["arrivals"], Value::Null);
    let client = server.connect().unwrap();
    // A look may come before the connection stands.
    let mut looks = vec![first];
    while connections(looks.last().unwrap())["clients"] != 1 {
        looks.push(next());
        assert!(looks.len() < 60, "{looks:#?}");
    }
    assert!(looks.len() >= 2);
    let last = looks.last().unwrap();
    assert_eq!(connections(last)["arrivals"]["backends"], 1, "{last:#}");
    assert!(limit(last, "max_connections")["trend"]["used_change"].is_i64());
    // SAFETY: a child of this test that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    looks.extend(lines.map(|line| document(&line.unwrap())));
    assert_eq!(child.wait().unwrap().code(), Some(1), "a limit was close");
    drop(client);
    let kept = std::fs::read_to_string(&file).unwrap();
    let kept: Vec<Value> = kept.lines().map(document).collect();
    assert_eq!(kept, looks);
    let once = run(&[
        "check",
        "-q",
        "--watch",
        "1",
        "--for",
        "1",
        "--port",
        &server.port(),
    ]);
    assert_eq!(
        once.status.code(),
        Some(1),
        "its time is over: {}",
        stderr(&once)
    );
    let again = Command::new(BINARY)
        .args(["check", "--port", &server.port(), "-o"])
        .arg(&file)
        .output()
        .unwrap();
    assert_refuses(&again, &["exists and is not overwritten"]);
}

#[test]
fn states_and_their_ages() {
    needs_postgres!();
    let server = Server::running(Options {
        tcp: true,
        ..Options::default()
    });
    let _clients = (server.connect_over("127.0.0.1"), server.connect_over("::1"));
    let _local = server.connect().unwrap();
    let found = crate::support::wait_for("three idle clients", || {
        let found = document(text(&run(&["check", "--json", "--port", &server.port()])));
        (found["servers"][0]["connections"]["idle"] == 3).then_some(found)
    });
    let idle = &found["servers"][0]["connections"]["states"][0];
    assert_eq!(
        (&idle["state"], &idle["clients"]),
        (&"idle".into(), &3.into())
    );
    let why = found["servers"][0]["not_seen"].to_string();
    if why.contains("how long TCP clients have been in their state is not known") {
        return skipped(&why);
    }
    // The Unix socket has no time.
    assert_eq!(
        (&idle["known"], &idle["at_least"]),
        (&2.into(), &0.into()),
        "{idle:#}"
    );
    assert!(idle["oldest_s"].as_u64().unwrap() < 120, "{idle:#}");
}

#[test]
fn metrics_of_a_real_server() {
    needs_postgres!();
    let server = Server::running(Options::default());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pgfork.prom");
    let path = file.to_str().unwrap();
    run(&[
        "check",
        "-q",
        "--port",
        &server.port(),
        "--prometheus",
        path,
    ]);
    let metrics = std::fs::read_to_string(&file).unwrap();
    let of = format!("port=\"{}\"", server.port());
    let value = |limit: &str| {
        let limit = format!("limit=\"{limit}\"");
        let line = metrics.lines().find(|line| {
            line.starts_with("pgfork_limit_backends") && line.contains(&of) && line.contains(&limit)
        });
        line.unwrap_or_else(|| panic!("{limit} {metrics}"))
            .to_owned()
    };
    assert!(value("max_connections").ends_with(" 17"), "{metrics}");
    assert!(metrics.contains("\npgfork_up 1\n"), "{metrics}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn another_user_sees_less_and_is_told_what() {
    needs_postgres!();
    let server = Server::running(Options::default());
    let directory = tempfile::tempdir().unwrap();
    let pid = server.pid().to_string();
    let found = output(as_nobody(&directory).args(["check", "--json", "--pid", &pid]));
    let status = found.status.code();
    let found = document(text(&found));
    // max_connections is what its data directory says.
    let close = found["near"].as_u64() > Some(0);
    assert_eq!(status, Some(if close { 1 } else { 2 }), "{found}");
    assert_eq!(found["servers"][0]["unread"][0], "max_connections");
    assert!(limit(&found, "threads_max")["max"].as_u64() > Some(0));
    let unseen = found["servers"][0]["not_seen"].to_string() + &found["not_seen"].to_string();
    for words in ["by its name", "what a fork charges is not known"] {
        assert!(unseen.contains(words), "{words}: {unseen}");
    }
}

/// Under a filter that kills whoever starts a process or a thread, or opens a file for writing.
#[test]
fn it_starts_nothing_and_changes_nothing() {
    needs_postgres!();
    let server = Server::running(Options::default());
    let _client = server.connect().unwrap();
    let filtered = |command: &mut Command| {
        // SAFETY: system calls only.
        unsafe { command.pre_exec(seccomp::kill_changes) };
        output(command)
    };
    let forks = filtered(Command::new("sh").args(["-c", "(:)"]));
    assert_eq!(
        forks.status.signal(),
        Some(libc::SIGSYS),
        "the filter does nothing"
    );
    let writes = filtered(Command::new("sh").args(["-c", ": > /dev/null"]));
    assert_eq!(
        writes.status.signal(),
        Some(libc::SIGSYS),
        "the filter does nothing"
    );
    for arguments in [
        &["check", "--json"][..],
        &["check", "-v"],
        &["check", "--watch", "1", "--for", "2"],
    ] {
        let found = filtered(
            Command::new(BINARY)
                .args(arguments)
                .args(["--port", &server.port()]),
        );
        assert_eq!(found.status.code(), Some(1), "{arguments:?}: {found:?}");
        assert!(text(&found).contains("max_connections"));
    }
}
