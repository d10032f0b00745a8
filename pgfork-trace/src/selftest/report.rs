//! What was expected, what was said, and whether that is right. Pure.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    output::line::{Errno, Method},
    verdict::{Cause, Certainty, Scope, Verdict},
};

/// Version of the document.
pub const SCHEMA: &str = "pgfork-trace-selftest/1";

/// A way to be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// A user without any other process, limited to one.
    RlimitNproc,
    /// A pids cgroup made for it.
    PidsCgroup,
    /// A pid namespace whose first process has ended.
    PidNamespace,
    /// A process under `SCHED_DEADLINE`.
    Deadline,
    /// A seccomp filter on clone and fork.
    Seccomp,
}

impl Test {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 5] = [
        Self::RlimitNproc,
        Self::PidsCgroup,
        Self::PidNamespace,
        Self::Deadline,
        Self::Seccomp,
    ];

    /// What is done, for people.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::RlimitNproc => "a user with no other process, limited to one",
            Self::PidsCgroup => "a pids cgroup made for it, limited to one task",
            Self::PidNamespace => "a pid namespace whose first process has ended",
            Self::Deadline => "a process under SCHED_DEADLINE",
            Self::Seccomp => "a seccomp filter that refuses clone",
        }
    }

    /// What the kernel does, and what has to be said of it.
    #[must_use]
    pub const fn expected(self) -> (Cause, i32) {
        match self {
            Self::RlimitNproc => (Cause::RlimitNproc, libc::EAGAIN),
            Self::PidsCgroup => (Cause::PidsCgroupMax, libc::EAGAIN),
            Self::PidNamespace => (Cause::PidNamespaceDying, libc::ENOMEM),
            Self::Deadline => (Cause::SchedDeadlineFork, libc::EAGAIN),
            Self::Seccomp => (Cause::SeccompDenied, libc::EPERM),
        }
    }
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The refusal was seen, and its cause named.
    Right,
    /// Another cause was named, or none.
    Wrong,
    /// The child was refused, and nothing was seen of it.
    NotSeen,
    /// The child could not be brought to be refused here.
    Skipped,
}

impl Outcome {
    /// Whether something is not as it should be.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Wrong | Self::NotSeen)
    }
}

/// What the kernel does, and what has to be said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Expected {
    /// Cause.
    pub cause: Cause,
    /// Error that the child gets.
    pub errno: Errno,
}

/// What was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Said {
    /// Cause.
    pub cause: Cause,
    /// How sure.
    pub certainty: Certainty,
    /// Why that sure.
    pub because: String,
    /// Whose limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Error that was seen; absent when it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
}

/// One test: one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Report {
    /// Format.
    #[schemars(extend("const" = SCHEMA))]
    pub schema: &'static str,
    /// When: UTC, RFC 3339 with microseconds.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// Which.
    pub test: Test,
    /// What was done, for people.
    pub what: &'static str,
    /// Method in use.
    pub method: Method,
    /// How it ended.
    pub outcome: Outcome,
    /// What has to be.
    pub expected: Expected,
    /// Error that the child got; absent when it was not refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
    /// What was said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub said: Option<Said>,
    /// Why it is not right, or was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What came of one test.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Got {
    /// It could not be done, and why.
    pub(super) skipped: Option<String>,
    /// Error that the child got, 0 when it was not refused.
    pub(super) errno: i32,
    /// The cgroup that has to be blamed.
    pub(super) cgroup: Option<String>,
    /// Error in the record.
    pub(super) seen_errno: Option<i32>,
    /// The verdict; none: nothing was seen.
    pub(super) verdict: Option<Verdict>,
}

impl Got {
    pub(super) fn skipped(why: String) -> Self {
        Self {
            skipped: Some(why),
            ..Self::default()
        }
    }
}

/// Judges one test.
pub(super) fn report(test: Test, method: Method, got: &Got, time: String) -> Report {
    let (cause, errno) = test.expected();
    let (outcome, why) = judge(cause, errno, got);
    let named = |errno: i32| Errno::from_ret(-errno);
    Report {
        schema: SCHEMA,
        time,
        test,
        what: test.what(),
        method,
        outcome,
        expected: Expected {
            cause,
            errno: named(errno),
        },
        errno: Some(got.errno).filter(|errno| *errno != 0).map(named),
        said: got.verdict.as_ref().map(|verdict| Said {
            cause: verdict.cause,
            certainty: verdict.certainty,
            because: verdict.because.clone(),
            scope: verdict.scope.clone(),
            errno: got.seen_errno.map(named),
        }),
        why,
    }
}

fn judge(cause: Cause, errno: i32, got: &Got) -> (Outcome, Option<String>) {
    let name = |errno: i32| Errno::from_ret(-errno).name;
    if let Some(why) = &got.skipped {
        return (Outcome::Skipped, Some(why.clone()));
    }
    if got.errno == 0 {
        let why = "the kernel did not refuse it".to_owned();
        return (Outcome::Skipped, Some(why));
    }
    // Something else of this host came first: what is said of that cannot be checked.
    if got.errno != errno {
        let why = format!(
            "the child was refused with {} instead of {}: by something else",
            name(got.errno),
            name(errno)
        );
        return (Outcome::Skipped, Some(why));
    }
    let Some(verdict) = &got.verdict else {
        return (
            Outcome::NotSeen,
            Some("no record of it came from the kernel side".to_owned()),
        );
    };
    let wrong = |why: String| (Outcome::Wrong, Some(why));
    if let Some(seen) = got.seen_errno.filter(|seen| *seen != errno) {
        return wrong(format!(
            "the child got {}, and {} was seen",
            name(errno),
            name(seen)
        ));
    }
    if verdict.cause != cause || verdict.certainty == Certainty::Unknown {
        return wrong(format!(
            "{} [{}] was said",
            verdict.cause.id(),
            verdict.certainty.name()
        ));
    }
    if let Some(wanted) = &got.cgroup {
        match &verdict.scope {
            Some(Scope::Cgroup {
                path: Some(path), ..
            }) if path == wanted => {}
            _ => return wrong(format!("the limit is that of the cgroup {wanted}")),
        }
    }
    (Outcome::Right, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    fn verdict(cause: Cause, certainty: Certainty) -> Verdict {
        samples::verdict(cause, certainty, "so")
    }

    fn refused(verdict: Option<Verdict>) -> Got {
        Got {
            errno: libc::EAGAIN,
            seen_errno: Some(libc::EAGAIN),
            verdict,
            ..Got::default()
        }
    }

    fn outcome(got: &Got) -> Outcome {
        let of = report(Test::PidsCgroup, Method::Fexit, got, String::new());
        assert_eq!(of.why.is_none(), of.outcome == Outcome::Right);
        of.outcome
    }

    #[test]
    fn right_is_the_cause_with_some_certainty() {
        for certainty in [Certainty::Observed, Certainty::Deduced] {
            let got = refused(Some(verdict(Cause::PidsCgroupMax, certainty)));
            assert_eq!(outcome(&got), Outcome::Right);
            // errno cannot be read with every C library.
            let unread = Got {
                seen_errno: None,
                ..got
            };
            assert_eq!(outcome(&unread), Outcome::Right);
        }
    }

    #[test]
    fn another_cause_errno_or_cgroup_is_wrong() {
        let unsure = refused(Some(verdict(Cause::PidsCgroupMax, Certainty::Unknown)));
        assert_eq!(outcome(&unsure), Outcome::Wrong);
        let other = refused(Some(verdict(Cause::ThreadsMax, Certainty::Observed)));
        assert_eq!(outcome(&other), Outcome::Wrong);
        let right = refused(Some(verdict(Cause::PidsCgroupMax, Certainty::Observed)));
        let errno = Got {
            seen_errno: Some(libc::ENOMEM),
            ..right.clone()
        };
        assert_eq!(outcome(&errno), Outcome::Wrong);
        let mut elsewhere = Got {
            cgroup: Some("/a/test".to_owned()),
            ..right
        };
        assert_eq!(outcome(&elsewhere), Outcome::Wrong);
        let scope = |path: &str| Scope::Cgroup {
            path: Some(path.to_owned()),
            cgroup_id: 1,
            ancestor: 0,
            unit: None,
            property: "pids.max".to_owned(),
            container: None,
        };
        let blame = |got: &mut Got, path| {
            got.verdict.as_mut().unwrap().scope = Some(scope(path));
        };
        blame(&mut elsewhere, "/a");
        assert_eq!(outcome(&elsewhere), Outcome::Wrong);
        blame(&mut elsewhere, "/a/test");
        assert_eq!(outcome(&elsewhere), Outcome::Right);
    }

    #[test]
    fn a_refusal_without_a_record_is_not_seen() {
        let got = refused(None);
        assert_eq!(outcome(&got), Outcome::NotSeen);
        assert!(outcome(&got).is_failure());
    }

    #[test]
    fn what_could_not_be_provoked_is_no_failure() {
        assert_eq!(outcome(&Got::skipped("no".to_owned())), Outcome::Skipped);
        assert_eq!(outcome(&Got::default()), Outcome::Skipped);
        let other = Got {
            errno: libc::ENOMEM,
            ..refused(Some(verdict(Cause::CommitLimit, Certainty::Observed)))
        };
        assert_eq!(outcome(&other), Outcome::Skipped);
        assert!(!Outcome::Skipped.is_failure());
    }
}
