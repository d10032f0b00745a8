//! Which parts of a region are taken: one bit for each granule. Pure.

use std::alloc::Layout;

/// Smallest piece that is given out; also the alignment that costs nothing.
pub(super) const GRANULE: usize = 64;

/// The bits, one for each granule, set while it is taken.
pub(super) struct Blocks<'a> {
    taken: &'a mut [u64],
}

/// Number of granules that a block takes. Blocks of size 0 take one.
fn granules(size: usize) -> usize {
    size.div_ceil(GRANULE).max(1)
}

impl<'a> Blocks<'a> {
    pub(super) fn new(taken: &'a mut [u64]) -> Self {
        Self { taken }
    }

    fn len(&self) -> usize {
        self.taken.len() * 64
    }

    fn is_taken(&self, granule: usize) -> bool {
        self.taken[granule / 64] >> (granule % 64) & 1 == 1
    }

    fn is_free(&self, first: usize, count: usize) -> bool {
        first + count <= self.len() && (first..first + count).all(|it| !self.is_taken(it))
    }

    fn mark(&mut self, first: usize, count: usize, taken: bool) {
        for granule in first..first + count {
            let bit = 1 << (granule % 64);
            if taken {
                self.taken[granule / 64] |= bit;
            } else {
                self.taken[granule / 64] &= !bit;
            }
        }
    }

    /// Takes the first room that fits; the offset in bytes. Offsets are aligned
    /// as asked where the region itself is.
    pub(super) fn take(&mut self, layout: Layout) -> Option<usize> {
        let count = granules(layout.size());
        let step = layout.align().div_ceil(GRANULE);
        let mut first = 0;
        while first + count <= self.len() {
            match (first..first + count).rev().find(|it| self.is_taken(*it)) {
                None => {
                    self.mark(first, count, true);
                    return Some(first * GRANULE);
                }
                Some(taken) => first = (taken + 1).next_multiple_of(step),
            }
        }
        None
    }

    /// Gives a block back.
    pub(super) fn give_back(&mut self, offset: usize, size: usize) {
        self.mark(offset / GRANULE, granules(size), false);
    }

    /// Makes a block larger or smaller where it is.
    pub(super) fn resize(&mut self, offset: usize, old: usize, new: usize) -> bool {
        let first = offset / GRANULE;
        let (old, new) = (granules(old), granules(new));
        if new > old {
            if !self.is_free(first + old, new - old) {
                return false;
            }
            self.mark(first + old, new - old, true);
        } else {
            self.mark(first + new, old - new, false);
        }
        true
    }
}
