//! Why the kernel refused a fork.
pub mod host;
pub mod postgres;
