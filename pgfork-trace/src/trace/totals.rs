//! Totals of one watched process, as they are reported. Pure.

use std::collections::BTreeMap;

use pgfork_trace_common::{HISTOGRAM_BUCKETS, Totals as Counted, bucket_floor};

use crate::output::line::{DETAILS_LOST, ForkTime, Postmaster, Totals};

/// Completes the kernel side's exact counts with the causes that were judged.
pub(super) fn totals(
    postmaster: Postmaster,
    counted: &Counted,
    by_cause: &BTreeMap<String, u64>,
) -> Totals {
    let mut refused_by_cause = by_cause.clone();
    let judged: u64 = by_cause.values().sum();
    let details_lost = counted.refused.saturating_sub(judged);
    if details_lost > 0 {
        refused_by_cause.insert(DETAILS_LOST.to_owned(), details_lost);
    }
    Totals {
        postmaster,
        forks: counted.forks + counted.refused,
        refused: counted.refused,
        restarted: counted.restarted,
        lost: counted.lost,
        untracked: counted.untracked + counted.missed,
        refused_by_cause,
        fork_time_ns: fork_time(&counted.histogram),
    }
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
