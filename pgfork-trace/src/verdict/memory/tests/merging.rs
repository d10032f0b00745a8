//! Tests of putting records together.

use super::{
    super::merge::{OPEN_NS, WINDOW_NS},
    *,
};

fn push_all(merger: &mut Merger, records: &[MemoryRefusal]) -> Vec<Request> {
    records
        .iter()
        .flat_map(|record| merger.push(*record))
        .collect()
}

fn at(record: MemoryRefusal, ns: u64) -> MemoryRefusal {
    MemoryRefusal {
        time_ns: record.time_ns + ns,
        ..record
    }
}

fn of_thread(record: MemoryRefusal, tid: u32) -> MemoryRefusal {
    MemoryRefusal { tid, ..record }
}

/// The ways in which one malloc asks, and the checks inside of each.
fn malloc(start_ns: u64) -> Vec<MemoryRefusal> {
    let expand = |bytes| asking(Check::MayExpandVm, 0, bytes);
    vec![
        at(expand(GIB), start_ns),
        at(expand(GIB), start_ns + 1_000),
        at(mmap(GIB), start_ns + 2_000),
        at(expand(GIB + MIB), start_ns + 10_000),
        at(brk(GIB + MIB), start_ns + 11_000),
        at(expand(GIB + 2 * MIB), start_ns + 20_000),
        at(mmap(GIB + 2 * MIB), start_ns + 21_000),
    ]
}

#[test]
fn one_malloc_is_one_request() {
    let mut merger = Merger::default();
    assert!(push_all(&mut merger, &malloc(0)).is_empty());
    assert!(merger.expire(1_000_000_000 + WINDOW_NS - 1).is_empty());
    let done = merger.expire(1_000_000_000 + WINDOW_NS);
    assert_eq!(done.len(), 1);
    let calls: Vec<(usize, u32)> = done[0]
        .calls
        .iter()
        .map(|call| (call.inner.len(), call.outer.unwrap().check))
        .collect();
    let (mmap, brk) = (Check::VmMmapPgoff as u32, Check::DoBrkFlags as u32);
    assert_eq!(calls, [(2, mmap), (1, brk), (1, mmap)]);
    assert!(merger.expire(u64::MAX).is_empty());
}

#[test]
fn the_next_malloc_begins_with_the_same_call_or_after_the_window() {
    let mut merger = Merger::default();
    let mut records = malloc(0);
    records.extend(malloc(100_000));
    records.extend(malloc(200_000));
    let mut done = push_all(&mut merger, &records);
    assert_eq!(done.len(), 2);
    done.extend(push_all(
        &mut merger,
        &[at(mmap(5 * MIB), 200_000 + WINDOW_NS)],
    ));
    assert_eq!(done.len(), 3);
    for request in &done {
        assert_eq!(request.records().count(), 7);
        assert_eq!(request.calls[0].inner.len(), 2);
    }
    assert_eq!(merger.drain().len(), 1);
}

/// The processor may be taken from a thread between the check that refuses and the return of the call.
#[test]
fn a_call_that_is_running_waits_for_its_own_function() {
    let late = 4 * WINDOW_NS;
    let expand = asking(Check::MayExpandVm, 0, GIB);
    let records = [
        expand,
        at(expand, late),
        at(mmap(GIB), late + 1),
        at(mmap(GIB), 2 * late),
    ];
    let mut merger = Merger::default();
    assert!(push_all(&mut merger, &records[..2]).is_empty());
    assert!(merger.expire(expand.time_ns + OPEN_NS - 1).is_empty());
    let done = push_all(&mut merger, &records[2..]);
    assert_eq!(done.len(), 1, "what is whole ends with the window");
    assert_eq!(done[0].calls.len(), 1);
    assert_eq!(done[0].records().count(), 3);
    // Not for ever, and not with another call.
    for (other, ns) in [
        (mmap(GIB), OPEN_NS),
        (mmap(2 * GIB), late),
        (asking(Check::GetUnmappedArea, -libc::ENOMEM, GIB), late),
    ] {
        let mut merger = Merger::default();
        let done = push_all(&mut merger, &[expand, at(other, ns)]);
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].records().count(), 1);
    }
    // Shared memory has no function around its check.
    let mut merger = Merger::default();
    merger.push(expand);
    assert_eq!(merger.expire(expand.time_ns + OPEN_NS).len(), 1);
}

#[test]
fn threads_are_kept_apart() {
    let mut merger = Merger::default();
    let records: Vec<MemoryRefusal> = malloc(0)
        .into_iter()
        .flat_map(|record| [of_thread(record, 5), of_thread(record, 6)])
        .collect();
    assert!(push_all(&mut merger, &records).is_empty());
    let done = merger.drain();
    assert_eq!(done.len(), 2);
    assert!(done.iter().all(|request| request.records().count() == 7));
}

#[test]
fn nothing_grows_without_bound_and_nothing_is_dropped() {
    let mut merger = Merger::default();
    let mut sent = 0;
    let mut records = Vec::new();
    for number in 0..100 {
        records.push(mmap(MIB + number * PAGE));
        records.push(asking(Check::MlockFuture, 0, MIB + number * PAGE));
    }
    records.extend([asking(Check::MayExpandVm, 0, MIB); 100]);
    sent += records.len();
    let mut done = push_all(&mut merger, &records);
    assert!(done.len() > 3);
    for tid in 0..3000 {
        sent += 1;
        done.extend(merger.push(of_thread(mmap(MIB), tid)));
    }
    done.extend(merger.drain());
    let got: usize = done.iter().map(|request| request.records().count()).sum();
    assert_eq!(got, sent);
    assert!(done.iter().all(|request| request.first().is_some()));
}
