//! Why the kernel refused a fork.
