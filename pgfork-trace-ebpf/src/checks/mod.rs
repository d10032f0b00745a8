//! One file per family of checks.

pub mod client;
pub mod clone;
pub mod kill;
pub mod memcg;
pub mod memory;
pub mod overcommit;
pub mod pid;
pub mod pids;
pub mod process;
pub mod rlimit;
pub mod stages;
pub mod syscall;
