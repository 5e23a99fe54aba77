//! ‖v·Wo_h‖₁ of every row, meaned over the group, without the rows × width product: four values by two rows of Wo at a
//! time, absolute sums kept in registers.

use crate::lanes::F4;
use crate::memory::{Array, Result};
use crate::rows::{Layer, PAGE};
use crate::tile::dots_block;

/// Rows of Wo packed at once: small enough to stay in cache beside four values.
const PANEL: usize = 64;

/// Adds to `norms` `(kv_heads, rows)` what `width` rows of Wo, `(width, heads · dim)`, contribute.
pub fn add_norms(layer: &Layer, wo: &[f32], width: usize, norms: &mut [f32]) -> Result<()> {
    let (dim, stride, group, length) = (layer.dim, layer.stride, layer.group(), layer.common_length()?);
    let mut panel = Array::<f32>::zeros(PANEL * stride)?;
    for start in (0..width).step_by(PANEL) {
        let count = PANEL.min(width - start);
        for h in 0..layer.heads {
            for n in 0..count {
                let from = (start + n) * layer.heads * dim + h * dim;
                panel.as_mut()[n * stride..n * stride + dim].copy_from_slice(&wo[from..from + dim]);
            }
            let norms = &mut norms[h / group * length..][..length];
            let share = 1.0 / group as f32;
            for (norms, page) in norms.chunks_mut(PAGE).zip(&layer.rows[h / group].pages) {
                let panel = panel.as_slice().as_ptr();
                // SAFETY: the panel holds `count` rows, the page 64 values, both of `stride` floats.
                unsafe {
                    match stride {
                        64 => page_norms::<64>(panel, count, page.values(), stride, share, norms),
                        80 => page_norms::<80>(panel, count, page.values(), stride, share, norms),
                        96 => page_norms::<96>(panel, count, page.values(), stride, share, norms),
                        128 => page_norms::<128>(panel, count, page.values(), stride, share, norms),
                        256 => page_norms::<256>(panel, count, page.values(), stride, share, norms),
                        _ => page_norms::<0>(panel, count, page.values(), stride, share, norms),
                    }
                }
            }
        }
    }
    Ok(())
}

unsafe fn page_norms<const WIDTH: usize>(
    panel: *const f32,
    count: usize,
    values: *const f32,
    stride: usize,
    share: f32,
    norms: &mut [f32],
) {
    let stride = if WIDTH == 0 { stride } else { WIDTH };
    for (four, norms) in norms.chunks_mut(4).enumerate() {
        let values = values.add(four * 4 * stride);
        let mut total = F4::zero();
        let mut n = 0;
        while n + 2 <= count {
            let [a, b] = dots_block::<2>(panel.add(n * stride), values, stride);
            total = total.add(a.abs().add(b.abs()));
            n += 2;
        }
        if n < count {
            let [a] = dots_block::<1>(panel.add(n * stride), values, stride);
            total = total.add(a.abs());
        }
        for (norm, x) in norms.iter_mut().zip(total.lanes()) {
            *norm += x * share;
        }
    }
}
