//! Looking again and again: what changed since the look before.

use std::time::Duration;

use super::report::{Report, Trend};

/// Adds to every limit how it moved since `before`, which was `elapsed` ago.
pub(super) fn add_trends(report: &mut Report, before: &Report, elapsed: Duration) {
    let elapsed_ms = elapsed.as_millis().max(1);
    for server in &mut report.servers {
        let Some(earlier) = before.servers.iter().find(|it| it.pid == server.pid) else {
            continue;
        };
        for limit in &mut server.limits {
            let row = &limit.row;
            let same = |it: &&super::LimitReport| {
                it.row.limit == row.limit && it.row.place == row.place && it.row.max == row.max
            };
            let Some(earlier) = earlier.limits.iter().find(same) else {
                continue;
            };
            let used_change = i128::from(row.used) - i128::from(earlier.row.used);
            let grown = u128::try_from(used_change).unwrap_or(0);
            let full_in_s = row.room.filter(|_| grown > 0).map(|room| {
                let ms = u128::from(room).saturating_mul(elapsed_ms) / grown.max(1);
                u64::try_from(ms / 1000).unwrap_or(u64::MAX)
            });
            limit.trend = Some(Trend {
                used_change: i64::try_from(used_change).unwrap_or(i64::MAX),
                over_ms: u64::try_from(elapsed_ms).unwrap_or(u64::MAX),
                full_in_s,
            });
        }
    }
}
