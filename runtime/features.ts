/**
 * What the WebAssembly engine at hand can do, found by validating modules of a few bytes. No runtime names; nothing
 * is compiled or run.
 */

/** `\0asm`, version 1. */
const HEADER = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];

// (module (func (result v128) i32.const 0 i8x16.splat))
const SIMD128 = [
  ...HEADER,
  ...[0x01, 0x05, 0x01, 0x60, 0x00, 0x01, 0x7b], // type 0: () -> v128
  ...[0x03, 0x02, 0x01, 0x00], // function 0: type 0
  ...[0x0a, 0x08, 0x01, 0x06, 0x00, 0x41, 0x00, 0xfd, 0x0f, 0x0b],
];

// (module (func (result v128)
//   i32.const 0 i8x16.splat i32.const 0 i8x16.splat i32.const 0 i8x16.splat f32x4.relaxed_madd))
const RELAXED_SIMD = [
  ...HEADER,
  ...[0x01, 0x05, 0x01, 0x60, 0x00, 0x01, 0x7b],
  ...[0x03, 0x02, 0x01, 0x00],
  ...[0x0a, 0x13, 0x01, 0x11, 0x00],
  ...[0x41, 0x00, 0xfd, 0x0f, 0x41, 0x00, 0xfd, 0x0f, 0x41, 0x00, 0xfd, 0x0f, 0xfd, 0x85, 0x02, 0x0b],
];

// (module (memory 1 1 shared) (func i32.const 0 i32.atomic.load drop))
const THREADS = [
  ...HEADER,
  ...[0x01, 0x04, 0x01, 0x60, 0x00, 0x00], // type 0: () -> ()
  ...[0x03, 0x02, 0x01, 0x00],
  ...[0x05, 0x04, 0x01, 0x03, 0x01, 0x01], // memory 0: one shared page
  ...[0x0a, 0x0b, 0x01, 0x09, 0x00, 0x41, 0x00, 0xfe, 0x10, 0x02, 0x00, 0x1a, 0x0b],
];

function validates(bytes: readonly number[]): boolean {
  return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(bytes));
}

/** Whether 128-bit vectors are there (WebAssembly 2.0). */
export function hasSimd128(): boolean {
  return validates(SIMD128);
}

/** Whether relaxed vector instructions are there: fused multiply-add, 8-bit dot products (WebAssembly 3.0). */
export function hasRelaxedSimd(): boolean {
  return validates(RELAXED_SIMD);
}

/**
 * Whether threads can share a WebAssembly memory: atomics in the engine, and `SharedArrayBuffer`, which browsers
 * give only to cross-origin isolated pages.
 */
export function hasThreads(): boolean {
  return typeof SharedArrayBuffer === "function" && validates(THREADS);
}
