//! The allocator on its own: blocks are distinct, keep what is in them, and go back.

use super::{blocks::*, *};

#[test]
fn blocks_are_taken_first_fit_and_given_back() {
    let mut bits = [0u64; 2];
    let mut blocks = Blocks::new(&mut bits);
    let of = |size| Layout::from_size_align(size, 8).unwrap();
    assert_eq!(blocks.take(of(1)), Some(0));
    assert_eq!(blocks.take(of(GRANULE + 1)), Some(GRANULE));
    assert_eq!(blocks.take(of(0)), Some(3 * GRANULE));
    blocks.give_back(GRANULE, GRANULE + 1);
    assert_eq!(
        blocks.take(of(3 * GRANULE)),
        Some(4 * GRANULE),
        "a hole of two"
    );
    assert_eq!(blocks.take(of(2 * GRANULE)), Some(GRANULE));
    assert_eq!(
        blocks.take(of(121 * GRANULE)),
        Some(7 * GRANULE),
        "to the last"
    );
    assert_eq!(blocks.take(of(1)), None);
    blocks.give_back(7 * GRANULE, 121 * GRANULE);
    assert_eq!(blocks.take(of(122 * GRANULE)), None);
    assert_eq!(bits, [0x7f, 0]);
}

#[test]
fn blocks_are_aligned_as_asked() {
    let mut bits = [0u64; 8];
    let mut blocks = Blocks::new(&mut bits);
    blocks.take(Layout::new::<u8>()).unwrap();
    for align in [64, 128, 4096] {
        let offset = blocks.take(Layout::from_size_align(10, align).unwrap());
        assert_eq!(offset.unwrap() % align, 0);
    }
}

#[test]
fn blocks_change_their_size_in_place_where_there_is_room() {
    let mut bits = [0u64; 1];
    let mut blocks = Blocks::new(&mut bits);
    let one = Layout::new::<[u8; GRANULE]>();
    assert_eq!(blocks.take(one), Some(0));
    assert!(blocks.resize(0, GRANULE, 5 * GRANULE));
    assert_eq!(blocks.take(one), Some(5 * GRANULE));
    assert!(
        blocks.resize(0, 5 * GRANULE, 5 * GRANULE - 1),
        "the same granules"
    );
    assert!(!blocks.resize(0, 5 * GRANULE, 6 * GRANULE), "taken");
    assert!(blocks.resize(0, 5 * GRANULE, GRANULE));
    assert_eq!(blocks.take(one), Some(GRANULE));
    assert!(
        !blocks.resize(5 * GRANULE, GRANULE, 60 * GRANULE),
        "beyond the end"
    );
    assert!(blocks.resize(5 * GRANULE, GRANULE, 59 * GRANULE));
}

/// An allocator whose large blocks are spared; `None` where no disk takes the file.
fn spared() -> Option<Spare> {
    let spare = Spare::new();
    spare.spare_large_blocks();
    let layout = Layout::new::<[u8; LARGE]>();
    // SAFETY: not of size zero; given back at once.
    let in_region = unsafe {
        let block = spare.alloc(layout);
        let in_region = spare.region.contains(block);
        spare.dealloc(block, layout);
        in_region
    };
    if !in_region {
        eprintln!("skipped: no disk takes a file without a name");
    }
    in_region.then_some(spare)
}

#[test]
fn large_blocks_keep_what_is_in_them() {
    let Some(spare) = spared() else { return };
    let mut size = LARGE;
    let layout = |size| Layout::from_size_align(size, 16).unwrap();
    // SAFETY: the layouts are those that the blocks have.
    unsafe {
        let mut block = spare.alloc(layout(size));
        block.write_bytes(7, size);
        let other = spare.alloc(layout(LARGE));
        other.write_bytes(9, LARGE);
        // Past the other block, which has to be jumped over, and back.
        for wanted in [2 * LARGE, 40 * LARGE, LARGE, 100, 3 * LARGE] {
            block = spare.realloc(block, layout(size), wanted);
            assert!(!block.is_null());
            let kept = slice(block, size.min(wanted));
            assert!(kept.iter().all(|byte| *byte == 7), "{wanted}");
            block.write_bytes(7, wanted);
            size = wanted;
        }
        assert!(slice(other, LARGE).iter().all(|byte| *byte == 9));
        spare.dealloc(block, layout(size));
        spare.dealloc(other, layout(LARGE));
        let zeroed = spare.alloc_zeroed(layout(2 * LARGE));
        assert!(spare.region.contains(zeroed));
        assert!(
            slice(zeroed, 2 * LARGE).iter().all(|byte| *byte == 0),
            "used before"
        );
        spare.dealloc(zeroed, layout(2 * LARGE));
    }
}

unsafe fn slice<'a>(block: *const u8, size: usize) -> &'a [u8] {
    // SAFETY: by the caller.
    unsafe { std::slice::from_raw_parts(block, size) }
}

#[test]
fn a_full_region_leaves_the_rest_to_the_system() {
    let Some(spare) = spared() else { return };
    let layout = Layout::from_size_align(20 << 20, 16).unwrap();
    // SAFETY: the layouts are those that the blocks have.
    unsafe {
        let first = spare.alloc(layout);
        let second = spare.alloc(layout);
        assert!(spare.region.contains(first));
        assert!(!second.is_null() && !spare.region.contains(second));
        spare.dealloc(second, layout);
        spare.dealloc(first, layout);
        let again = spare.alloc(layout);
        assert_eq!(again, first, "given back whole");
        spare.dealloc(again, layout);
    }
}

#[test]
fn small_blocks_are_the_systems_while_it_has_any() {
    let spare = Spare::new();
    spare.spare_large_blocks();
    let layout = Layout::new::<[u64; 4]>();
    // SAFETY: the layouts are those that the blocks have.
    unsafe {
        let block = spare.alloc(layout);
        assert!(!spare.region.contains(block));
        spare.dealloc(block, layout);
    }
}

#[test]
fn what_the_system_cannot_give_comes_from_the_region() {
    let Some(_) = spared() else { return };
    let spare = Spare::new();
    // More than any address space has: neither can.
    let absurd = Layout::from_size_align(isize::MAX as usize - 4096, 1).unwrap();
    // SAFETY: not of size zero.
    assert!(unsafe { spare.alloc(absurd) }.is_null());
    assert!(spare.region.alloc(Layout::new::<[u8; 100]>()).addr() != 0);
}
