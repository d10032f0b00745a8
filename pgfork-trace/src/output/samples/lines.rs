//! Lines other than refusals, and all of them together.

use std::collections::BTreeMap;

use super::{
    super::line::{
        Change, ClientCount, Connects, End, EndReason, ForkTime, Line, Lost, LostWhat, Method,
        Notice, Postmaster, PostmasterChange, Refused, Repeat, Start, Totals,
    },
    children, in_container, pooler, postmaster, refusals,
};
use crate::verdict::{Cause, Certainty, Scope};

pub(in crate::output) fn start(postmasters: Vec<Postmaster>, not_seen: &[&str]) -> Line {
    Line::Start(Start {
        tool_version: "0.1.0".to_owned(),
        kernel: "6.1.0-50-cloud-amd64".to_owned(),
        method: Method::Fexit,
        probes: 17,
        attach_ns: 190_000_000,
        not_seen: not_seen.iter().map(|it| (*it).to_owned()).collect(),
        postmasters,
        names: Vec::new(),
    })
}

pub(in crate::output) fn repeat(refusals: u64) -> Line {
    Line::Repeat(Repeat {
        postmaster: postmaster(),
        refused: Refused::Fork,
        cause: Cause::CommitLimit,
        certainty: Certainty::Observed,
        scope: Some(Scope::Host),
        refusals,
    })
}

pub(in crate::output) fn change(event: Change, previous_pid: Option<u32>) -> Line {
    Line::Postmaster(PostmasterChange {
        event,
        postmaster: in_container(),
        previous_pid,
        killed_by: None,
    })
}

pub(in crate::output) fn totals(
    postmaster: Postmaster,
    forks: u64,
    causes: &[(&str, u64)],
) -> Totals {
    let refused_by_cause: BTreeMap<String, u64> = causes
        .iter()
        .map(|(cause, count)| ((*cause).to_owned(), *count))
        .collect();
    Totals {
        postmaster,
        forks,
        refused: refused_by_cause.values().sum(),
        refused_by_cause,
        fork_time_ns: Some(ForkTime {
            p50: 420_000,
            p99: 3_100_000,
        }),
        ..Totals::default()
    }
}

/// Eleven addresses and a local user.
pub(in crate::output) fn connects() -> Connects {
    let count = |address: Option<&str>, uid, connects: u32| ClientCount {
        address: address.map(|it| it.parse().unwrap()),
        uid,
        connects: connects.into(),
        connects_per_second: f64::from(connects) / 134.0,
    };
    Connects {
        connects: 1_190,
        connects_per_second: 8.881,
        without_client: 14,
        unattributed: 0,
        clients: vec![
            count(Some("10.0.3.17"), None, 1_100),
            count(None, Some(1000), 60),
            count(Some("2001:db8::7"), None, 20),
            count(Some("10.0.3.18"), None, 6),
        ],
        other_clients: 2,
        other_connects: 4,
    }
}

pub(in crate::output) fn end(refusals: u64, lost: u64, accounted: bool) -> End {
    End {
        watched_ns: 134_000_000_000,
        refusals,
        memory_refusals: None,
        oom_kills: 0,
        lost,
        reason: EndReason::Signal,
        accounted,
    }
}

/// One of every kind of line, full and sparse.
pub(in crate::output) fn all() -> Vec<Line> {
    let mut lines = vec![
        start(
            vec![postmaster(), in_container(), pooler()],
            &["dup_fd: not in BTF"],
        ),
        start(Vec::new(), &[]),
        repeat(412),
        change(Change::Appeared, None),
        change(Change::Gone, None),
        change(Change::Restarted, Some(5)),
        Notice::line("proc_hidden", "other users' processes are hidden: hidepid"),
        Line::Totals(Totals {
            connections: Some(connects()),
            ..totals(postmaster(), 1_204, &[("commit_limit", 413)])
        }),
        Line::Totals(Totals::default()),
        Line::End(end(413, 0, true)),
    ];
    for what in [
        LostWhat::Records,
        LostWhat::Returns,
        LostWhat::Attempts,
        LostWhat::Events,
    ] {
        lines.push(Line::Lost(Lost { what, count: 3 }));
    }
    for reason in [EndReason::Duration, EndReason::Until, EndReason::NoMore] {
        lines.push(Line::End(End {
            reason,
            ..end(0, 2, false)
        }));
    }
    let totals_of_all = Totals {
        child_forks: Some(31),
        child_refused: Some(2),
        child_refused_by_cause: BTreeMap::from([("details_lost".to_owned(), 2)]),
        memory_refusals: Some(BTreeMap::from([("rlimit_as".to_owned(), 2)])),
        oom_kills: 1,
        ..totals(postmaster(), 9, &[])
    };
    lines.push(Line::Totals(totals_of_all));
    lines.push(Line::End(End {
        memory_refusals: Some(2),
        oom_kills: 1,
        ..end(2, 0, true)
    }));
    let Line::Postmaster(gone) = change(Change::Gone, None) else {
        unreachable!()
    };
    lines.push(Line::Postmaster(PostmasterChange {
        killed_by: Some(children::by_bash()),
        ..gone
    }));
    lines.extend(children::all());
    lines.extend(
        refusals()
            .into_iter()
            .map(|(_, it)| Line::Refusal(Box::new(it))),
    );
    lines
}
