//! Totals of one watched process, as they are reported. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use pgfork_trace_common::{ClientKey, HISTOGRAM_BUCKETS, Totals as Counted, bucket_floor};

use super::below::Below;
use crate::{
    output::line::{ClientCount, Connects, DETAILS_LOST, ForkTime, Postmaster, Totals},
    verdict::client::{Origin, origin},
};

/// Most clients that are named; the rest is counted together.
const NAMED_CLIENTS: usize = 10;

/// Completes the kernel side's exact counts with the causes that were judged.
pub(super) fn totals(
    postmaster: Postmaster,
    counted: &Counted,
    by_cause: &BTreeMap<String, u64>,
) -> Totals {
    Totals {
        postmaster,
        merged: 0,
        forks: counted.forks + counted.refused,
        refused: counted.refused,
        restarted: counted.restarted,
        lost: counted.lost,
        untracked: counted.untracked + counted.missed,
        refused_by_cause: with_lost(by_cause, counted.refused),
        fork_time_ns: fork_time(&counted.histogram),
        connections: None,
        ..Totals::default()
    }
}

/// Adds the counts of one process to those of another.
pub(super) fn add(to: &mut Counted, from: &Counted) {
    to.forks += from.forks;
    to.refused += from.refused;
    to.restarted += from.restarted;
    to.lost += from.lost;
    to.untracked += from.untracked;
    to.missed += from.missed;
    to.child_forks += from.child_forks;
    to.child_refused += from.child_refused;
    for (to, from) in to.histogram.iter_mut().zip(from.histogram) {
        *to += from;
    }
}

/// Connections to postmaster `tgid`, which forked `forks` times, over the time `watched`, out of
/// all counts. `None` when none of its forks was looked at.
pub(super) fn connections(
    counts: &[(ClientKey, u64)],
    tgid: u32,
    forks: u64,
    watched: Duration,
) -> Option<Connects> {
    // The same address may be counted as IPv4 and as IPv4 in IPv6.
    let mut by_origin: HashMap<Origin, u64> = HashMap::new();
    for (key, count) in counts.iter().filter(|(key, _)| key.tgid == tgid) {
        if let Some(origin) = origin(key) {
            *by_origin.entry(origin).or_default() += count;
        }
    }
    if by_origin.is_empty() {
        return None;
    }
    let without_client = by_origin.remove(&Origin::Nobody).unwrap_or(0);
    let connects: u64 = by_origin.values().sum();
    let mut sorted: Vec<(Origin, u64)> = by_origin.into_iter().collect();
    sorted.sort_unstable_by_key(|(origin, count)| (std::cmp::Reverse(*count), *origin));
    let others = sorted.split_off(sorted.len().min(NAMED_CLIENTS));
    let clients = sorted
        .into_iter()
        .map(|(origin, connects)| ClientCount {
            address: match origin {
                Origin::Address(address) => Some(address),
                _ => None,
            },
            uid: match origin {
                Origin::Uid(uid) => Some(uid),
                _ => None,
            },
            connects,
            connects_per_second: per_second(connects, watched),
        })
        .collect();
    Some(Connects {
        connects,
        connects_per_second: per_second(connects, watched),
        without_client,
        unattributed: forks.saturating_sub(connects + without_client),
        clients,
        other_clients: others.len() as u64,
        other_connects: others.iter().map(|(_, count)| count).sum(),
    })
}

/// To three decimals: more would be noise.
fn per_second(count: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64().max(0.001);
    (count as f64 / seconds * 1000.0).round() / 1000.0
}

/// Adds what was counted below the process, as far as it is seen.
pub(super) fn add_children(
    totals: &mut Totals,
    counted: &Counted,
    below: Below,
    by_cause: &BTreeMap<String, u64>,
    memory_by_cause: &BTreeMap<String, u64>,
) {
    if below.forks {
        totals.child_forks = Some(counted.child_forks + counted.child_refused);
        totals.child_refused = Some(counted.child_refused);
        totals.child_refused_by_cause = with_lost(by_cause, counted.child_refused);
    }
    if below.memory {
        totals.memory_refusals = Some(memory_by_cause.clone());
    }
}

/// Causes that were judged, and how many refusals were counted beyond that.
fn with_lost(by_cause: &BTreeMap<String, u64>, refused: u64) -> BTreeMap<String, u64> {
    let mut all = by_cause.clone();
    let judged: u64 = by_cause.values().sum();
    let details_lost = refused.saturating_sub(judged);
    if details_lost > 0 {
        all.insert(DETAILS_LOST.to_owned(), details_lost);
    }
    all
}

fn fork_time(histogram: &[u64; HISTOGRAM_BUCKETS]) -> Option<ForkTime> {
    Some(ForkTime {
        p50: percentile(histogram, 50)?,
        p99: percentile(histogram, 99)?,
    })
}

/// The nearest-rank percentile, as the middle of its bucket (an eighth of a power of two wide).
fn percentile(histogram: &[u64; HISTOGRAM_BUCKETS], percent: u64) -> Option<u64> {
    let all: u64 = histogram.iter().sum();
    if all == 0 {
        return None;
    }
    let rank = (all * percent).div_ceil(100).max(1);
    let mut seen = 0;
    let bucket = histogram.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    let bucket = u32::try_from(bucket).ok()?;
    Some(u64::midpoint(
        bucket_floor(bucket),
        bucket_floor(bucket + 1),
    ))
}

#[cfg(test)]
mod tests {
    use pgfork_trace_common::bucket_of;

    use crate::capture::NO_TOTALS;

    use super::*;

    #[test]
    fn percentiles_are_within_their_bucket() {
        let mut histogram = [0; HISTOGRAM_BUCKETS];
        assert_eq!(fork_time(&histogram), None);
        histogram[bucket_of(420_000) as usize] = 98;
        histogram[bucket_of(3_100_000) as usize] = 2;
        let time = fork_time(&histogram).unwrap();
        assert!(time.p50.abs_diff(420_000) < 420_000 / 8, "{}", time.p50);
        assert!(time.p99.abs_diff(3_100_000) < 3_100_000 / 8, "{}", time.p99);
    }

    fn key(tgid: u32, family: i32, last: u8) -> ClientKey {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[10, 0, 0, last]);
        ClientKey {
            tgid,
            family: u32::try_from(family).unwrap(),
            uid: u32::from(last),
            address,
        }
    }

    #[test]
    fn connections_by_client() {
        let mut counts = vec![
            (key(1, libc::AF_INET, 1), 6),
            (key(1, libc::AF_UNIX, 26), 9),
            (key(1, 0, 0), 4),
            (key(2, libc::AF_INET, 1), 1000),
        ];
        let mut mapped = ClientKey {
            family: libc::AF_INET6 as u32,
            ..key(1, 0, 0)
        };
        mapped.address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        counts.push((mapped, 4));
        let time = Duration::from_secs(10);
        let found = connections(&counts, 1, 25, time).unwrap();
        assert_eq!((found.connects, found.without_client), (19, 4));
        assert_eq!(found.unattributed, 2);
        // Read a moment later than the number of forks.
        assert_eq!(connections(&counts, 1, 22, time).unwrap().unattributed, 0);
        assert!((found.connects_per_second - 1.9).abs() < 1e-9);
        assert_eq!(found.clients.len(), 2);
        assert_eq!(
            (found.clients[0].address, found.clients[0].connects),
            (Some([10, 0, 0, 1].into()), 10)
        );
        assert_eq!(
            (found.clients[1].uid, found.clients[1].connects),
            (Some(26), 9)
        );
        assert_eq!(connections(&counts, 3, 0, time), None);
    }

    #[test]
    fn many_clients_are_bounded_and_none_is_lost() {
        let counts: Vec<_> = (0..200)
            .map(|last| (key(1, libc::AF_INET, last), 1 + u64::from(last)))
            .collect();
        let found = connections(&counts, 1, 0, Duration::ZERO).unwrap();
        assert_eq!(found.clients.len(), NAMED_CLIENTS);
        assert_eq!(found.clients[0].connects, 200);
        assert_eq!(found.other_clients, 190);
        let named: u64 = found.clients.iter().map(|it| it.connects).sum();
        assert_eq!(named + found.other_connects, found.connects);
        // A moment's rate is large, not infinite.
        assert!(found.connects_per_second.is_finite());
    }

    #[test]
    fn what_is_not_watched_is_absent_not_zero() {
        let counted = Counted {
            forks: 10,
            refused: 1,
            child_forks: 5,
            child_refused: 3,
            ..NO_TOTALS
        };
        let causes = BTreeMap::from([("rlimit_nproc".to_owned(), 2)]);
        let of = |forks, memory| {
            let mut all = totals(Postmaster::default(), &counted, &BTreeMap::new());
            add_children(
                &mut all,
                &counted,
                Below { forks, memory },
                &causes,
                &causes,
            );
            all
        };
        let none = of(false, false);
        assert_eq!((none.child_forks, none.child_refused), (None, None));
        assert!(none.child_refused_by_cause.is_empty() && none.memory_refusals.is_none());
        let all = of(true, true);
        // The watched process's own are apart.
        assert_eq!((all.forks, all.refused), (11, 1));
        assert_eq!((all.child_forks, all.child_refused), (Some(8), Some(3)));
        assert_eq!(all.child_refused_by_cause["details_lost"], 1);
        assert_eq!(all.memory_refusals, Some(causes.clone()));
    }

    #[test]
    fn refusals_without_a_record_are_shown_as_such() {
        let counted = Counted {
            forks: 10,
            refused: 7,
            lost: 2,
            missed: 1,
            ..NO_TOTALS
        };
        let by_cause = BTreeMap::from([("commit_limit".to_owned(), 5)]);
        let totals = totals(Postmaster::default(), &counted, &by_cause);
        assert_eq!(totals.forks, 17);
        assert_eq!(totals.refused_by_cause["details_lost"], 2);
        assert_eq!(
            totals.refused_by_cause.values().sum::<u64>(),
            totals.refused
        );
        assert_eq!(totals.untracked, 1);
    }
}
