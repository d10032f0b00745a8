//! The text as people see it. `PGFORK_TRACE_BLESS=1` rewrites the files.

use super::*;

#[track_caller]
fn golden(file: &str, text: &str) {
    let path = format!(
        "{}/src/output/testdata/{file}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("PGFORK_TRACE_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, wanted, "{file}");
}

/// What differs from run to run is set.
fn report(fake: &FakeRoot) -> Report {
    let mut report = look(fake.root(), &Filter::default(), Near::default()).unwrap();
    report.took_us = 12_345;
    "2026-01-02T03:04:05.000000Z".clone_into(&mut report.time);
    for origin in report.servers.iter_mut().flat_map(|it| &mut it.origins) {
        origin.modified = None;
    }
    report
}

#[test]
fn a_unit_with_few_tasks_left() {
    golden("check_pids", &text_of(&report(&busy())));
}

#[test]
fn everything_with_v() {
    let fake = busy();
    fake.write("etc/sysctl.d/10-a.conf", "vm.overcommit_ratio = 80\n");
    fake.write("etc/sysctl.d/20-b.conf", "vm.overcommit_ratio = 90\n");
    let report = report(&fake);
    let around = Surroundings {
        stdout_terminal: false,
        stderr_terminal: false,
        no_color: true,
        time_zone: jiff::tz::TimeZone::UTC,
    };
    let options = OutputOptions {
        verbose: 1,
        ..OutputOptions::default()
    };
    golden("check_verbose", &check_text(&report, &options, &around));
    let short = text_of(&report);
    assert!(short.contains("1 line that is overridden (-v)"), "{short}");
    assert!(!short.contains("10-a.conf"), "{short}");
}

#[test]
fn a_server_that_is_slowed_down() {
    let fake = busy();
    let unit = "sys/fs/cgroup/app.slice/pg.service";
    fake.write(format!("{unit}/pids.max"), "max\n");
    fake.write(format!("{unit}/memory.high"), "83886080\n");
    let report = report(&fake);
    let summary = &report.servers[0].summary;
    assert!(
        summary.starts_with(
            "MemoryHigh in pg.service slows the server down now: 80 MiB of 80 MiB taken. "
        ),
        "{summary}"
    );
    assert!(report.near > 0);
    golden("check_slow", &text_of(&report));
}

#[test]
fn strict_overcommit_is_short() {
    let fake = busy();
    fake.write("sys/fs/cgroup/app.slice/pg.service/pids.max", "max\n");
    let status = std::fs::read_to_string(fake.path("proc/700/status")).unwrap();
    fake.write("proc/700/status", status + "VmSize:\t  327680 kB\n");
    fake.write(
        "proc/meminfo",
        "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n\
         CommitLimit: 1048576 kB\nCommitted_AS: 1034288 kB\nSReclaimable: 3072 kB\nSUnreclaim: 1024 kB\n",
    );
    golden("check_commit", &text_of(&report(&fake)));
}

#[test]
fn as_another_user_with_little_to_see() {
    let fake = FakeRoot::new();
    fake.data_dir("data", "/data", 700, 5432);
    fake.process(&FakeProcess::postgres(700, "data"));
    golden("check_sparse", &text_of(&report(&fake)));
}

#[test]
fn the_screen_of_watch() {
    let around = Surroundings {
        stdout_terminal: false,
        stderr_terminal: false,
        no_color: true,
        time_zone: jiff::tz::TimeZone::UTC,
    };
    let text = watch_text(&report(&busy()), &OutputOptions::default(), &around);
    golden("check_watch", &text);
}
