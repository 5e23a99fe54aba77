//! What 128-bit WebAssembly can do at most here: the two loops that the kernels' speed is given as a share of.
#![no_std]

use core::arch::wasm32::*;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

/// Grows the memory by `bytes` and returns where they begin, 0 when there is no room.
#[no_mangle]
pub extern "C" fn reserve(bytes: usize) -> usize {
    let pages = memory_grow::<0>(bytes.div_ceil(65536));
    if pages == usize::MAX {
        0
    } else {
        pages * 65536
    }
}

/// Reads `bytes` bytes, a multiple of 128, at `address` and returns a sum of them, so that nothing is left out.
#[no_mangle]
pub unsafe extern "C" fn read(address: usize, bytes: usize) -> i32 {
    let mut sums = [i32x4_splat(0); 8];
    let mut at = address as *const v128;
    let end = (address + bytes) as *const v128;
    while at < end {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = i32x4_add(*sum, v128_load(at.add(i)));
        }
        at = at.add(8);
    }
    let all = sums.into_iter().fold(i32x4_splat(0), |a, b| i32x4_add(a, b));
    i32x4_extract_lane::<0>(all)
        + i32x4_extract_lane::<1>(all)
        + i32x4_extract_lane::<2>(all)
        + i32x4_extract_lane::<3>(all)
}

/// `times` × 12 multiply-adds of four float32 lanes in registers, twelve independent chains.
#[no_mangle]
pub extern "C" fn multiply(times: i32, x: f32, y: f32) -> f32 {
    let (x, y) = (f32x4_splat(x), f32x4_splat(y));
    let mut sums = [f32x4_splat(0.0); 12];
    for _ in 0..times {
        for sum in &mut sums {
            #[cfg(target_feature = "relaxed-simd")]
            {
                *sum = f32x4_relaxed_madd(*sum, x, y);
            }
            #[cfg(not(target_feature = "relaxed-simd"))]
            {
                *sum = f32x4_add(f32x4_mul(*sum, x), y);
            }
        }
    }
    f32x4_extract_lane::<0>(sums.into_iter().fold(y, |a, b| f32x4_add(a, b)))
}
