//! Tests of the reporter.
