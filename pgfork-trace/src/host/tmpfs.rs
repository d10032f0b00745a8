//! Mounted tmpfs file systems, as a process sees them.

use std::{ffi::CString, mem::MaybeUninit, os::unix::ffi::OsStrExt as _, path::PathBuf};

use super::{Pid, Root, mountinfo};

/// A tmpfs, with its size and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Where it is mounted, for the process.
    pub mounted_on: PathBuf,
    /// `size=`, in bytes; absent when it has no limit (mm/shmem.c `shmem_statfs`, 5.10 to 7.2) or
    /// could not be asked.
    pub size_bytes: Option<u64>,
    /// Of it not used, in bytes.
    pub free_bytes: Option<u64>,
}

/// The tmpfs on `device` (`super_block.s_dev`: major number from bit 20 on, include/linux/kdev_t.h)
/// in the mount namespace of `pid`; `None` when it is not mounted there, or cannot be read.
#[must_use]
pub fn on_device(root: &Root, pid: Pid, device: u64) -> Option<Tmpfs> {
    let wanted = format!("{}:{}", device >> 20, device & 0xf_ffff);
    let mut mounted_on = None;
    mountinfo::each(&root.pid(pid).join("mountinfo"), |mount| {
        // devtmpfs is one as well, where nothing is mounted on /dev/shm.
        let ours = matches!(mount.kind, b"tmpfs" | b"devtmpfs");
        // The first one is where it was mounted; others show parts of it elsewhere.
        if mounted_on.is_none() && ours && mount.device == wanted.as_bytes() {
            mounted_on = Some(mount.mount_point);
        }
    })
    .ok()?;
    let mounted_on = mounted_on?;
    let inside = mounted_on.strip_prefix("/").unwrap_or(&mounted_on);
    let (size_bytes, free_bytes) = size(&root.pid(pid).join("root").join(inside)).unzip();
    Some(Tmpfs {
        mounted_on,
        size_bytes,
        free_bytes,
    })
}

/// Bytes in all, and free ones; `None` for one without a limit.
fn size(path: &std::path::Path) -> Option<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut said = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a string with its end, and room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), said.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call has filled it.
    let said = unsafe { said.assume_init() };
    (said.f_blocks > 0).then(|| {
        (
            said.f_blocks.saturating_mul(said.f_frsize),
            said.f_bfree.saturating_mul(said.f_frsize),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeRoot;

    #[test]
    fn it_is_found_by_its_device() {
        let fake = FakeRoot::new();
        fake.write(
            "proc/7/mountinfo",
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
             25 22 0:23 / /run rw shared:5 - tmpfs tmpfs rw,size=200k\n\
             30 22 0:45 / /dev/sh\\040m rw - tmpfs shm rw,size=65536k\n\
             31 22 0:45 /a /elsewhere rw - tmpfs shm rw,size=65536k\n\
             32 22 0:46 / /odd rw - ramfs none rw\n",
        );
        let found = |device| on_device(fake.root(), 7, device).map(|it| it.mounted_on);
        assert_eq!(found(45), Some(PathBuf::from("/dev/sh m")));
        assert_eq!(found(23), Some(PathBuf::from("/run")));
        // No tmpfs, another major number, no process.
        assert_eq!(found(46), None);
        assert_eq!(found(8 << 20 | 45), None);
        assert_eq!(on_device(fake.root(), 8, 45), None);
    }

    #[test]
    fn sizes_are_those_of_the_file_system() {
        let fake = FakeRoot::new();
        fake.write("proc/7/mountinfo", "30 22 0:45 / /shm rw - tmpfs shm rw\n");
        fake.write("proc/7/root/shm/file", "");
        let there = on_device(fake.root(), 7, 45).unwrap();
        assert!(there.size_bytes > Some(0) && there.free_bytes <= there.size_bytes);
        fake.write("proc/8/mountinfo", "30 22 0:45 / /gone rw - tmpfs shm rw\n");
        let gone = on_device(fake.root(), 8, 45).unwrap();
        assert_eq!((gone.size_bytes, gone.free_bytes), (None, None));
    }
}
