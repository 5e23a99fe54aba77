//! The allocator: the standard one, which wipes what is freed.
//!
//! Keys and values are the text they were made from, and this memory is never given back to the system. So rows that were
//! evicted, and the buffers that they went through, leave nothing behind. It costs one write of what was allocated, where
//! each of these bytes was written and read for work already.

use std::alloc::{GlobalAlloc, Layout, System};

pub struct Wiping;

// SAFETY: every block comes from `System` and goes back to it with the layout it was made with. Growing is the trait's
// own: a new block, a copy, and `dealloc` of the old one, which wipes it.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe {
            block.write_bytes(0, layout.size());
            // Whoever reads this memory is outside of the program: the write must not be taken for one that nobody reads.
            std::hint::black_box(block);
            System.dealloc(block, layout);
        }
    }
}
