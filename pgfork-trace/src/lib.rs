//! Why the kernel refused a fork.
//!
//! Data flows one way: `capture` reads what the kernel side saw, `gather` reads
//! the host's facts, `verdict` decides (and reads nothing), `output` says it.

pub mod capture;
pub mod causes;
pub mod check;
pub mod cli;
pub mod diagnostics;
pub mod gather;
pub mod host;
pub mod kernel;
pub mod memory;
pub mod output;
pub mod postgres;
pub mod probes;
pub mod selftest;
pub mod trace;
pub mod verdict;
