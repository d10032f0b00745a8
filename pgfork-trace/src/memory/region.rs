//! Memory in a file without a name, made when it is first needed.

use std::{
    alloc::Layout,
    ffi::CStr,
    mem::MaybeUninit,
    ptr, slice,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use super::blocks::{Blocks, GRANULE};

/// Attaching takes 18 MiB at most on the kernels that are tested. The disk blocks are reserved,
/// and only those that are used are ever written.
const SIZE: usize = 32 * 1024 * 1024;
/// Bytes of the bits at the start of the region.
const BITS: usize = SIZE / GRANULE / 8;

/// Before a block of this size is given out, what was written before goes to the disk.
const CLEAN_BEFORE: usize = 256 * 1024;

/// Where a file may be: on a disk. In a file system in memory it would cost commit charge.
const DIRECTORIES: [&CStr; 6] = [
    c"/var/tmp",
    c"/var/lib",
    c"/var/log",
    c"/root",
    c"/home",
    c"/",
];
/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (include/uapi/linux/magic.h).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The region: nothing at first.
pub(super) struct Region {
    start: AtomicPtr<u8>,
    /// Making it was tried, successfully or not.
    tried: AtomicBool,
    locked: AtomicBool,
}

impl Region {
    pub(super) const fn new() -> Self {
        Self {
            start: AtomicPtr::new(ptr::null_mut()),
            tried: AtomicBool::new(false),
            locked: AtomicBool::new(false),
        }
    }

    /// Whether a block is from here.
    pub(super) fn contains(&self, block: *mut u8) -> bool {
        let start = self.start.load(Ordering::Acquire).addr();
        start != 0 && (start..start + SIZE).contains(&block.addr())
    }

    /// A block, or null.
    pub(super) fn alloc(&self, layout: Layout) -> *mut u8 {
        // Page alignment is what the mapping has.
        if layout.align() > 4096 {
            return ptr::null_mut();
        }
        self.with(|start, blocks| {
            if layout.size() >= CLEAN_BEFORE {
                clean(start);
            }
            blocks.take(layout).map(|offset| start.wrapping_add(offset))
        })
        .flatten()
        .unwrap_or(ptr::null_mut())
    }

    /// Gives a block back that [`Region::contains`].
    pub(super) fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.with(|start, blocks| blocks.give_back(block.addr() - start.addr(), layout.size()));
    }

    /// Makes a block that [`Region::contains`] larger or smaller where it is.
    pub(super) fn resize(&self, block: *mut u8, layout: Layout, size: usize) -> bool {
        self.with(|start, blocks| blocks.resize(block.addr() - start.addr(), layout.size(), size))
            .unwrap_or(false)
    }

    /// Runs `act` alone, with the start of the region and its bits; made if need be.
    fn with<T>(&self, act: impl FnOnce(*mut u8, &mut Blocks<'_>) -> T) -> Option<T> {
        while self.locked.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        if !self.tried.swap(true, Ordering::Relaxed) {
            self.start.store(make(), Ordering::Release);
        }
        let start = self.start.load(Ordering::Relaxed);
        let result = (!start.is_null()).then(|| {
            // SAFETY: the first BITS bytes of the mapping, which is never unmapped, page-aligned
            // and readable; they are given to nobody else, and this runs alone.
            let bits = unsafe { slice::from_raw_parts_mut(start.cast::<u64>(), BITS / 8) };
            act(start, &mut Blocks::new(bits))
        });
        self.locked.store(false, Ordering::Release);
        result
    }
}

/// Writes to the disk what was written to the region, so that a memory cgroup at its limit can
/// drop the pages. It does not write file pages by itself: on a slow disk its OOM killer is faster
/// than the flusher threads (mm/vmscan.c `shrink_folio_list`: only kswapd writes, 5.10 to 7.2).
fn clean(start: *mut u8) {
    // SAFETY: the whole mapping, which is never unmapped. Failing costs only the help it would be.
    unsafe { libc::msync(start.cast(), SIZE, libc::MS_SYNC) };
}

/// Maps a fresh file and marks the bits' own place as taken; null when no directory has room.
fn make() -> *mut u8 {
    for directory in DIRECTORIES {
        let start = map_file_in(directory);
        if !start.is_null() {
            // SAFETY: as in `Region::with`; nobody else knows of it yet. A new file reads as zeroes.
            let bits = unsafe { slice::from_raw_parts_mut(start.cast::<u64>(), BITS / 8) };
            // Always the first room of an empty region.
            let own = Layout::new::<[u8; BITS]>();
            return match Blocks::new(bits).take(own) {
                Some(0) => start,
                _ => ptr::null_mut(),
            };
        }
    }
    ptr::null_mut()
}

/// System calls only: this runs where nothing can be allocated.
fn map_file_in(directory: &CStr) -> *mut u8 {
    // SAFETY: a valid string. The file never has a name, so nothing is left behind.
    let file = unsafe {
        libc::open(
            directory.as_ptr(),
            libc::O_TMPFILE | libc::O_RDWR | libc::O_EXCL | libc::O_CLOEXEC,
            0o600,
        )
    };
    if file < 0 {
        return ptr::null_mut();
    }
    let start = map(file);
    // SAFETY: ours; the mapping keeps the file.
    unsafe { libc::close(file) };
    start
}

fn map(file: libc::c_int) -> *mut u8 {
    let mut system = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: writes a whole statfs, for which all zeroes is valid too.
    let kind = unsafe {
        if libc::fstatfs(file, system.as_mut_ptr()) != 0 {
            return ptr::null_mut();
        }
        system.assume_init().f_type
    };
    let size = SIZE as libc::off_t;
    // SAFETY: numbers only. Reserved, or a full disk would be a SIGBUS later.
    if IN_MEMORY.contains(&kind) || unsafe { libc::fallocate(file, 0, 0, size) } != 0 {
        return ptr::null_mut();
    }
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        ptr::null_mut()
    } else {
        start.cast()
    }
}
