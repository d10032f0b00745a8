//! Addresses and names from `/proc/kallsyms`, read in pieces.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

/// Kernel variables whose values are read at the refusal.
pub const VARIABLES: [&str; 4] = [
    "vm_committed_as",
    "sysctl_overcommit_memory",
    "nr_threads",
    "max_threads",
];

/// What `/proc/kallsyms` says about the names that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// Addresses of [`VARIABLES`] that are shown and not hidden as 0.
    pub addresses: HashMap<String, u64>,
    /// Functions of which the compiler split off a part (`.part.N`, `.isra.N`,
    /// `.constprop.N`): callers in the same file may bypass the plain name.
    split: HashMap<String, String>,
}

impl Symbols {
    /// Reads `path` and keeps what concerns [`VARIABLES`] and `functions`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path, functions: &HashSet<&str>) -> io::Result<Self> {
        Self::parse(
            BufReader::with_capacity(64 * 1024, File::open(path)?),
            functions,
        )
    }

    /// Why a hook on this function does not see all of its calls, where that is so.
    #[must_use]
    pub fn partly_seen(&self, function: &str) -> Option<String> {
        let part = self.split.get(function)?;
        Some(format!(
            "{function} is seen in part only: callers in its own source file call {part}"
        ))
    }

    fn parse(mut reader: impl BufRead, functions: &HashSet<&str>) -> io::Result<Self> {
        let mut symbols = Self::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(symbols);
            }
            if let Ok(text) = std::str::from_utf8(&line) {
                symbols.take(text, functions);
            }
        }
    }

    /// Type letters are not looked at: data symbols of 6.18 and 7.2 are shown as `T`.
    fn take(&mut self, line: &str, functions: &HashSet<&str>) {
        let mut fields = line.split_ascii_whitespace();
        let (Some(address), Some(_), Some(name), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            // Modules have a fourth field; nothing of ours lives in one.
            return;
        };
        if VARIABLES.contains(&name) {
            if let Ok(address @ 1..) = u64::from_str_radix(address, 16) {
                self.addresses.insert(name.to_owned(), address);
            }
        } else if let Some((plain, suffix)) = name.split_once('.')
            && suffix.split('.').all(|part| part != "cold")
            && functions.contains(plain)
        {
            self.split.insert(plain.to_owned(), name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
ffffffff81000000 T _text
ffffffff8200aa00 B nr_threads
ffffffff8200bb00 T vm_committed_as
0000000000000000 B max_threads
ffffffff81234560 t copy_process
ffffffff81234570 t copy_process.cold
ffffffff81234580 t may_expand_vm
ffffffff81234590 t may_expand_vm.part.0
ffffffff81a34590 t may_expand_vm.part.0.cold
ffffffffc0001000 t nr_threads\t[rogue]
garbage
";

    #[test]
    fn keeps_what_matters() {
        let functions = ["copy_process", "may_expand_vm", "alloc_pid"].into();
        let symbols = Symbols::parse(SAMPLE.as_bytes(), &functions).unwrap();
        assert_eq!(symbols.addresses["nr_threads"], 0xffff_ffff_8200_aa00);
        assert_eq!(symbols.addresses["vm_committed_as"], 0xffff_ffff_8200_bb00);
        assert!(
            !symbols.addresses.contains_key("max_threads"),
            "hidden as 0"
        );
        let why = symbols.partly_seen("may_expand_vm").unwrap();
        assert!(why.ends_with("call may_expand_vm.part.0"), "{why}");
        assert_eq!(symbols.partly_seen("alloc_pid"), None);
        assert!(
            symbols.partly_seen("copy_process").is_none(),
            "a cold part is still on the way back"
        );
    }
}
