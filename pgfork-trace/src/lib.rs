//! Why the kernel refused a fork.
pub mod capture;
pub mod host;
pub mod kernel;
pub mod postgres;
pub mod verdict;
