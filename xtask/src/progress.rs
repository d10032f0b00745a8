//! What a task is doing, on standard error.

use std::time::Instant;

/// Says one line about the work in progress.
pub(crate) fn say(text: impl std::fmt::Display) {
    eprintln!("xtask: {text}");
}

/// A step that takes a while: announced at its start, timed at its end.
#[derive(Debug)]
pub(crate) struct Step {
    name: String,
    start: Instant,
}

impl Step {
    /// Announces the step.
    pub(crate) fn start(name: impl Into<String>) -> Self {
        let name = name.into();
        say(format_args!("{name} ..."));
        Self {
            name,
            start: Instant::now(),
        }
    }

    /// Says that the step has succeeded, and how long it took.
    pub(crate) fn done(self) {
        let seconds = self.start.elapsed().as_secs_f64();
        say(format_args!("{}: done in {seconds:.1} s", self.name));
    }
}
