//! Where the fields lie that the kernel side reads.

use std::collections::HashSet;

use pgfork_trace_common::{ABSENT, OFFSET_COUNT, OFFSET_FIELDS};

use super::btf::{Btf, BtfError, Wanted};

/// Enum constants that the layout needs.
const PIDS_CGRP_ID: &str = "pids_cgrp_id";
const UCOUNT_RLIMIT_NPROC: &str = "UCOUNT_RLIMIT_NPROC";

/// Arrays of limits that are counted by user, and their names in 5.14 to 5.18, where other counts
/// stand before them (include/linux/user_namespace.h).
const COUNTS_OF_TASKS: [((&str, &str), &str); 2] = [
    (("ucounts", "rlimit"), "ucount"),
    (("user_namespace", "rlimit_max"), "ucount_max"),
];

/// Fields without which nothing can be watched, on any kernel.
const NEEDED: &[(&str, &str)] = &[
    ("task_struct", "signal"),
    ("task_struct", "real_cred"),
    ("signal_struct", "rlim"),
    ("cred", "uid"),
];

/// What the kernel side is told at load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Byte offsets in the order of [`OFFSET_FIELDS`], [`ABSENT`] where the kernel lacks a field.
    pub offsets: [u32; OFFSET_COUNT],
    /// `pids_cgrp_id` of `enum cgroup_subsys_id`, [`ABSENT`] without the pids controller.
    pub pids_cgrp_id: u32,
}

impl Layout {
    /// Names to look for in the BTF, for [`Btf::open`].
    #[must_use]
    pub fn wanted() -> Wanted<'static> {
        let types = OFFSET_FIELDS
            .iter()
            .map(|(structure, _)| *structure)
            .collect();
        let mut members: HashSet<&str> = OFFSET_FIELDS
            .iter()
            .flat_map(|(_, path)| path.split('.'))
            .collect();
        members.extend([PIDS_CGRP_ID, UCOUNT_RLIMIT_NPROC]);
        members.extend(COUNTS_OF_TASKS.map(|(_, before)| before));
        Wanted { types, members }
    }

    /// Resolves every field.
    ///
    /// # Errors
    /// When the BTF cannot be read, or lacks a field that every kernel has.
    pub fn resolve(btf: &Btf) -> Result<Self, LayoutError> {
        let mut offsets = [ABSENT; OFFSET_COUNT];
        for (slot, (structure, path)) in offsets.iter_mut().zip(OFFSET_FIELDS) {
            match btf.offset_of(structure, path)? {
                Some(offset) => *slot = offset,
                None if NEEDED.contains(&(structure, path)) => {
                    return Err(LayoutError::Missing(structure, path));
                }
                None => {}
            }
        }
        // The kernel side is told where RLIMIT_NPROC's own long lies: the first in 6.1 to 7.2.
        if let Some(index) = btf.constant(UCOUNT_RLIMIT_NPROC) {
            for (field, before) in COUNTS_OF_TASKS {
                let array = match btf.offset_of(field.0, field.1)? {
                    Some(array) => Some(array),
                    None => btf.offset_of(field.0, before)?,
                };
                let place = u32::try_from(index).ok().map(|index| 8 * index);
                let own = array.zip(place).map(|(array, place)| array + place);
                for (slot, other) in offsets.iter_mut().zip(OFFSET_FIELDS) {
                    if *other == field {
                        *slot = own.unwrap_or(ABSENT);
                    }
                }
            }
        }
        let pids_cgrp_id = btf
            .constant(PIDS_CGRP_ID)
            .and_then(|id| u32::try_from(id).ok())
            .unwrap_or(ABSENT);
        Ok(Self {
            offsets,
            pids_cgrp_id,
        })
    }
}

/// Why the layout could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The BTF could not be read.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A field that every supported kernel has is not in the BTF.
    #[error("the kernel's BTF has no field {1} in struct {0}")]
    Missing(&'static str, &'static str),
}
