//! Command-line and end-to-end tests of `pgfork-trace`.
