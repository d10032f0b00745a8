//! Memory for a program that has to start inside the outage.
//!
//! A host at its commit limit leaves root 8 MiB (vm.admin_reserve_kbytes), and
//! attaching takes more than that for a moment. A shared mapping of a file costs
//! no commit charge (mm/mmap.c `accountable_mapping`, 5.10 to 7.2: private and
//! writable is what counts), so the allocator has a spare region in a file
//! without a name, which goes with the process. It takes
//!
//! - what the system's allocator cannot give, and
//! - after [`prepare`] has found memory to be tight, large blocks from the
//!   start: they would take what the shell of the person next door needs.

mod blocks;
mod region;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs, ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::host::{
    Ceiling, Root,
    cgroup::{self, Controller},
};
use region::Region;

/// Blocks of this size and more are large.
const LARGE: usize = 64 * 1024;
/// A memory cgroup with a limit below this is tight.
const TIGHT: u64 = 64 * 1024 * 1024;

/// The system's allocator, with a spare region.
pub struct Spare {
    region: Region,
    large_blocks_too: AtomicBool,
}

impl Default for Spare {
    fn default() -> Self {
        Self::new()
    }
}

impl Spare {
    /// Nothing is taken before it is needed.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            region: Region::new(),
            large_blocks_too: AtomicBool::new(false),
        }
    }

    /// Takes large blocks from the region from now on.
    fn spare_large_blocks(&self) {
        self.large_blocks_too.store(true, Ordering::Relaxed);
    }

    fn prefers_region(&self, size: usize) -> bool {
        size >= LARGE && self.large_blocks_too.load(Ordering::Relaxed)
    }

    /// Moves a block to wherever there is room.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::realloc`].
    unsafe fn moved(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that the size fits this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the size is not zero, by the caller.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both blocks are valid for the smaller size, and distinct.
            unsafe { ptr::copy_nonoverlapping(old, new, layout.size().min(size)) };
            // SAFETY: a block of ours, not used any more.
            unsafe { self.dealloc(old, layout) };
        }
        new
    }
}

// SAFETY: every block comes from one of two allocators, and goes back to the one it came from,
// which its address tells. Neither unwinds.
unsafe impl GlobalAlloc for Spare {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.prefers_region(layout.size()) {
            let block = self.region.alloc(layout);
            if !block.is_null() {
                return block;
            }
        }
        // SAFETY: as the caller promises.
        let block = unsafe { System.alloc(layout) };
        if block.is_null() {
            return self.region.alloc(layout);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !self.prefers_region(layout.size()) {
            // SAFETY: as the caller promises.
            let block = unsafe { System.alloc_zeroed(layout) };
            if !block.is_null() {
                return block;
            }
        }
        // SAFETY: as the caller promises.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block is that large. It may have been used before.
            unsafe { ptr::write_bytes(block, 0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if self.region.contains(block) {
            self.region.dealloc(block, layout);
        } else {
            // SAFETY: it is the system's, with this layout.
            unsafe { System.dealloc(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if self.region.contains(block) {
            if self.region.resize(block, layout, size) {
                return block;
            }
        } else if !self.prefers_region(size) {
            // SAFETY: it is the system's; the rest as the caller promises.
            let new = unsafe { System.realloc(block, layout, size) };
            if !new.is_null() {
                return new;
            }
        }
        // SAFETY: as the caller promises.
        unsafe { self.moved(block, layout, size) }
    }
}

/// Looks whether memory is tight: strict overcommit, or a small memory cgroup.
/// What cannot be read is taken as ample; the region still stands by.
///
/// Huge pages are not wanted either way: they make 2 MiB resident of what is used in part.
pub fn prepare(allocator: &Spare) {
    // SAFETY: a setting of this process, which it keeps to itself. Where it is refused, no harm is done.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    if is_strict() || is_confined() {
        allocator.spare_large_blocks();
    }
}

fn is_strict() -> bool {
    fs::read("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.starts_with(b"2"))
}

fn is_confined() -> bool {
    let chain = cgroup::chain(&Root::default(), std::process::id(), Controller::Memory);
    let levels = chain.ok().flatten().map(|chain| chain.levels);
    let limits = levels
        .into_iter()
        .flatten()
        .map(|level| level.memory.max_bytes);
    limits
        .into_iter()
        .any(|limit| matches!(limit, Some(Ceiling::At(bytes)) if bytes < TIGHT))
}

#[cfg(test)]
mod tests;
