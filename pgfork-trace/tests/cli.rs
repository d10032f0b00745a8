//! The command line: every error that a user can act on, every way to end.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests are tests"
)]

mod support;

use std::{
    fs,
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Stdio},
};

use support::{
    BINARY, Tracer, as_nobody, assert_refuses, fixture, fixture::Forker, is_root, lines_of, output,
    run, seccomp, skipped, stderr, tracing, wait_for,
};

/// Not a test: see [`fixture`].
#[test]
fn fixture() {
    fixture::main();
}

#[test]
fn causes_are_listed_and_explained() {
    let list = run(&["causes"]);
    assert_eq!(list.status.code(), Some(0));
    assert!(
        String::from_utf8(list.stdout)
            .unwrap()
            .contains("commit_limit ")
    );
    let all: serde_json::Value =
        serde_json::from_slice(&run(&["causes", "--json"]).stdout).unwrap();
    let one = run(&["causes", "pid_namespace_dying", "--json"]).stdout;
    let one: serde_json::Value = serde_json::from_slice(&one).unwrap();
    assert!(all.as_array().unwrap().contains(&one));
    assert_eq!(one["errno"], "ENOMEM");
    let unknown = run(&["causes", "commit-limit"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(unknown.stdout.is_empty());
    assert!(stderr(&unknown).contains("did you mean commit_limit?"));
}

#[test]
fn help_tells_the_exit_statuses_and_all_options() {
    for help in [&["-h"][..], &["--help"], &["trace", "--help"], &["help"]] {
        let output = run(help);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(text.contains("Exit status:\n  0  "), "{text}");
        assert!(
            text.contains("\n  1  ") && text.contains("\n  2  "),
            "{text}"
        );
    }
    let text = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for option in [
        "--pid",
        "--port",
        "--data-dir",
        "--comm",
        "--json",
        "--output",
        "--max-size",
        "--for",
        "--until",
        "--method",
        "--color",
        "--quiet",
        "--verbose",
    ] {
        assert!(text.contains(option), "{option}");
    }
    let version = run(&["--version"]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        concat!("pgfork-trace ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn metrics_say_that_the_look_failed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pgfork.prom");
    fs::write(&file, "pgfork_up 1\n").unwrap();
    let mut command = Command::new(BINARY);
    command.args(["check", "--port", "1", "--prometheus"]);
    // SAFETY: one system call.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0o077);
            Ok(())
        })
    };
    let failed = output(command.arg(&file));
    assert_eq!(failed.status.code(), Some(2), "{}", stderr(&failed));
    let metrics = fs::read_to_string(&file).unwrap();
    for line in [
        "# HELP pgfork_up ",
        "# TYPE pgfork_up gauge\npgfork_up 0\n",
        "# TYPE pgfork_look_timestamp_seconds gauge\npgfork_look_timestamp_seconds ",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    // Another user reads it, whatever the umask.
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let missing = directory.path().join("none/pgfork.prom");
    let missing = missing.to_str().unwrap();
    assert_refuses(
        &run(&["check", "--port", "1", "--prometheus", missing]),
        &["cannot write ", "none/pgfork.prom"],
    );
}

#[test]
fn bad_options_end_with_2_and_name_the_option() {
    for (arguments, word) in [
        (&["--no-such"][..], "--no-such"),
        (&["no-such"], "no-such"),
        (&["--pid", "0"], "--pid"),
        (&["--pid", "x"], "--pid"),
        (&["--pid", "99999999999"], "--pid"),
        (&["--port", "0"], "--port"),
        (&["--port", "65536"], "--port"),
        (&["--for", "0"], "--for"),
        (&["--for", "5 minutes"], "--for"),
        (&["--for", "-1"], "-1"),
        (&["--until", "0"], "--until"),
        (&["--method", "magic"], "--method"),
        (&["--max-size", "1M"], "--max-size"),
        (&["--json", "--max-size", "1K"], "--max-size"),
        (&["--color", "maybe"], "--color"),
        (&["--data-dir"], "--data-dir"),
        (&["--comm", ""], "--comm"),
        (&["check", "--comm", "x"], "--comm"),
        (&["selftest", "--pid", "1"], "--pid"),
        (&["--until", "1", "selftest"], "'selftest' takes only"),
        (&["probes", "--pid", "1"], "--pid"),
    ] {
        assert_refuses(&run(arguments), &[word]);
    }
}

#[test]
fn without_privileges_the_missing_capabilities_are_named() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&[][..], &["selftest"]] {
        let output = output(as_nobody(&directory).args(arguments));
        assert_refuses(
            &output,
            &[
                "tracing needs root",
                "CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN)",
                "sudo",
            ],
        );
    }
}

#[test]
fn a_kernel_without_types_is_named_as_such() {
    needs_root!();
    let with = |path: &str| {
        let mut command = Command::new(BINARY);
        output(command.env("PGFORK_TRACE_BTF", path).args(["--pid", "1"]))
    };
    assert_refuses(
        &with("/nonexistent/btf"),
        &["/nonexistent/btf", "CONFIG_DEBUG_INFO_BTF", "No such file"],
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [b'x'; 100]).unwrap();
    assert_refuses(
        &with(file.path().to_str().unwrap()),
        &["is not the BTF this program knows: wrong magic number"],
    );
}

#[test]
fn a_seccomp_filter_is_named_as_what_refuses_bpf() {
    needs_root!();
    let mut command = Command::new(BINARY);
    command.args(["--pid", "1"]);
    // SAFETY: two system calls without allocation.
    unsafe { command.pre_exec(seccomp::forbid_bpf) };
    assert_refuses(
        &output(&mut command),
        &[
            "bpf() is refused",
            "seccomp filter is in force",
            "seccomp=unconfined",
        ],
    );
}

#[test]
fn an_output_file_is_never_overwritten_and_never_reached_through_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let existing = path("existing");
    fs::write(&existing, "precious").unwrap();
    assert_refuses(
        &run(&["-o", &existing]),
        &[&existing, "exists and is not overwritten"],
    );
    let link = path("link");
    for target in [existing.as_str(), "/nonexistent/target"] {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).unwrap();
        assert_refuses(&run(&["-o", &link]), &[&link, "is a symbolic link"]);
    }
    assert_eq!(fs::read_to_string(&existing).unwrap(), "precious");
    let missing = path("missing/file");
    assert_refuses(
        &run(&["-o", &missing]),
        &[&missing, "No such file or directory"],
    );
    assert_refuses(&run(&["-o", &path("")]), &["pgfork-trace: "]);
}

#[test]
fn an_output_directory_that_must_not_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = as_nobody(&directory);
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let file = closed.join("file");
    let output = output(command.arg("-o").arg(&file));
    assert_refuses(&output, &[file.to_str().unwrap(), "Permission denied"]);
}

#[test]
fn what_does_not_exist_is_named_and_nothing_is_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("out.json");
    let with_file = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        let output = output(command.args(arguments).arg("-o").arg(&file));
        assert!(!file.exists(), "an empty file was left behind");
        output
    };
    // Above the highest pid_max.
    assert_refuses(
        &with_file(&["--pid", "4194305"]),
        &["there is no process 4194305"],
    );
    assert_refuses(&with_file(&["--port", "1"]), &["no postmaster on port 1"]);
    let nowhere = directory.path().join("no cluster");
    let nowhere = nowhere.to_str().unwrap();
    assert_refuses(
        &with_file(&["--data-dir", nowhere]),
        &["no postmaster in data directory", nowhere],
    );
    // One of several is enough.
    let own = std::process::id().to_string();
    assert_refuses(
        &with_file(&["--pid", &own, "--pid", "4194305"]),
        &["there is no process 4194305"],
    );
}

#[test]
fn a_thread_is_answered_with_its_process() {
    // This test runs in a thread of its own.
    // SAFETY: reads only.
    let thread = unsafe { libc::gettid() }.to_string();
    let process = std::process::id().to_string();
    if thread == process {
        return skipped("tests run in the main thread");
    }
    assert_refuses(
        &run(&["--pid", &thread]),
        &[&format!(
            "{thread} is a thread of process {process}; give the process"
        )],
    );
}

#[test]
fn in_a_pid_namespace_of_its_own_it_says_where_to_run() {
    needs_root!();
    let output = output(Command::new("unshare").args([
        "--pid",
        "--fork",
        "--mount-proc",
        BINARY,
        "--pid",
        "1",
    ]));
    if stderr(&output).contains("unshare") {
        return skipped(&stderr(&output));
    }
    assert_refuses(&output, &["pid namespace of its own", "--pid=host"]);
}

#[test]
fn a_forced_method_that_does_not_work_here_says_so() {
    needs_tracing!();
    let own = std::process::id().to_string();
    let mut refused = 0;
    for method in ["fexit", "kprobe", "tracepoint"] {
        let output = run(&["--pid", &own, "--for", "1", "--method", method]);
        if output.status.success() {
            continue;
        }
        refused += 1;
        assert_refuses(
            &output,
            &[
                &format!("method {method} does not work here"),
                "Without --method the best one that works is chosen",
            ],
        );
    }
    if refused == 0 {
        skipped("every method works on this kernel");
    }
    assert!(refused < 3, "tracing works, but not by any method");
}

#[test]
fn signals_end_it_with_totals() {
    needs_tracing!();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut forker = Forker::start();
        let tracer = Tracer::watching(&["--pid", &forker.pid()]);
        for _ in 0..5 {
            forker.fork();
        }
        tracer.signal(signal);
        let finished = tracer.finish();
        assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
        assert_eq!(finished.end("signal")["refusals"], 0);
        let totals = finished.of("totals");
        assert_eq!(totals.len(), 1);
        assert_eq!(totals[0]["forks"], 5);
        assert_eq!(totals[0]["refused"], 0);
        assert_eq!(finished.of("refusal").len(), 0);
        forker.quit();
    }
}

#[test]
fn system_calls_are_watched_when_asked_for() {
    needs_tracing!();
    needs_root!();
    let mut forker = Forker::start();
    let method = ["--method", "tracepoint", "--syscalls"];
    let mut arguments = method.to_vec();
    let pid = forker.pid();
    arguments.extend(["--pid", &pid]);
    let mut tracer = Tracer::watching(&arguments);
    for _ in 0..3 {
        forker.fork();
    }
    assert_eq!(forker.tell("limit"), "done");
    forker.refused();
    let refusal = tracer.line("refusal", |_| true);
    assert_eq!(refusal["cause"], "rlimit_nproc", "{refusal:#}");
    assert_eq!(refusal["syscall"], "clone");
    assert_eq!(refusal["errno"]["number"], libc::EAGAIN);
    assert!(refusal["duration_ns"].as_u64().unwrap() > 0);
    let finished = tracer.stop();
    let totals = finished.of("totals");
    // Once each, not by the system call and by the C library.
    assert_eq!(totals[0]["forks"], 4);
    assert_eq!(totals[0]["refused"], 1);
    forker.quit();
}

#[test]
fn started_by_nohup_it_survives_a_hangup() {
    needs_tracing!();
    needs_root!();
    let mut forker = Forker::limited();
    let mut command = Command::new("nohup");
    command.args([BINARY, "--json", "--pid", &forker.pid()]);
    let mut tracer = Tracer::spawn(&mut command);
    tracer.line("start", |_| true);
    tracer.signal(libc::SIGHUP);
    // The second one comes after any end that the signal might have brought about.
    for _ in 0..2 {
        forker.refused();
        tracer.line("refusal", |_| true);
    }
    assert_eq!(tracer.stop().end("signal")["refusals"], 2);
}

#[test]
fn it_ends_after_the_time_that_was_asked_for() {
    needs_tracing!();
    let forker = Forker::start();
    let finished = Tracer::start(&["--pid", &forker.pid(), "--for", "1s"]).finish();
    assert_eq!(finished.status.code(), Some(0));
    let end = finished.end("duration");
    assert!(
        end["watched_ns"].as_u64().unwrap() >= 1_000_000_000,
        "{end}"
    );
}

#[test]
fn it_ends_when_nothing_is_left_to_watch() {
    needs_tracing!();
    let forker = Forker::start();
    let tracer = Tracer::watching(&["--pid", &forker.pid()]);
    forker.quit();
    let finished = tracer.finish();
    assert_eq!(finished.status.code(), Some(0));
    finished.end("no_more");
    assert_eq!(finished.of("postmaster")[0]["event"], "gone");
}

#[test]
fn processes_of_a_name_those_that_run_and_those_to_come() {
    needs_tracing!();
    needs_root!();
    // This very program: its name is longer than what the kernel keeps of it.
    let program = std::env::current_exe().unwrap();
    let name = program.file_name().unwrap().to_str().unwrap();
    let mut before = Forker::limited();
    let mut tracer = Tracer::watching(&["--comm", name]);
    let start = tracer.seen("start");
    let pids = |value: &serde_json::Value| value["pid"].to_string();
    let watched = start["postmasters"].as_array().unwrap();
    assert!(
        watched.iter().any(|it| pids(it) == before.pid()),
        "{start:#}"
    );
    assert_eq!(start["names"], serde_json::json!([name]));
    before.refused();
    let refusal = tracer.line("refusal", |line| pids(&line["process"]) == before.pid());
    assert_eq!(refusal["postmaster"]["kind"], "process");
    assert_eq!(refusal["postmaster"]["comm"], name[..15]);
    assert_eq!(refusal["client"], serde_json::Value::Null);
    assert_eq!(refusal["child"], serde_json::Value::Null);
    let mut after = Forker::start();
    let is = |pid: &str| {
        let pid: u64 = pid.parse().unwrap();
        move |line: &serde_json::Value| line["postmaster"]["pid"] == pid
    };
    assert_eq!(
        tracer.line("postmaster", is(&after.pid()))["event"],
        "appeared"
    );
    after.fork();
    let pid = after.pid();
    after.quit();
    assert_eq!(tracer.line("postmaster", is(&pid))["event"], "gone");
    let finished = tracer.stop();
    finished.end("signal");
    let totals = finished.of("totals");
    let ours = totals.iter().find(|line| is(&pid)(line)).unwrap();
    assert_eq!(ours["forks"], 1);
}

#[test]
fn a_name_that_nobody_has_is_waited_for() {
    needs_tracing!();
    let finished = Tracer::start(&["--comm", "pgfork-no-such", "--for", "1s"]).finish();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    finished.end("duration");
    assert_eq!(
        finished.of("start")[0]["postmasters"],
        serde_json::json!([])
    );
    assert!(finished.of("totals").is_empty());
}

#[test]
fn selftest_provokes_sees_and_leaves_nothing_behind() {
    needs_tracing!();
    needs_root!();
    let output = run(&["selftest", "--json"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let schema: serde_json::Value =
        serde_json::from_str(include_str!("../../docs/selftest-schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert_eq!(lines.len(), 5, "{text}{}", stderr(&output));
    for line in &lines {
        assert!(validator.is_valid(line), "{line:#}");
        // Not every host lets itself be prepared for each of them, but root may limit a user.
        let outcome = line["outcome"].as_str().unwrap();
        let skipped = outcome == "skipped" && line["test"] != "rlimit_nproc";
        assert!(outcome == "right" || skipped, "{line:#}");
    }
    assert_eq!(output.status.code(), Some(0));
    for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"] {
        let entries = fs::read_dir(hierarchy).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name());
        assert!(!names.any(|name| name.to_string_lossy().contains("selftest")));
    }
}

#[test]
fn it_ends_after_so_many_refusals_with_status_1() {
    needs_tracing!();
    needs_root!();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("out.json");
    let mut forker = Forker::limited();
    let pid = forker.pid();
    let mut tracer =
        Tracer::watching(&["--pid", &pid, "--until", "2", "-o", file.to_str().unwrap()]);
    for _ in 0..2 {
        forker.refused();
        let refusal = tracer.line("refusal", |_| true);
        assert_eq!(refusal["cause"], "rlimit_nproc", "{refusal:#}");
        assert_eq!(refusal["errno"]["name"], "EAGAIN");
        assert_eq!(refusal["process"]["pid"].to_string(), pid);
        assert_eq!(refusal["scope"]["kind"], "user");
        assert_eq!(refusal["scope"]["uid"], 54_327);
        assert_ne!(refusal["certainty"], "unknown");
        assert!(!refusal["remedy"].as_array().unwrap().is_empty());
    }
    let finished = tracer.finish();
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(finished.end("until")["refusals"], 2);
    assert_eq!(
        finished.of("totals")[0]["refused_by_cause"]["rlimit_nproc"],
        2
    );
    // The file holds the same lines and is for its owner alone.
    assert_eq!(lines_of(&file), finished.lines);
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn people_read_text_on_standard_output() {
    needs_tracing!();
    needs_root!();
    let mut forker = Forker::limited();
    let pid = forker.pid();
    let mut child = Command::new(BINARY)
        .args(["--pid", &pid, "--until", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = [0; 4096];
    wait_for("the header", || {
        let length = stdout.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        text.contains("Watching").then_some(())
    });
    forker.refused();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    for word in [
        "REFUSED",
        "rlimit_nproc",
        "EAGAIN",
        "prlimit --pid",
        "remedy",
    ] {
        assert!(text.contains(word), "{word:?} is missing in {text}");
    }
    assert!(!text.contains('\u{1b}'), "colours in a pipe: {text}");
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let closed = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(BINARY);
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
        for word in ["panicked", "Broken pipe", "roken"] {
            assert!(!text.contains(word), "{arguments:?}: {text}");
        }
    };
    closed(&["--help"]);
    if fs::exists("/sys/kernel/btf/vmlinux").unwrap() {
        closed(&["probes"]);
        closed(&["probes", "--json"]);
    }
    if let Err(why) = tracing() {
        return skipped(&why);
    }
    let own = std::process::id().to_string();
    closed(&["--json", "--pid", &own]);
    closed(&["--pid", &own]);
}

#[test]
fn a_reader_that_goes_away_leaves_a_whole_file() {
    needs_tracing!();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("out.json");
    let own = std::process::id().to_string();
    let mut child = Command::new(BINARY)
        .args(["--json", "--pid", &own, "-o", file.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0];
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    // SAFETY: a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let lines = lines_of(&file);
    assert!(lines.iter().any(|line| line["type"] == "start"));
    assert_eq!(lines.last().unwrap()["type"], "end");
}

#[test]
fn probes_are_listed_for_people_and_programs() {
    if !fs::exists("/sys/kernel/btf/vmlinux").unwrap() {
        return skipped("this kernel does not show its types");
    }
    let text = String::from_utf8(run(&["probes"]).stdout).unwrap();
    assert!(text.contains("kernel_clone"), "{text}");
    let json = run(&["probes", "--json"]);
    assert_eq!(json.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(report["checks"].as_array().unwrap().len() > 10);
    assert!(is_root() || !report["kernel"].as_str().unwrap().is_empty());
}
