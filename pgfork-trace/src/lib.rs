//! Why the kernel refused a fork.
pub mod capture;
pub mod cli;
pub mod host;
pub mod kernel;
pub mod output;
pub mod postgres;
pub mod verdict;
