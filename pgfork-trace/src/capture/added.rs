//! Checks that are attached while a watch runs, and what was watched before them.

use crate::{kernel::plan::Hook, verdict::Coverage};

/// Checks that were attached after the start.
pub(super) struct Added {
    pub(super) hooks: Vec<Hook>,
    pub(super) probes: usize,
    /// `CLOCK_MONOTONIC` in nanoseconds when all of them were.
    pub(super) since_ns: u64,
    /// What was watched without them.
    pub(super) before: Coverage,
}

/// What was watched during the whole of an attempt that began at `start_ns`: a check that was
/// attached while it ran, or while its record waited, may have refused unseen. What was `added`
/// is in the order of its attaching.
pub(super) fn during<'a>(
    now: &'a Coverage,
    added: impl IntoIterator<Item = &'a Added>,
    start_ns: u64,
) -> &'a Coverage {
    let mut added = added.into_iter();
    let late = added.find(|added| start_ns < added.since_ns);
    late.map_or(now, |added| &added.before)
}

#[cfg(test)]
mod tests {
    use pgfork_trace_common::Check;

    use super::*;
    use crate::kernel::plan::Method;

    fn watched(checks: &[Check]) -> Coverage {
        Coverage {
            method: Method::Fexit,
            hooked: checks.iter().copied().collect(),
            not_seen: Vec::new(),
            syscalls: false,
        }
    }

    #[test]
    fn an_attempt_from_before_a_check_was_attached_is_not_watched_by_it() {
        let base = watched(&[Check::KernelClone]);
        let strict = watched(&[Check::KernelClone, Check::VmEnoughMemory]);
        let armed = watched(&[Check::KernelClone, Check::VmEnoughMemory, Check::TryCharge]);
        let added = |since_ns, before: &Coverage| Added {
            hooks: Vec::new(),
            probes: 0,
            since_ns,
            before: before.clone(),
        };
        let both = [added(100, &base), added(200, &strict)];
        let sees = |start_ns, check| during(&armed, &both, start_ns).sees(check);
        for (start_ns, strict, armed) in [
            (99, false, false),
            (100, true, false),
            (199, true, false),
            (200, true, true),
        ] {
            assert!(sees(start_ns, Check::KernelClone), "{start_ns}");
            assert_eq!(sees(start_ns, Check::VmEnoughMemory), strict, "{start_ns}");
            assert_eq!(sees(start_ns, Check::TryCharge), armed, "{start_ns}");
        }
        assert!(during(&armed, [], 0).sees(Check::TryCharge));
    }
}
