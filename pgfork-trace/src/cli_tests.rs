//! Tests of the command line.

use super::*;

fn plan(arguments: &[&str]) -> Plan {
    parse(std::iter::once(&"pgfork-trace").chain(arguments)).unwrap()
}

fn refused(arguments: &[&str]) -> clap::Error {
    parse(std::iter::once(&"pgfork-trace").chain(arguments)).unwrap_err()
}

fn trace(arguments: &[&str]) -> TracePlan {
    match plan(arguments).command {
        Command::Trace(trace) => trace,
        other => panic!("trace expected: {other:?}"),
    }
}

#[test]
fn clap_finds_no_fault() {
    command().debug_assert();
}

#[test]
fn no_subcommand_is_trace() {
    assert_eq!(plan(&[]), plan(&["trace"]));
    assert_eq!(trace(&[]), TracePlan::default());
    assert_eq!(plan(&[]).method, None);
}

#[test]
fn options_work_before_and_after_trace() {
    for arguments in [
        &["--json", "--pid", "7", "--for", "5m"][..],
        &["trace", "--json", "--pid", "7", "--for", "5m"],
        &["--pid", "7", "--json", "trace", "--for", "5m"],
        &[
            "--pid", "7", "--for", "1s", "trace", "--for", "5m", "--json",
        ],
    ] {
        let plan = plan(arguments);
        assert!(plan.output.json, "{arguments:?}");
        let Command::Trace(trace) = plan.command else {
            panic!("{arguments:?}")
        };
        assert_eq!(trace.filter.pids, [7]);
        assert_eq!(trace.duration, Some(Duration::from_secs(300)));
    }
}

#[test]
fn children_are_asked_for() {
    assert!(!trace(&[]).all_children);
    for arguments in [
        &["--all-children"][..],
        &["trace", "--all-children"],
        &["--all-children", "trace", "--for", "5m"],
    ] {
        assert!(trace(arguments).all_children, "{arguments:?}");
    }
    let help = command().render_long_help().to_string();
    assert!(help.contains("--all-children") && help.contains("out of memory"));
}

#[test]
fn system_calls_are_asked_for() {
    assert!(!trace(&[]).syscalls);
    assert!(trace(&["--syscalls", "trace"]).syscalls);
    assert!(trace(&["trace", "--syscalls"]).syscalls);
    let help = command().render_long_help().to_string();
    assert!(help.contains("Every system call of every process of the host"));
}

#[test]
fn lists_are_repeatable() {
    let trace = trace(&[
        "--pid",
        "7,8",
        "--port",
        "5432",
        "trace",
        "--pid",
        "9",
        "--data-dir",
        "/a",
        "--data-dir",
        "/b",
    ]);
    assert_eq!(trace.filter.pids, [7, 8, 9]);
    assert_eq!(trace.filter.ports, [5432]);
    assert_eq!(
        trace.filter.data_dirs,
        [PathBuf::from("/a"), PathBuf::from("/b")]
    );
}

#[test]
fn names_are_repeatable_and_bounded() {
    // A comma may be part of a name.
    let two = trace(&["--comm", "pgbouncer", "trace", "--comm", "a b,c"]);
    assert_eq!(two.filter.comms, ["pgbouncer", "a b,c"]);
    assert!(refused(&["--comm", ""]).to_string().contains("--comm"));
    let many: Vec<&str> = ["--comm", "x"].repeat(MOST_COMMS);
    assert_eq!(trace(&many).filter.comms.len(), MOST_COMMS);
    let more: Vec<&str> = ["--comm", "x"].repeat(MOST_COMMS + 1);
    assert!(refused(&more).to_string().contains("at most 12"));
    assert!(
        refused(&["check", "--comm", "x"])
            .to_string()
            .contains("--comm")
    );
}

#[test]
fn output_options() {
    let plan = plan(&[
        "-o",
        "f",
        "--max-size",
        "2M",
        "--color",
        "never",
        "-q",
        "-vv",
        "--method",
        "kprobe",
        "--until",
        "3",
    ]);
    assert_eq!(
        plan.output,
        OutputOptions {
            json: false,
            file: Some(PathBuf::from("f")),
            max_size: Some(2 << 20),
            color: Color::Never,
            quiet: 1,
            verbose: 2,
        }
    );
    assert_eq!(plan.method, Some(Method::Kprobe));
    assert_eq!(plan.verbose, 2);
}

#[test]
fn causes_takes_an_id() {
    assert_eq!(plan(&["causes"]).command, Command::Causes(None));
    let one = plan(&["causes", "commit_limit", "--json"]);
    assert_eq!(
        one.command,
        Command::Causes(Some("commit_limit".to_owned()))
    );
    assert!(one.output.json);
    assert!(
        refused(&["--pid", "1", "causes"])
            .to_string()
            .contains("'causes' takes only")
    );
}

#[test]
fn probes_takes_its_few_options() {
    let plan = plan(&["probes", "--json", "--method", "tracepoint"]);
    assert_eq!(plan.command, Command::Probes { load: false });
    assert!(plan.output.json);
    assert_eq!(plan.method, Some(Method::Tracepoint));
    assert!(
        refused(&["probes", "--pid", "1"])
            .to_string()
            .contains("--pid")
    );
    assert!(
        refused(&["--pid", "1", "probes"])
            .to_string()
            .contains("'probes' takes only")
    );
}

#[test]
fn selftest_takes_its_few_options() {
    let plan = plan(&["selftest", "--json", "--method", "tracepoint", "-q"]);
    assert_eq!(plan.command, Command::Selftest);
    assert_eq!(plan.method, Some(Method::Tracepoint));
    assert!(
        refused(&["selftest", "--pid", "1"])
            .to_string()
            .contains("--pid")
    );
    assert!(
        refused(&["--comm", "x", "selftest"])
            .to_string()
            .contains("'selftest' takes only")
    );
}

#[test]
fn durations_and_sizes() {
    for (text, seconds) in [
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        ("1h", 3600),
        ("2d", 172_800),
    ] {
        assert_eq!(
            parse_duration(text),
            Ok(Duration::from_secs(seconds)),
            "{text}"
        );
    }
    for text in [
        "",
        "m",
        "0",
        "0m",
        "5x",
        "5 m",
        "-1",
        "1.5h",
        "5µ",
        "99999999999999999999",
        "18446744073709551615d",
    ] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
    for (text, bytes) in [
        ("65536", 65536),
        ("64K", 65536),
        ("1m", 1 << 20),
        ("2G", 2 << 30),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in ["", "1K", "5T", "99999999999G"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    for arguments in [
        &["--pid", "0"][..],
        &["--pid", "x"],
        &["--port", "0"],
        &["--until", "0"],
        &["--method", "magic"],
        &["magic"],
        &["--max-size", "1M"],
        &["--color"],
    ] {
        assert_eq!(refused(arguments).exit_code(), 2, "{arguments:?}");
    }
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["probes", "--help"],
        &["trace", "-h"],
    ] {
        assert_eq!(refused(arguments).exit_code(), 0, "{arguments:?}");
    }
}

#[test]
fn help_names_exit_statuses_and_examples() {
    let help = refused(&["--help"]).to_string();
    for part in [
        "Exit status:",
        "Examples:",
        "could not do the job",
        "--until",
        "probes",
    ] {
        assert!(help.contains(part), "{part}");
    }
}

#[test]
fn check_has_thresholds_and_servers() {
    assert_eq!(
        plan(&["check"]).command,
        Command::Check(CheckPlan::default())
    );
    let plan = plan(&[
        "check",
        "--port",
        "5432,5433",
        "--near-backends",
        "5",
        "--near-percent",
        "0",
        "--json",
        "-q",
    ]);
    let Command::Check(check) = plan.command else {
        panic!("check expected")
    };
    assert_eq!(check.filter.ports, [5432, 5433]);
    assert_eq!((check.near.backends, check.near.percent), (5, 0));
    assert!(plan.output.json && plan.output.quiet == 1);
    let Command::Check(check) =
        self::plan(&["check", "--watch", "2s", "--prometheus", "x.prom"]).command
    else {
        panic!("check expected")
    };
    assert_eq!(check.watch, Some(Duration::from_secs(2)));
    let plan = self::plan(&["check", "--watch", "2", "--for", "5m", "-o", "x.json"]);
    assert_eq!(plan.output.file.as_deref(), Some("x.json".as_ref()));
    let Command::Check(watched) = plan.command else {
        panic!("check expected")
    };
    assert_eq!(watched.duration, Some(Duration::from_secs(300)));
    assert_eq!(
        check.prometheus.as_deref(),
        Some(std::path::Path::new("x.prom"))
    );
    for odd in [
        &["check", "--near-percent", "101"][..],
        &["check", "--until", "3"],
        &["--until", "3", "check"],
        &["--all-children", "check"],
        &["check", "--all-children"],
        &["check", "--pid", "0"],
        &["check", "--watch", "0"],
        &["check", "--for", "5m"],
        &["-o", "x.json", "check"],
    ] {
        assert_eq!(refused(odd).exit_code(), 2, "{odd:?}");
    }
}

#[test]
fn check_tells_what_common_options_mean_to_it() {
    for help in ["--help", "-h"] {
        let help = refused(&["check", help]).to_string();
        for part in [
            "--json",
            "check-schema.json",
            "--quiet",
            "the exit status",
            "--verbose",
        ] {
            assert!(help.contains(part), "{part}: {help}");
        }
        for part in ["--method", "fexit", "totals", "notices", "verifier"] {
            assert!(!help.contains(part), "{part}: {help}");
        }
    }
    let help = refused(&["trace", "--help"]).to_string();
    assert!(help.contains("--method") && help.contains("totals only"));
    // Before and after the word.
    for arguments in [
        ["--json", "-q", "-v", "--color", "never", "check"],
        ["check", "--json", "-q", "-v", "--color", "never"],
        ["-q", "--json", "check", "--color", "never", "-v"],
    ] {
        let output = plan(&arguments).output;
        assert!(output.json, "{arguments:?}");
        assert_eq!((output.quiet, output.verbose), (1, 1), "{arguments:?}");
        assert_eq!(output.color, Color::Never, "{arguments:?}");
    }
    // Without a meaning, but scripts may have it.
    let plan = plan(&["check", "--method", "kprobe"]);
    assert_eq!(plan.command, Command::Check(CheckPlan::default()));
}
