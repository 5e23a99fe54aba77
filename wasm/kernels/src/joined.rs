//! Whether the engine makes one vector of two neighbouring ones (docs/decisions/wide-vectors.md). A sum waits four cycles
//! for its last product. So where two become one, kernels of floats need twice as many sums under way, which would not fit
//! the registers elsewhere. Each sum takes the same steps in both forms, and has the same bits.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

static VECTORS: AtomicBool = AtomicBool::new(false);

#[inline(always)]
pub fn vectors() -> bool {
    VECTORS.load(Relaxed)
}

pub fn set_vectors(joined: bool) {
    VECTORS.store(joined, Relaxed);
}
