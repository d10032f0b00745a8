//! Tests of folding. Times are data; no clock is read.

use super::{
    super::samples::{self, time},
    *,
};
use crate::verdict::Change;

const PACE: Pace = Pace {
    count: SignedDuration::from_secs(1),
    whole: SignedDuration::from_secs(60),
};

fn counts(repeats: &[Repeat]) -> Vec<u64> {
    repeats.iter().map(|repeat| repeat.refusals).collect()
}

fn shown(seen: &Seen) -> (Vec<u64>, bool) {
    (counts(&seen.repeats), seen.whole)
}

#[test]
fn first_is_whole_and_repeats_are_counted_once_a_second() {
    let (mut fold, refusal) = (Fold::new(PACE), samples::commit_limit());
    assert_eq!(shown(&fold.see(time("12:00:00"), &refusal)), (vec![], true));
    for _ in 0..3 {
        assert_eq!(
            shown(&fold.see(time("12:00:00.9"), &refusal)),
            (vec![], false)
        );
    }
    assert!(fold.due(time("12:00:00.99")).is_empty());
    assert_eq!(counts(&fold.due(time("12:00:01"))), [3]);
    assert!(fold.due(time("12:00:05")).is_empty());
    // Due without a tick too, with itself counted.
    assert_eq!(
        shown(&fold.see(time("12:00:05"), &refusal)),
        (vec![1], false)
    );
    assert_eq!(
        shown(&fold.see(time("12:00:05.5"), &refusal)),
        (vec![], false)
    );
    assert_eq!(counts(&fold.drain(time("12:00:05.6"))), [1]);
    assert!(fold.drain(time("12:00:05.7")).is_empty());
}

#[test]
fn whole_again_after_a_minute_with_the_count_before_it() {
    let (mut fold, refusal) = (Fold::new(PACE), samples::commit_limit());
    fold.see(time("12:00:00"), &refusal);
    fold.see(time("12:00:59.9"), &refusal);
    fold.see(time("12:00:59.95"), &refusal);
    assert_eq!(
        shown(&fold.see(time("12:01:00"), &refusal)),
        (vec![1], true)
    );
    // And a minute of silence leaves nothing behind.
    assert!(fold.due(time("12:02:00")).is_empty());
    assert_eq!(fold.len(), 0);
}

#[test]
fn numbers_alone_change_nothing() {
    let (mut fold, mut refusal) = (Fold::new(PACE), samples::commit_limit());
    fold.see(time("12:00:00"), &refusal);
    refusal.verdict.evidence.overcommit = None;
    refusal.verdict.because = refusal.verdict.because.replace("in this", "in 17 this");
    refusal.verdict.remedy[0].change = Change::Command("sysctl vm.overcommit_ratio=62".to_owned());
    refusal.duration_ns = Some(1);
    refusal.process.comm = None;
    // Digits are no difference, words are.
    assert!(fold.see(time("12:00:00"), &refusal).whole);
    let mut refusal = samples::commit_limit();
    refusal.verdict.remedy[0].change = Change::Command("sysctl vm.overcommit_ratio=62".to_owned());
    refusal.verdict.evidence.overcommit = None;
    assert!(!fold.see(time("12:00:00"), &refusal).whole);
}

#[test]
fn another_process_cause_scope_or_errno_is_shown_whole() {
    let mut fold = Fold::new(PACE);
    let now = time("12:00:00");
    let base = samples::pids();
    assert!(fold.see(now, &base).whole);
    let mut others = vec![
        samples::commit_limit(),
        samples::nproc(),
        samples::unknown(),
    ];
    let mut changed = |change: fn(&mut Refusal)| {
        let mut other = base.clone();
        change(&mut other);
        others.push(other);
    };
    changed(|it| it.postmaster.pid = 1);
    changed(|it| it.errno = None);
    changed(|it| it.verdict.certainty = Certainty::Deduced);
    changed(|it| it.verdict.scope = None);
    changed(|it| it.verdict.check = None);
    changed(|it| it.verdict.stage = Some("dup_fd"));
    changed(|it| it.verdict.not_seen = vec!["x".to_owned()]);
    changed(|it| it.verdict.remedy.clear());
    for other in &others {
        assert!(fold.see(now, other).whole);
    }
    for other in others.iter().chain([&base]) {
        assert!(!fold.see(now, other).whole);
    }
    // Two that alternate do not make a storm of blocks.
    assert_eq!(counts(&fold.drain(now)), vec![1; others.len() + 1]);
}

#[test]
fn clock_set_back_stalls_nothing() {
    let (mut fold, refusal) = (Fold::new(PACE), samples::commit_limit());
    fold.see(time("12:00:00"), &refusal);
    fold.see(time("12:00:00"), &refusal);
    assert_eq!(counts(&fold.due(time("11:00:00"))), [1]);
    assert!(fold.see(time("11:00:00"), &refusal).whole);
    assert!(!fold.see(time("11:00:00.1"), &refusal).whole);
}

#[test]
fn many_kinds_are_bounded_and_every_refusal_is_counted() {
    let mut fold = Fold::new(PACE);
    let (mut whole, mut counted) = (0, 0);
    for round in 0..3 {
        for pid in 0..200 {
            let mut refusal = samples::pids();
            refusal.postmaster.pid = pid;
            for _ in 0..2 {
                let seen = fold.see(time("12:00:00"), &refusal);
                whole += u64::from(seen.whole);
                counted += counts(&seen.repeats).iter().sum::<u64>();
            }
        }
        assert_eq!(fold.len(), MOST, "round {round}");
    }
    counted += counts(&fold.drain(time("12:00:01"))).iter().sum::<u64>();
    assert_eq!(whole + counted, 3 * 200 * 2);
}

#[test]
fn counting_shows_nothing_until_it_is_due() {
    let (mut fold, refusal) = (Fold::new(PACE), samples::commit_limit());
    for _ in 0..5 {
        assert!(fold.count(time("12:00:00"), &refusal).is_empty());
    }
    assert!(fold.count(time("12:00:09"), &refusal).is_empty());
    assert_eq!(counts(&fold.due(time("12:00:09"))), [6]);
}

#[test]
fn memory_is_folded_across_backends_and_apart_from_forks() {
    use super::super::samples::children;
    let mut fold = Fold::new(PACE);
    let first = children::rlimit_as();
    assert!(fold.see(time("12:00:00"), &first).whole);
    let mut other = children::rlimit_as();
    other.process.pid += 1;
    other.process.title = None;
    assert!(!fold.see(time("12:00:00"), &other).whole);
    // Another kind of process, another limit behind it: another block.
    other.process.role = Some(crate::postgres::Role::Helper);
    assert!(fold.see(time("12:00:00"), &other).whole);
    let due = fold.due(time("12:00:01"));
    assert_eq!(counts(&due), [1]);
    assert_eq!(due[0].refused, Refused::Memory);
    // A fork of the postmaster, and one in a program.
    let mut fork = samples::nproc();
    assert!(fold.see(time("12:00:01"), &fork).whole);
    fork.process = children::in_program().process;
    assert!(fold.see(time("12:00:01"), &fork).whole);
}
