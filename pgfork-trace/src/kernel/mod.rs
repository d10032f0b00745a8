//! What the running kernel offers: its types, its symbols, and which hooks fit it.

pub mod btf;
pub mod functions;
pub mod layout;
pub mod plan;
#[cfg(test)]
mod proof;
pub mod symbols;
