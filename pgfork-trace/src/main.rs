//! pgfork-trace.
fn main() {}
