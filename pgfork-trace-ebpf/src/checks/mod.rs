//! One file per family of checks.

pub mod clone;
pub mod overcommit;
pub mod pids;
pub mod process;
pub mod rlimit;
pub mod stages;
