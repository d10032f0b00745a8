//! Tests of numbers: printed terms add up, and doubts are said.

use super::{super::super::samples, *};
use crate::verdict::NprocLevelEvidence;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn with(change: impl FnOnce(&mut OvercommitEvidence)) -> Vec<String> {
    let mut overcommit = samples::overcommit();
    change(&mut overcommit);
    commit_limit(&overcommit, true)
}

/// Numbers of a row that have a unit, as printed.
fn terms(row: &str) -> Vec<f64> {
    let words: Vec<&str> = row.split(['(', ')', ',', ';', ' ']).collect();
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if !["B", "KiB", "MiB"].contains(word) {
            continue;
        }
        let is_number = |it: &&&str| it.starts_with(|c: char| c.is_ascii_digit());
        let mut groups: Vec<&str> = words[..at]
            .iter()
            .rev()
            .take_while(is_number)
            .copied()
            .collect();
        groups.reverse();
        found.push(groups.concat().parse().unwrap());
    }
    found
}

#[test]
fn printed_terms_add_up() {
    let shifts = [0, 1, 4 * KIB, 64 * KIB, MIB / 2, MIB, 777 * KIB];
    for (reserve, committed) in shifts.iter().flat_map(|a| shifts.map(|b| (*a, b))) {
        let rows = with(|it| {
            it.requested_bytes = Some(MIB);
            it.fork_charge_bytes = None;
            it.commit_limit_bytes = Some(5_000 * MIB);
            it.admin_reserve_bytes = Some(8 * MIB);
            it.user_reserve_bytes = Some(reserve);
            it.usable_bytes = Some(4_992 * MIB - reserve);
            it.committed_bytes = Some(4_992 * MIB - committed);
        });
        let promised = terms(&rows[1]);
        let usable = terms(&rows[2]);
        let [taken, of, rest] = promised[..] else {
            panic!("{rows:?}")
        };
        let rest = if rows[1].ends_with(" over") {
            -rest
        } else {
            rest
        };
        assert_eq!(of - taken, rest, "{rows:?}");
        let [limit, admin, user] = usable[..] else {
            panic!("{rows:?}")
        };
        assert_eq!(limit - admin - user, of, "{rows:?}");
        let units = ["B", "KiB", "MiB"]
            .map(|unit| rows[1..3].concat().matches(&format!(" {unit}")).count());
        assert_eq!(units.iter().filter(|it| **it > 0).count(), 1, "{rows:?}");
    }
}

#[test]
fn numbers_that_would_not_refuse_are_explained() {
    let rows = with(|it| it.requested_bytes = Some(92 * KIB));
    assert_eq!(
        rows[3],
        "4 KiB would be left: the kernel's counter is approximate by up to 512 KiB"
    );
    let rows = with(|it| {
        it.requested_bytes = Some(92 * KIB);
        it.counter_skew_bytes = Some(0);
    });
    assert_eq!(
        rows[3],
        "4 KiB would be left: the numbers were read a moment apart"
    );
    // Equal refuses: usable has to stay above.
    assert_eq!(with(|it| it.requested_bytes = Some(96 * KIB)).len(), 4);
}

#[test]
fn ram_is_called_plenty_only_above_a_tenth() {
    let said = |available| {
        with(|it| {
            it.mem_total_bytes = Some(1_000 * MIB);
            it.mem_available_bytes = Some(available);
        })
        .concat()
        .contains("RAM is not short")
    };
    assert!(!said(100 * MIB));
    assert!(said(101 * MIB));
}

#[test]
fn absent_numbers_are_not_made_up() {
    assert!(commit_limit(&OvercommitEvidence::default(), true).is_empty());
    let rows = with(|it| {
        it.usable_bytes = None;
        it.fork_charge_bytes = None;
        it.admin_reserve_bytes = None;
    });
    assert_eq!(rows[0], "asked for 148 KiB (this mapping)");
    assert_eq!(
        rows[1],
        "Committed_AS 12 689 408 KiB of CommitLimit 12 703 744 KiB"
    );
    assert_eq!(rows.len(), 3);
    let rows = with(|it| (it.committed_bytes, it.committed_after_bytes) = (None, None));
    assert_eq!(rows[1], "CommitLimit 12 703 744 KiB");
}

#[test]
fn levels_of_a_path() {
    let level = |tasks, limit| CgroupLevel {
        cgroup_id: 7,
        path: None,
        unit: None,
        property: "pids.max".to_owned(),
        container: Some("7f3c1b2a90de4455".to_owned()),
        tasks,
        limit,
    };
    let evidence = Evidence {
        pids: vec![level(3, None), level(5, Some(9)), level(6, Some(6))],
        ..Evidence::default()
    };
    assert_eq!(
        pids(&evidence, false),
        [
            "6 tasks of 6 in cgroup id 7 (pids.max, container 7f3c1b2a90de), and asked for 1 more",
            "on the same path: 5 tasks of 9 in cgroup id 7",
        ]
    );
    // None is full by now: the one with the least room.
    let evidence = Evidence {
        pids: vec![level(3, None), level(5, Some(9)), level(4, Some(6))],
        ..Evidence::default()
    };
    assert!(pids(&evidence, false)[0].starts_with("4 tasks of 6 in"));
    assert!(pids(&Evidence::default(), false).is_empty());
    // Of a refusal that was seen, although a slot is free by now.
    assert!(pids(&evidence, true)[0].ends_with(", read a moment later"));
}

#[test]
fn user_namespaces() {
    let level = |userns_inum, tasks, limit| NprocLevelEvidence {
        userns_inum,
        tasks,
        limit,
    };
    let mut evidence = NprocEvidence {
        uid: None,
        exempt: Some(true),
        levels: vec![level(INITIAL_USERNS, 10, None)],
        truncated: false,
        user_tasks: Vec::new(),
    };
    assert_eq!(
        nproc(&evidence, false),
        ["10 tasks of no limit for the user (exempt)"]
    );
    evidence.uid = Some(999);
    evidence.exempt = None;
    evidence.levels = vec![level(40, 1, Some(9)), level(INITIAL_USERNS, 9, Some(9))];
    assert_eq!(
        nproc(&evidence, false),
        ["9 tasks of 9 for the creator of a user namespace, and asked for 1 more"]
    );
    evidence.levels.reverse();
    evidence.levels[1].limit = Some(1);
    evidence.levels[0].limit = None;
    assert_eq!(
        nproc(&evidence, false),
        [
            "1 task of 1 for the creator of a user namespace, in user namespace 40, and asked for 1 more"
        ]
    );
}
