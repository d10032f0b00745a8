//! One line for each verdict that a test was about, for the matrix of `cargo xtask test`.

use serde_json::Value;

/// How a verdict compares with what really refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The cause is named.
    Right,
    /// Another cause is named.
    Wrong,
    /// It was seen, and no cause is named.
    Open,
    /// Nothing was reported, although this method sees it on this kernel.
    Missed,
    /// Nothing was reported, as this method cannot see it on this kernel.
    NotVisible,
}

impl Outcome {
    /// Compares what was said, if anything.
    pub(crate) fn of(cause: &str, said: Option<&Value>, visible: bool) -> Self {
        match said.map(|said| said["cause"].as_str().unwrap_or_default()) {
            None if visible => Self::Missed,
            None => Self::NotVisible,
            Some(said) if said == cause => Self::Right,
            // A method that cannot see what refused may say that it does not know.
            Some("unknown") if !visible => Self::NotVisible,
            Some("unknown") => Self::Open,
            Some(_) => Self::Wrong,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "WRONG",
            Self::Open => "open",
            Self::Missed => "MISSED",
            Self::NotVisible => "not_visible",
        }
    }
}

/// Prints the line: cause, method, outcome, and how sure the verdict is of itself.
pub(crate) fn report(cause: &str, method: &str, said: Option<&Value>, visible: bool) -> Outcome {
    let outcome = Outcome::of(cause, said, visible);
    let certainty = said.map_or("-", |said| said["certainty"].as_str().unwrap_or("-"));
    println!("verdict {cause} {method} {} {certainty}", outcome.word());
    outcome
}
