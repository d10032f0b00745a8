//! Text about what happens below the watched processes, against files.

use super::*;
use super::{
    super::super::{
        line::{KilledBy, Process, Role},
        samples::{self, children, time},
    },
    golden, text, without_colors,
};

#[test]
fn memory_refusals() {
    for (name, refusal) in children::memory_refusals() {
        let line = Line::MemoryRefusal(Box::new(refusal));
        let shown = text(false).line(time("12:03:04.123456"), &line);
        golden(name, &shown);
        let colored = text(true).line(time("12:03:04.123456"), &line);
        assert!(colored.contains("\x1b[1;31mMEMORY\x1b[0m"));
        assert_eq!(without_colors(&colored), shown);
        assert!(!shown.contains(HOSTILE));
    }
}

#[test]
fn oom_kills() {
    for (name, kill) in children::oom_kills() {
        let shown = text(false).line(time("12:03:04.123456"), &Line::OomKill(Box::new(kill)));
        golden(name, &shown);
    }
}

#[test]
fn a_storm_of_kills_is_counted() {
    let mut text = text(false);
    let killed = |pid| {
        let target = Process {
            pid,
            ..children::backend()
        };
        children::killed(target, children::by_bash())
    };
    let mut out = String::new();
    for pid in 1..=500 {
        out += &text.line(time("12:00:00"), &killed(pid));
    }
    // The postmaster itself is told in any case.
    out += &text.line(time("12:00:00"), &killed(1843));
    out += &text.tick(time("12:00:00.9"));
    assert_eq!(out.lines().count(), 4, "{out}");
    assert_eq!(
        text.tick(time("12:00:01")),
        "12:00:01      SIGKILL by process 77 (bash), uid 0 for 497 more processes of postmaster 1843 (port 5432)\n"
    );
    assert_eq!(text.tick(time("12:00:09")), "");
    // Later ones are told again, and the end keeps nothing back.
    for pid in 1..=4 {
        let shown = text.line(time("12:00:10"), &killed(pid));
        assert_eq!(shown.is_empty(), pid == 4);
    }
    assert!(
        text.finish(time("12:00:10"))
            .contains(" for 1 more process of")
    );
}

#[test]
fn a_run_with_children() {
    let mut text = text(false);
    let memory = Line::MemoryRefusal(Box::new(children::rlimit_as()));
    let mut out = text.line(time("12:03:04"), &memory);
    // Another backend, for the same reason.
    let mut other = children::rlimit_as();
    other.process.pid = 2211;
    other.process.title = Some("postgres: other db [local] SELECT".to_owned());
    out += &text.line(time("12:03:04.2"), &Line::MemoryRefusal(Box::new(other)));
    out += &text.tick(time("12:03:05.2"));
    out += &text.line(
        time("12:03:06"),
        &Line::Refusal(Box::new(children::in_program())),
    );
    for killed_by in [children::by_bash(), KilledBy::Kernel, KilledBy::OomKiller] {
        out += &text.line(
            time("12:03:07"),
            &children::killed(children::backend(), killed_by),
        );
    }
    let itself = Process {
        pid: 1843,
        role: Some(Role::Postmaster),
        ..Process::default()
    };
    out += &text.line(
        time("12:03:08"),
        &children::killed(itself, children::by_bash()),
    );
    for killed_by in [children::by_bash(), KilledBy::OomKiller] {
        out += &text.line(
            time("12:03:09"),
            &Line::Postmaster(PostmasterChange {
                event: Change::Gone,
                postmaster: samples::postmaster(),
                previous_pid: None,
                killed_by: Some(killed_by),
            }),
        );
    }
    let causes = |all: &[(&str, u64)]| {
        all.iter()
            .map(|(cause, count)| ((*cause).to_owned(), *count))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let totals = Totals {
        child_forks: Some(31),
        child_refused: Some(2),
        child_refused_by_cause: causes(&[("rlimit_nproc", 1), ("details_lost", 1)]),
        memory_refusals: Some(causes(&[("rlimit_as", 2)])),
        oom_kills: 1,
        ..samples::totals(samples::postmaster(), 1_204, &[])
    };
    out += &text.line(time("12:03:14"), &Line::Totals(totals));
    out += &text.line(time("12:03:14"), &Line::End(samples::end(2, 0, true)));
    golden("children", &out);
}
