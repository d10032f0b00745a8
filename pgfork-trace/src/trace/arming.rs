//! Attaches and detaches the checks on hot paths, and says so.

use std::time::Instant;

use super::{Trace, armed::RETRY_AFTER, nanoseconds};
use crate::{
    host::sysctl,
    kernel::plan::Method,
    output::{
        Closed,
        line::Notice,
        units::{counted, long_time},
    },
};

impl Trace<'_> {
    /// After a refusal that the base set leaves open.
    pub(super) fn arm(&mut self) -> Result<(), Closed> {
        let now = Instant::now();
        // Nothing is attached to the kernel's functions there.
        if self.capture.coverage().method == Method::Tracepoint || !self.armed.refusal(now) {
            return Ok(());
        }
        let notice = match self.capture.arm() {
            Ok(probes) if self.armed.attached(probes, now) => Notice::line(
                "armed",
                format!(
                    "the checks that are always watched do not say which allocation failed: {} on memory charging, overcommit and page tables added, until {} after the last such refusal; they slow every process a little",
                    counted(probes as u64, "probe", "probes"),
                    long_time(nanoseconds(self.armed.stays))
                ),
            ),
            Ok(_) => Notice::line(
                "arm_failed",
                "the checks that are always watched do not say which allocation failed, and no further ones can be watched on this kernel",
            ),
            Err(error) => {
                self.armed.failed(now);
                Notice::line(
                    "arm_failed",
                    format!(
                        "the checks that are always watched do not say which allocation failed, and further ones could not be attached: {error}"
                    ),
                )
            }
        };
        self.emit(&notice)
    }

    /// When memory is promised strictly from now on.
    pub(super) fn watch_strict(&mut self) -> Result<(), Closed> {
        let now = Instant::now();
        if !self.capture.lacks_strict()
            || self.strict_not_before.is_some_and(|then| now < then)
            || !sysctl::may_promise_strictly(&self.root)
        {
            return Ok(());
        }
        let strict = "vm.overcommit_memory is 2 now";
        let notice = match self.capture.watch_strict() {
            Ok(probes) => Notice::line(
                "strict_watched",
                format!(
                    "{strict}: {} on __vm_enough_memory added; what it refused before is deduced",
                    counted(probes as u64, "probe", "probes")
                ),
            ),
            Err(error) => {
                let first = self.strict_not_before.is_none();
                self.strict_not_before = Some(now + RETRY_AFTER);
                if !first {
                    return Ok(());
                }
                Notice::line(
                    "strict_not_seen",
                    format!(
                        "{strict}, and __vm_enough_memory cannot be watched: {error}; what it refuses is deduced"
                    ),
                )
            }
        };
        self.emit(&notice)
    }

    /// When their time is over.
    pub(super) fn disarm(&mut self) -> Result<(), Closed> {
        if !self.armed.is_over(Instant::now()) {
            return Ok(());
        }
        let strict = sysctl::may_promise_strictly(&self.root);
        self.capture.disarm(strict);
        let but = if strict {
            ", but those on __vm_enough_memory: vm.overcommit_memory is 2"
        } else {
            ""
        };
        self.emit(&Notice::line(
            "disarmed",
            format!(
                "no refusal was left open for {}: the added probes are detached{but}",
                long_time(nanoseconds(self.armed.stays))
            ),
        ))
    }
}
