//! `memory.stat`: what the memory of a cgroup is made of.

use super::super::read::{self, ReadError};
use super::{Level, Version};

/// Memory of a cgroup by kind, in bytes, everything below it included. 0 where this kernel does
/// not tell a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStat {
    /// Anonymous memory of processes (`anon`, v1 `total_rss`).
    pub anon: u64,
    /// Cached pages of files and shared memory (`file`, v1 `total_cache`).
    pub file: u64,
    /// Shared memory among them: shared_buffers, tmpfs (`shmem`, v1 `total_shmem`).
    pub shmem: u64,
    /// Pages under writeback or dirty: to be written before they can be dropped.
    pub dirty: u64,
    /// File pages that have not been used for a while (`inactive_file`, v1 `total_inactive_file`).
    pub inactive_file: u64,
    /// File pages that were used lately (`active_file`, v1 `total_active_file`).
    pub active_file: u64,
    /// Kernel objects that can be dropped (`slab_reclaimable`).
    pub slab_reclaimable: u64,
    /// All kernel memory (`kernel`, since 5.18).
    pub kernel: u64,
    /// Kernel memory by kind that cannot be dropped: stacks, page tables, per-CPU data, other objects.
    pub kernel_kinds: u64,
    /// Page tables are told; 5.10 does not.
    pub has_page_tables: bool,
}

impl MemoryStat {
    /// Memory that the kernel takes back for certain before it refuses or kills: file pages not in
    /// use and droppable kernel objects (`try_to_free_mem_cgroup_pages`, mm/vmscan.c). Pages in use,
    /// of programs for one, come back as soon as they are dropped.
    #[must_use]
    pub fn reclaimable(&self) -> u64 {
        self.inactive_file
            .min(self.file.saturating_sub(self.shmem))
            .saturating_add(self.slab_reclaimable)
    }

    /// Kernel memory that ends only with the processes it is for.
    #[must_use]
    pub fn kernel_fixed(&self) -> u64 {
        match self.kernel {
            0 => self.kernel_kinds,
            all => all.saturating_sub(self.slab_reclaimable),
        }
    }
}

/// Reads `memory.stat` of a level.
///
/// # Errors
/// When a line of a kind above is without a number.
pub fn memory_stat(level: &Level, version: Version) -> Result<Option<MemoryStat>, ReadError> {
    let path = level.directory.join("memory.stat");
    let mut stat = MemoryStat::default();
    let read = read::lines(&path, |number, line| {
        let mut fields = read::fields(line);
        let (Some(name), Some(value)) = (fields.next(), fields.next()) else {
            return Ok(());
        };
        let Some(field) = stat.field(name, version) else {
            return Ok(());
        };
        let value: u64 =
            read::parse(value).ok_or_else(|| ReadError::parse(&path, number, "a number", line))?;
        *field = field.saturating_add(value);
        stat.has_page_tables |= name == b"pagetables";
        Ok(())
    })?;
    Ok(read.map(|()| stat))
}

impl MemoryStat {
    fn field(&mut self, name: &[u8], version: Version) -> Option<&mut u64> {
        Some(match (version, name) {
            (Version::V2, b"anon") | (Version::V1, b"total_rss") => &mut self.anon,
            (Version::V2, b"file") | (Version::V1, b"total_cache") => &mut self.file,
            (Version::V2, b"shmem") | (Version::V1, b"total_shmem") => &mut self.shmem,
            (Version::V2, b"file_dirty" | b"file_writeback")
            | (Version::V1, b"total_dirty" | b"total_writeback") => &mut self.dirty,
            (Version::V2, b"slab_reclaimable") => &mut self.slab_reclaimable,
            (Version::V2, b"inactive_file") | (Version::V1, b"total_inactive_file") => {
                &mut self.inactive_file
            }
            (Version::V2, b"active_file") | (Version::V1, b"total_active_file") => {
                &mut self.active_file
            }
            (Version::V2, b"kernel") => &mut self.kernel,
            (Version::V2, b"kernel_stack" | b"pagetables" | b"percpu" | b"slab_unreclaimable") => {
                &mut self.kernel_kinds
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::FakeRoot;
    use super::super::{MemoryFacts, PidsFacts};
    use super::*;

    fn level(fake: &FakeRoot) -> Level {
        Level {
            path: "/a".into(),
            directory: fake.path("a"),
            inode: None,
            pids: PidsFacts::default(),
            memory: MemoryFacts::default(),
        }
    }

    #[test]
    fn kinds_of_both_versions() {
        let fake = FakeRoot::new();
        let level = level(&fake);
        assert_eq!(memory_stat(&level, Version::V2).unwrap(), None);
        fake.write(
            "a/memory.stat",
            "anon 100\nfile 50\nshmem 20\nkernel_stack 3\npagetables 4\nslab_reclaimable 7\nslab_unreclaimable 5\ninactive_file 25\n",
        );
        let stat = memory_stat(&level, Version::V2).unwrap().unwrap();
        assert_eq!((stat.anon, stat.kernel_fixed()), (100, 12));
        assert_eq!(stat.reclaimable(), 32);
        fake.write(
            "a/memory.stat",
            "cache 1\ntotal_cache 50\ntotal_shmem 60\ntotal_rss 9\n",
        );
        let stat = memory_stat(&level, Version::V1).unwrap().unwrap();
        assert_eq!((stat.anon, stat.reclaimable()), (9, 0));
        fake.write("a/memory.stat", "anon many\n");
        assert!(memory_stat(&level, Version::V2).is_err());
    }
}
