//! Where the fields lie that the kernel side reads.

use std::collections::HashSet;

use pgfork_trace_common::{ABSENT, OFFSET_COUNT, OFFSET_FIELDS};

use super::btf::{Btf, BtfError, Wanted};

/// Enum constants that the layout needs.
const PIDS_CGRP_ID: &str = "pids_cgrp_id";
const UCOUNT_RLIMIT_NPROC: &str = "UCOUNT_RLIMIT_NPROC";

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
        // The kernel side reads ucounts.rlimit[0]; that is RLIMIT_NPROC's count in
        // 6.1 to 7.2 (include/linux/user_namespace.h). Elsewhere it is not read.
        if btf
            .constant(UCOUNT_RLIMIT_NPROC)
            .is_some_and(|index| index != 0)
        {
            for (slot, field) in offsets.iter_mut().zip(OFFSET_FIELDS) {
                if *field == ("ucounts", "rlimit") {
                    *slot = ABSENT;
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
