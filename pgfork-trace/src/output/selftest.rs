//! `selftest` as text and as JSON: one line for each test.

use schemars::generate::SchemaSettings;

use super::{escape::sentence, json, units::counted};
use crate::selftest::{Outcome, Report};

/// The JSON schema of a line.
#[must_use]
pub fn selftest_schema() -> serde_json::Value {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Report>()
        .to_value()
}

/// A test as JSON, with its line feed.
#[must_use]
pub fn selftest_document(report: &Report) -> Vec<u8> {
    json::document(report)
}

/// A test as text.
#[must_use]
pub fn selftest_text(report: &Report) -> String {
    let outcome = match report.outcome {
        Outcome::Right => "right",
        Outcome::Wrong => "WRONG",
        Outcome::NotSeen => "NOT SEEN",
        Outcome::Skipped => "skipped",
    };
    let mut out = format!("{outcome:<9} {}\n", report.what);
    let row = |label: &str, text: &str| format!("          {label:<9} {text}\n");
    if report.outcome != Outcome::Skipped {
        out += &row(
            "expected",
            &format!(
                "{}, {}",
                report.expected.cause.id(),
                report.expected.errno.name
            ),
        );
    }
    if let Some(said) = &report.said {
        let errno = said.errno.as_ref();
        let errno = errno.map_or("errno not read", |errno| errno.name.as_str());
        out += &row(
            "said",
            &format!("{}, {errno} [{}]", said.cause.id(), said.certainty.name()),
        );
        out += &row("because", &sentence(&said.because));
    }
    if let Some(why) = &report.why {
        out += &row("why", &sentence(why));
    }
    out
}

/// The last line.
#[must_use]
pub fn selftest_summary(reports: &[Report]) -> String {
    let number = |outcome| reports.iter().filter(|it| it.outcome == outcome).count() as u64;
    let mut parts = vec![format!(
        "{} right",
        counted(number(Outcome::Right), "test", "tests")
    )];
    for (outcome, word) in [
        (Outcome::Wrong, "wrong"),
        (Outcome::NotSeen, "not seen"),
        (Outcome::Skipped, "skipped"),
    ] {
        match number(outcome) {
            0 => {}
            count => parts.push(format!("{count} {word}")),
        }
    }
    let method = reports
        .first()
        .map(|report| format!(" ({})", report.method.name()))
        .unwrap_or_default();
    format!("{}{method}.\n", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::{
            line::{Errno, Method},
            samples::HOSTILE,
        },
        selftest::{Expected, SCHEMA, Said, Test},
        verdict::{Cause, Certainty, Scope},
    };

    fn report(outcome: Outcome, said: bool, why: Option<&str>) -> Report {
        let errno = Errno::from_ret(-libc::EAGAIN);
        Report {
            schema: SCHEMA,
            time: "2026-03-01T12:03:04.123456Z".to_owned(),
            test: Test::RlimitNproc,
            what: Test::RlimitNproc.what(),
            method: Method::Fexit,
            outcome,
            expected: Expected {
                cause: Cause::RlimitNproc,
                errno: errno.clone(),
            },
            errno: said.then(|| errno.clone()),
            said: said.then(|| Said {
                cause: Cause::RlimitNproc,
                certainty: Certainty::Observed,
                because: HOSTILE.to_owned(),
                scope: Some(Scope::Host),
                errno: Some(errno),
            }),
            why: why.map(str::to_owned),
        }
    }

    fn all() -> Vec<Report> {
        vec![
            report(Outcome::Right, true, None),
            report(Outcome::Wrong, true, Some("threads_max [deduced] was said")),
            report(Outcome::NotSeen, false, Some("no record")),
            report(Outcome::Skipped, false, Some(HOSTILE)),
        ]
    }

    #[test]
    fn schema_is_the_committed_one_and_every_line_is_valid() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/selftest-schema.json");
        let schema = selftest_schema();
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("PGFORK_TRACE_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(path).unwrap());
        let validator = jsonschema::validator_for(&schema).unwrap();
        for report in all() {
            let line = selftest_document(&report);
            let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert!(validator.is_valid(&value), "{value:#}");
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        }
    }

    #[test]
    fn text_says_what_was_expected_and_what_was_said() {
        let all = all();
        let right = selftest_text(&all[0]);
        assert!(right.starts_with("right     a user with no other process, limited to one\n"));
        assert!(
            right.contains("expected  rlimit_nproc, EAGAIN\n"),
            "{right}"
        );
        assert!(
            right.contains("said      rlimit_nproc, EAGAIN [observed]\n"),
            "{right}"
        );
        assert!(selftest_text(&all[1]).starts_with("WRONG "));
        let unseen = selftest_text(&all[2]);
        assert!(unseen.starts_with("NOT SEEN ") && unseen.contains("why       no record\n"));
        let skipped = selftest_text(&all[3]);
        assert!(skipped.starts_with("skipped ") && !skipped.contains("expected"));
        for text in [right, skipped] {
            assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'));
        }
        assert_eq!(
            selftest_summary(&all),
            "1 test right, 1 wrong, 1 not seen, 1 skipped (fexit).\n"
        );
        assert_eq!(
            selftest_summary(&vec![all[0].clone(); 5]),
            "5 tests right (fexit).\n"
        );
    }
}
