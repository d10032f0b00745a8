//! What the running kernel offers: its types, its symbols, and which hooks fit it.

pub mod btf;
pub mod functions;
pub mod layout;
pub mod plan;
#[cfg(test)]
mod proof;
pub mod symbols;

use std::path::Path;

use btf::{Btf, BtfError};
use layout::Layout;
use plan::Plan;
use symbols::Symbols;

/// Opens BTF with all that the layout and the plan ask of it.
///
/// # Errors
/// When the file cannot be read or is not BTF.
pub fn open_btf(path: &Path) -> Result<Btf, BtfError> {
    let mut wanted = Layout::wanted();
    wanted.types.extend(Plan::functions());
    Btf::open(path, &wanted)
}

/// What the kernel shows of its symbols. Hidden or unreadable ones only cost
/// evidence; the verdict then says so.
#[must_use]
pub fn shown_symbols() -> Symbols {
    Symbols::read(Path::new("/proc/kallsyms"), &Plan::functions()).unwrap_or_default()
}
