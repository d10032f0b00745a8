//! Looking again and again: what changed over the looks that are kept.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    LimitReport,
    report::{Report, Trend},
    summary,
};

/// Looks that a trend is computed from: one alone is noise.
const KEPT: usize = 10;

/// The last looks.
#[derive(Debug, Default)]
pub(super) struct Trends {
    looks: VecDeque<(Instant, Report)>,
}

impl Trends {
    /// Adds to every limit how it moved up to `now`, and keeps the report.
    pub(super) fn add(&mut self, report: &mut Report, now: Instant) {
        for server in &mut report.servers {
            for limit in &mut server.limits {
                let earlier = self.earlier(server.pid, limit, now);
                limit.trend = trend(&earlier, limit);
            }
            summary::renew(server);
        }
        self.looks.push_back((now, report.clone()));
        if self.looks.len() > KEPT {
            self.looks.pop_front();
        }
    }

    /// Time before `now` in milliseconds and what was used then, newest first, as long as it was
    /// the same limit.
    fn earlier(&self, pid: u32, limit: &LimitReport, now: Instant) -> Vec<(i128, i128)> {
        let used = |report: &Report| {
            let server = report.servers.iter().find(|it| it.pid == pid)?;
            let same = |it: &&LimitReport| {
                it.row.limit == limit.row.limit
                    && it.row.place == limit.row.place
                    && it.row.max == limit.row.max
            };
            Some(i128::from(server.limits.iter().find(same)?.row.used))
        };
        self.looks
            .iter()
            .rev()
            .map_while(|(then, report)| {
                let ago = now.saturating_duration_since(*then).as_millis();
                Some((-i128::try_from(ago).ok()?, used(report)?))
            })
            .collect()
    }
}

/// The line that fits best (least squares) through what was used then and what is used now.
fn trend(earlier: &[(i128, i128)], limit: &LimitReport) -> Option<Trend> {
    let &(oldest, _) = earlier.last()?;
    let window = -oldest;
    let now = i128::from(limit.row.used);
    // Relative to now: products stay small.
    let points = earlier.iter().map(|(at, used)| (*at, used - now));
    let points: Vec<(i128, i128)> = points.chain([(0, 0)]).collect();
    let count = i128::try_from(points.len()).ok()?;
    let sum = |of: fn(&(i128, i128)) -> i128| {
        points
            .iter()
            .try_fold(0_i128, |sum, point| sum.checked_add(of(point)))
    };
    let (times, used) = (sum(|it| it.0)?, sum(|it| it.1)?);
    let products = sum(|it| it.0.saturating_mul(it.1))?;
    let squares = sum(|it| it.0.saturating_mul(it.0))?;
    let grown = (count.checked_mul(products)?).checked_sub(times.checked_mul(used)?)?;
    let span = (count.checked_mul(squares)?).checked_sub(times.checked_mul(times)?)?;
    if span <= 0 {
        return None;
    }
    let change = grown.checked_mul(window)? / span;
    let full_in_s = limit.row.room.filter(|_| grown > 0).and_then(|room| {
        let ms = i128::from(room).checked_mul(span)? / grown;
        u64::try_from(ms / 1000).ok()
    });
    Some(Trend {
        used_change: i64::try_from(change).ok()?,
        over_ms: u64::try_from(window).ok()?,
        full_in_s: full_in_s.filter(|_| change > 0),
    })
}

/// When to look, and when to stop.
pub(super) trait Clock {
    /// Now.
    fn now(&self) -> Instant;
    /// Waits so long. Whether to stop instead of going on.
    fn pause(&mut self, pause: Duration) -> bool;
}

/// The real one: Ctrl-C and SIGTERM end a pause, and are not taken meanwhile.
pub(super) struct Signals(libc::sigset_t);

impl Signals {
    pub(super) fn catch() -> std::io::Result<Self> {
        let mut set = std::mem::MaybeUninit::uninit();
        // SAFETY: the set is initialized first, and valid for writing and reading.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            set
        };
        Ok(Self(set))
    }
}

impl Clock for Signals {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn pause(&mut self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let time = libc::timespec {
                tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            // SAFETY: set and time are valid for reading; nothing is written.
            let signal = unsafe {
                libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const time)
            };
            let interrupted =
                std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
            match signal {
                -1 if interrupted => {}
                signal => return signal > 0,
            }
        }
    }
}
