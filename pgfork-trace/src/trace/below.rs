//! What is seen below the watched processes. Pure.

use pgfork_trace_common::Check;

use crate::{kernel::plan::Method, verdict::Coverage};

/// Functions that end a request for memory; one of them is enough to see most requests.
const REQUESTS: [Check; 2] = [Check::VmMmapPgoff, Check::DoBrkFlags];

/// What `--all-children` comes to on this kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Below {
    /// Forks of descendants.
    pub(super) forks: bool,
    /// Requests for memory.
    pub(super) memory: bool,
}

impl Below {
    /// What of that which was `asked` for is seen.
    pub(super) fn new(asked: bool, coverage: &Coverage) -> Self {
        Self {
            // The uretprobe of that method is on the watched process alone.
            forks: asked && (coverage.method != Method::Tracepoint || coverage.syscalls),
            memory: asked && REQUESTS.iter().any(|check| coverage.sees(*check)),
        }
    }

    /// What cannot be seen, in words for people; `None` when all is, or was not asked for.
    pub(super) fn not_seen(self, asked: bool) -> Option<&'static str> {
        match (asked, self.forks, self.memory) {
            (false, ..) | (_, true, true) => None,
            (_, true, false) => Some(
                "requests for memory cannot be watched here: --all-children shows refused forks only",
            ),
            (_, false, true) => Some(
                "forks of descendants cannot be watched here: --all-children shows refused requests for memory only",
            ),
            (_, false, false) => Some(
                "neither forks of descendants nor requests for memory can be watched here: --all-children shows nothing",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coverage(method: Method, hooked: &[Check]) -> Coverage {
        Coverage {
            method,
            hooked: hooked.iter().copied().collect(),
            not_seen: Vec::new(),
            syscalls: false,
        }
    }

    #[test]
    fn what_is_not_seen_is_said_and_not_counted() {
        let all = coverage(Method::Fexit, &[Check::KernelClone, Check::VmMmapPgoff]);
        let forks = coverage(Method::Kprobe, &[Check::KernelClone]);
        let none = coverage(Method::Tracepoint, &[]);
        assert_eq!(Below::new(false, &all), Below::default());
        assert_eq!(Below::new(false, &all).not_seen(false), None);
        assert_eq!(Below::new(true, &all).not_seen(true), None);
        let below = Below::new(true, &forks);
        assert!(below.forks && !below.memory);
        assert!(below.not_seen(true).unwrap().contains("forks only"));
        assert_eq!(Below::new(true, &none), Below::default());
        let syscalls = Coverage {
            syscalls: true,
            ..none.clone()
        };
        assert_eq!(Below::new(true, &syscalls), Below::new(true, &forks));
        assert!(
            Below::new(true, &none)
                .not_seen(true)
                .unwrap()
                .contains("nothing")
        );
    }
}
