//! Text against files: `testdata/*.txt`. `PGFORK_TRACE_BLESS=1` rewrites them.

use super::super::{
    line::{End, EndReason, Notice},
    samples::{self, HOSTILE, time},
};
use super::*;

#[path = "text/children_tests.rs"]
mod children;

fn text(color: bool) -> Text {
    Text::new(options(color))
}

fn options(color: bool) -> TextOptions {
    TextOptions {
        color,
        time_zone: TimeZone::UTC,
        quiet: 0,
        verbose: 0,
        details: true,
    }
}

fn golden(name: &str, shown: &str) {
    let path = format!(
        "{}/src/output/testdata/{name}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("PGFORK_TRACE_BLESS").is_some() {
        std::fs::write(&path, shown).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shown, wanted, "{path}");
}

fn refused(refusal: &super::super::line::Refusal) -> Line {
    Line::Refusal(Box::new(refusal.clone()))
}

#[test]
fn refusals() {
    for (name, refusal) in samples::refusals() {
        let shown = text(false).line(time("12:03:04.123456"), &refused(&refusal));
        golden(name, &shown);
        // Every block reads alike in colour.
        let colored = text(true).line(time("12:03:04.123456"), &refused(&refusal));
        assert!(colored.contains("\x1b[1;31mREFUSED\x1b[0m"));
        assert_eq!(without_colors(&colored), shown);
    }
}

fn without_colors(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        out += &rest[..at];
        rest = &rest[at..];
        rest = &rest[rest.find('m').unwrap() + 1..];
    }
    out + rest
}

#[test]
fn a_whole_run() {
    let mut text = text(false);
    let mut out = text.line(
        time("12:03:00"),
        &samples::start(
            vec![
                samples::postmaster(),
                samples::in_container(),
                samples::pooler(),
            ],
            &["a", "b"],
        ),
    );
    let commit = refused(&samples::commit_limit());
    out += &text.line(time("12:03:04.123456"), &commit);
    for _ in 0..412 {
        out += &text.line(time("12:03:04.5"), &commit);
    }
    out += &text.tick(time("12:03:05.2"));
    out += &text.tick(time("12:03:06.2"));
    out += &text.line(
        time("12:03:07"),
        &Notice::line("fallback", "fexit is refused here, so kprobe is used"),
    );
    out += &text.line(time("12:03:08"), &samples::change(Change::Gone, None));
    out += &text.line(
        time("12:03:09"),
        &samples::change(Change::Restarted, Some(2_210)),
    );
    out += &text.line(time("12:03:10"), &samples::change(Change::Appeared, None));
    out += &text.line(
        time("12:03:11"),
        &Line::Lost(Lost {
            what: LostWhat::Records,
            count: 1,
        }),
    );
    out += &text.line(time("12:03:12"), &commit);
    out += &text.line(time("12:03:12"), &commit);
    out += &text.line(
        time("12:03:14"),
        &Line::Totals(samples::totals(
            samples::postmaster(),
            1_204,
            &[("commit_limit", 415)],
        )),
    );
    out += &text.line(time("12:03:14"), &Line::End(samples::end(415, 0, true)));
    out += &text.finish(time("12:03:14"));
    golden("run", &out);
}

#[test]
fn header_without_a_postmaster_and_in_detail() {
    let mut waiting = text(false);
    let shown = waiting.line(time("12:00:00"), &samples::start(Vec::new(), &[]));
    assert_eq!(
        shown,
        "Waiting for a postmaster on kernel 6.1.0-50-cloud-amd64: 17 probes (fexit), attached in 0.19 s. Ctrl-C stops.\n"
    );
    let mut verbose = Text::new(TextOptions {
        verbose: 1,
        ..options(false)
    });
    let shown = verbose.line(
        time("12:00:00"),
        &samples::start(vec![samples::pooler()], &["dup_fd: not in BTF"]),
    );
    assert!(shown.starts_with("Watching 1 process on"), "{shown}");
    assert!(
        shown.ends_with("  77  pgbouncer\nCannot be seen here:\n  dup_fd: not in BTF\n"),
        "{shown}"
    );
}

#[test]
fn summaries_are_honest() {
    let end = |totals: &[Totals], end: End| summary::end(&end, totals);
    let pm = samples::postmaster;
    let mut shaky = samples::totals(
        samples::pooler(),
        10,
        &[("unknown", 1), ("details_lost", 2)],
    );
    shaky.restarted = 4;
    shaky.untracked = 5;
    shaky.fork_time_ns = None;
    let mut shown = end(&[samples::totals(pm(), 1, &[])], samples::end(0, 0, true));
    shown += &end(
        &[samples::totals(pm(), 1_204, &[]), shaky],
        samples::end(3, 7, false),
    );
    shown += &end(&[], samples::end(0, 0, true));
    let connected = Totals {
        connections: Some(samples::connects()),
        ..samples::totals(pm(), 1_204, &[("commit_limit", 413)])
    };
    shown += &end(&[connected], samples::end(413, 0, true));
    shown += &end(
        &[samples::totals(pm(), 5, &[("details_lost", 1)])],
        End {
            reason: EndReason::NoMore,
            ..samples::end(1, 1, true)
        },
    );
    let idle = samples::totals(samples::pooler(), 0, &[]);
    let busy = Totals {
        merged: 12,
        ..samples::totals(samples::pooler(), 40, &[("rlimit_nproc", 2)])
    };
    let several = [&[busy][..], &vec![idle; 9]].concat();
    shown += &end(&several, samples::end(2, 0, true));
    golden("summaries", &shown);
}

#[test]
fn quiet_and_people() {
    let refusal = refused(&samples::commit_limit());
    let lines = [
        samples::start(vec![samples::postmaster()], &[]),
        Notice::line("x", "a notice"),
        refusal,
        Line::Totals(samples::totals(samples::postmaster(), 1, &[])),
        Line::End(samples::end(0, 0, true)),
    ];
    let show = |options: TextOptions| {
        let mut text = Text::new(options);
        let out: String = lines
            .iter()
            .map(|line| text.line(time("12:00:00"), line))
            .collect();
        ["Watching", "a notice", "REFUSED", "accounted for"].map(|part| out.contains(part))
    };
    assert_eq!(show(options(false)), [true, true, true, true]);
    assert_eq!(
        show(TextOptions {
            quiet: 1,
            ..options(false)
        }),
        [false, false, true, true]
    );
    assert_eq!(
        show(TextOptions {
            quiet: 2,
            ..options(false)
        }),
        [false, false, false, true]
    );
    assert_eq!(
        show(TextOptions {
            details: false,
            ..options(false)
        }),
        [true, true, false, true]
    );
}

#[test]
fn times_are_local_and_a_new_day_is_said() {
    let mut text = Text::new(TextOptions {
        time_zone: TimeZone::fixed(jiff::tz::offset(2)),
        ..options(false)
    });
    let first = text.line(time("21:59:59"), &Notice::line("x", "one"));
    let second = text.line(time("22:00:01"), &Notice::line("x", "two"));
    assert_eq!(
        first + &second,
        "23:59:59      note: one\n\n2026-03-02\n00:00:01      note: two\n"
    );
}

#[test]
fn totals_without_an_end_are_still_said() {
    let mut text = text(false);
    let refusal = refused(&samples::commit_limit());
    text.line(time("12:00:00"), &refusal);
    text.line(time("12:00:00.1"), &refusal);
    let held = text.line(
        time("12:00:01"),
        &Line::Totals(samples::totals(
            samples::postmaster(),
            2,
            &[("commit_limit", 2)],
        )),
    );
    assert_eq!(held, "");
    let shown = text.finish(time("12:00:02"));
    assert!(
        shown.contains("1 more refusal, same cause (postmaster 1843)\n"),
        "{shown}"
    );
    assert!(
        shown.contains("Postmaster 1843: 2 forks, 2 refused (commit_limit 2)."),
        "{shown}"
    );
    assert_eq!(text.finish(time("12:00:03")), "");
}

#[test]
fn nothing_hostile_reaches_the_terminal() {
    let bad = samples::hostile();
    let mut start = vec![bad.postmaster.clone()];
    start.push(Postmaster {
        data_dir: Some(HOSTILE.to_owned()),
        ..bad.postmaster.clone()
    });
    let mut lines = vec![
        samples::start(start, &[HOSTILE]),
        Notice::line("x", HOSTILE),
        Line::Postmaster(PostmasterChange {
            event: Change::Appeared,
            postmaster: bad.postmaster.clone(),
            previous_pid: None,
            killed_by: None,
        }),
        Line::Totals(samples::totals(bad.postmaster.clone(), 1, &[])),
        Line::End(samples::end(0, 0, true)),
    ];
    lines.extend(samples::refusals().iter().map(|(_, it)| refused(it)));
    let mut text = Text::new(TextOptions {
        verbose: 1,
        ..options(false)
    });
    for line in &lines {
        let shown = text.line(time("12:00:00"), line);
        let unsafe_char = shown
            .chars()
            .find(|c| *c != '\n' && super::super::escape::is_unsafe(*c));
        assert_eq!(unsafe_char, None, "{shown:?}");
        // A forged line would begin so.
        let forged = shown
            .lines()
            .filter(|it| it.starts_with("12:00:00  REFUSED  \\u"))
            .count();
        assert_eq!(forged, 0, "{shown}");
        assert!(
            shown.lines().all(|line| line.chars().count() < 4_200),
            "{shown}"
        );
    }
}

#[test]
fn what_was_lost_is_said_in_its_own_words() {
    for (what, words) in [
        (LostWhat::Records, "details of 2 refusals"),
        (LostWhat::Returns, "2 returns"),
        (LostWhat::Attempts, "2 forks not followed"),
        (LostWhat::Events, "2 records of refused memory, kills"),
    ] {
        let line = Line::Lost(Lost { what, count: 2 });
        let text = text(false).line(time("12:03:11"), &line);
        assert!(text.contains(words), "{text}");
    }
}
