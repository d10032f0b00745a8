//! `/proc/meminfo`: what the host has and what it has promised.

use super::Root;
use super::read::{self, ReadError};

/// Memory of the host, in bytes. `None` where this kernel has no such line.
///
/// `committed_as_bytes` is the exact sum over all CPUs (`vm_memory_committed`, mm/util.c), while the
/// check at fork compares an approximate counter; and after a refused fork it has dropped again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemInfo {
    /// `MemTotal`: memory the kernel manages.
    pub mem_total_bytes: Option<u64>,
    /// `MemAvailable`: estimate of what can be had without swapping.
    pub mem_available_bytes: Option<u64>,
    /// `SwapTotal`.
    pub swap_total_bytes: Option<u64>,
    /// `SwapFree`.
    pub swap_free_bytes: Option<u64>,
    /// `CommitLimit`: what strict overcommit allows to promise, before its reserves
    /// (`vm_commit_limit`, mm/util.c, 5.10 to 7.2).
    pub commit_limit_bytes: Option<u64>,
    /// `Committed_AS`: what has been promised.
    pub committed_as_bytes: Option<u64>,
    /// `Shmem`: shared memory and tmpfs in use.
    pub shmem_bytes: Option<u64>,
    /// `Hugetlb`: all huge pages of all sizes, which do not count towards the commit limit.
    pub hugetlb_bytes: Option<u64>,
    /// `HugePages_Total`, `HugePages_Free`, `HugePages_Rsvd`: pages of the default size, those
    /// that nobody has, and those among them that are promised.
    pub huge_pages: [Option<u64>; 3],
    /// `SReclaimable`, `SUnreclaim`: kernel objects that can be dropped, and those that cannot.
    pub slab_bytes: [Option<u64>; 2],
    /// `Hugepagesize`: the default size.
    pub huge_page_bytes: Option<u64>,
}

/// Reads `/proc/meminfo`. A line that has no number of kB, or one beyond 64 bits, is absent, and
/// named in the list.
pub fn meminfo(root: &Root) -> (Option<MemInfo>, Vec<String>) {
    let path = root.proc().join("meminfo");
    let mut info = MemInfo::default();
    let mut unread = Vec::new();
    let odd = |number, expected, value: &[u8]| {
        ReadError::parse(&path, number, expected, value).to_string()
    };
    let read = read::lines(&path, |number, line| {
        let Some((key, value)) = read::key_value(line) else {
            return Ok(());
        };
        let counted = match key {
            b"HugePages_Total" => Some(0),
            b"HugePages_Free" => Some(1),
            b"HugePages_Rsvd" => Some(2),
            _ => None,
        };
        if let Some(at) = counted {
            info.huge_pages[at] = read::parse(value);
            if info.huge_pages[at].is_none() {
                unread.push(odd(number, "a number of pages", value));
            }
            return Ok(());
        }
        let field = match key {
            b"SReclaimable" => &mut info.slab_bytes[0],
            b"SUnreclaim" => &mut info.slab_bytes[1],
            b"Hugepagesize" => &mut info.huge_page_bytes,
            b"MemTotal" => &mut info.mem_total_bytes,
            b"MemAvailable" => &mut info.mem_available_bytes,
            b"SwapTotal" => &mut info.swap_total_bytes,
            b"SwapFree" => &mut info.swap_free_bytes,
            b"CommitLimit" => &mut info.commit_limit_bytes,
            b"Committed_AS" => &mut info.committed_as_bytes,
            b"Hugetlb" => &mut info.hugetlb_bytes,
            b"Shmem" => &mut info.shmem_bytes,
            _ => return Ok(()),
        };
        *field = read::kilobytes(value);
        if field.is_none() {
            unread.push(odd(number, "a number of kB", value));
        }
        Ok(())
    });
    let read = read::noted(read, &mut unread);
    (read.map(|()| info), unread)
}

/// The pool of huge pages of `size` bytes: all, free and reserved pages. `Ok(None)` when there is
/// none of that size.
///
/// # Errors
/// When a file holds something else than a number.
pub fn huge_page_pool(root: &Root, size: u64) -> Result<Option<(u64, u64, u64)>, ReadError> {
    let pool = root
        .sys()
        .join(format!("kernel/mm/hugepages/hugepages-{}kB", size / 1024));
    let number = |name: &str| read::number(&pool.join(name));
    let all = number("nr_hugepages")?;
    let free = number("free_hugepages")?;
    let reserved = number("resv_hugepages")?;
    Ok(all
        .zip(free)
        .zip(reserved)
        .map(|((all, free), reserved)| (all, free, reserved)))
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeRoot;
    use super::*;

    #[test]
    fn lines_become_bytes() {
        let fake = FakeRoot::new();
        assert_eq!(meminfo(fake.root()), (None, vec![]));
        fake.write(
            "proc/meminfo",
            "MemTotal:       24684084 kB\nMemFree: 1 kB\nMemAvailable:    3 kB\nSwapTotal:  0 kB\n\
             CommitLimit:    12342040 kB\nCommitted_AS:   100 kB\nHugePages_Total:       0\nHugetlb:   2048 kB\n",
        );
        let info = meminfo(fake.root()).0.unwrap();
        assert_eq!(info.mem_total_bytes, Some(24_684_084 * 1024));
        assert_eq!(info.mem_available_bytes, Some(3072));
        assert_eq!(info.swap_total_bytes, Some(0));
        assert_eq!(info.swap_free_bytes, None);
        assert_eq!(info.commit_limit_bytes, Some(12_342_040 * 1024));
        assert_eq!(info.committed_as_bytes, Some(102_400));
        assert_eq!(info.hugetlb_bytes, Some(2 << 20));
    }

    #[test]
    fn absurd_numbers_are_named_with_their_place_and_take_nothing_with_them() {
        let fake = FakeRoot::new();
        for absurd in [
            "18446744073709551615 kB",
            "-1 kB",
            "99999999999999999999999 kB",
            "5",
            "x kB",
            "",
        ] {
            fake.write(
                "proc/meminfo",
                format!("MemTotal: 1 kB\nCommitLimit: {absurd}\n"),
            );
            let (info, unread) = meminfo(fake.root());
            assert!(
                unread[0].contains("meminfo\":2: expected a number of kB"),
                "{unread:?}"
            );
            let info = info.unwrap();
            assert_eq!(
                (info.mem_total_bytes, info.commit_limit_bytes),
                (Some(1024), None)
            );
        }
    }

    #[test]
    fn the_real_file_parses() {
        let info = meminfo(&Root::default()).0.unwrap();
        assert!(info.mem_total_bytes.unwrap() > 1 << 20);
        assert!(info.commit_limit_bytes.is_some() && info.committed_as_bytes.is_some());
    }
}
