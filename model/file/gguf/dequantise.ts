/**
 * How the blocks of each tensor type become float32, bit for bit as PyPI gguf 0.19.0 does it (`gguf/quants.py`,
 * `dequantize_blocks`); NaNs may differ in their payload. `bytes` are whole blocks, `out` has their number of elements
 * (`dequantise` in `model/file/tensor_types.ts` checks that).
 *
 * Every product here is exact in double precision and, up to the last operation, in float32 too (a float16 scale times
 * a small integer), so rounding once, at the store into `out`, gives what float32 arithmetic gives.
 */
import { float16Table } from "./float16.ts";

/** Turns whole blocks into numbers. */
export type Decode = (bytes: Uint8Array, out: Float32Array) => void;

export function copyFloat32(bytes: Uint8Array, out: Float32Array): void {
  new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(bytes);
}

export function expandFloat16(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let i = 0; i < out.length; i++) out[i] = half[bytes[2 * i] | bytes[2 * i + 1] << 8];
}

export function expandBfloat16(bytes: Uint8Array, out: Float32Array): void {
  const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
  for (let i = 0; i < out.length; i++) bits[i] = (bytes[2 * i] | bytes[2 * i + 1] << 8) << 16;
}

/** Block: d, 16 bytes of two 4-bit q each (low: first half). Value d·(q − 8). */
export function expandQ4_0(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 18, to += 32) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let j = 0; j < 16; j++) {
      const q = bytes[at + 2 + j];
      out[to + j] = d * ((q & 15) - 8);
      out[to + 16 + j] = d * ((q >> 4) - 8);
    }
  }
}

/** Block: d, m, 16 bytes of two 4-bit q each (low: first half). Value d·q + m. */
export function expandQ4_1(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 20, to += 32) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    const m = half[bytes[at + 2] | bytes[at + 3] << 8];
    for (let j = 0; j < 16; j++) {
      const q = bytes[at + 4 + j];
      out[to + j] = d * (q & 15) + m;
      out[to + 16 + j] = d * (q >> 4) + m;
    }
  }
}

/** Block: d, 32 fifth bits, 16 bytes of two 4-bit q each (low: first half). Value d·(q − 16). */
export function expandQ5_0(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 22, to += 32) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    const fifth = bytes[at + 2] | bytes[at + 3] << 8 | bytes[at + 4] << 16 | bytes[at + 5] << 24;
    for (let j = 0; j < 16; j++) {
      const q = bytes[at + 6 + j];
      out[to + j] = d * ((q & 15 | (fifth >> j & 1) << 4) - 16);
      out[to + 16 + j] = d * ((q >> 4 | (fifth >> 16 + j & 1) << 4) - 16);
    }
  }
}

/** Block: d, 32 int8 q. Value d·q. */
export function expandQ8_0(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  const signed = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0, to = 0; to < out.length; at += 34, to += 32) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let j = 0; j < 32; j++) out[to + j] = d * signed[at + 2 + j];
  }
}

/**
 * Block: d, dmin, 12 bytes of 6-bit scales s and minima m of 8 groups of 32, then for each pair of groups 32 bytes of
 * two 4-bit q (low: first group). Value d·s·q − dmin·m.
 */
export function expandQ4_K(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 144, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    const dmin = half[bytes[at + 2] | bytes[at + 3] << 8];
    for (let group = 0; group < 8; group++) {
      const scale = d * groupScale(bytes, at + 4, group);
      const minimum = dmin * groupMinimum(bytes, at + 4, group);
      const from = at + 16 + (group >> 1) * 32;
      const shift = (group & 1) * 4;
      for (let j = 0; j < 32; j++) out[to + group * 32 + j] = scale * (bytes[from + j] >> shift & 15) - minimum;
    }
  }
}

/** Groups 0–3 have their 6 bits together; of 4–7 the upper two bits sit in the upper bits of 0–3. */
function groupScale(bytes: Uint8Array, at: number, group: number): number {
  if (group < 4) return bytes[at + group] & 63;
  return bytes[at + 4 + group] & 15 | bytes[at + group - 4] >> 2 & 48;
}

function groupMinimum(bytes: Uint8Array, at: number, group: number): number {
  if (group < 4) return bytes[at + 4 + group] & 63;
  return bytes[at + 4 + group] >> 4 | bytes[at + group] >> 2 & 48;
}

/**
 * Block: 128 bytes of lower 4 bits, 64 bytes of upper 2 bits, 16 int8 scales s (one for 16 elements), d. Each half of
 * the block has 64 bytes of lower bits (low nibbles: its first 64 elements) and 32 bytes of upper bits (bits 2n, 2n+1:
 * its n-th 32 elements). Value d·s·(q − 32).
 */
export function expandQ6_K(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  const signed = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0, to = 0; to < out.length; at += 210, to += 256) {
    const d = half[bytes[at + 208] | bytes[at + 209] << 8];
    for (let i = 0; i < 256; i++) {
      const side = i >> 7;
      const low = bytes[at + side * 64 + (i & 63)] >> (i >> 6 & 1) * 4 & 15;
      const high = bytes[at + 128 + side * 32 + (i & 31)] >> (i >> 5 & 3) * 2 & 3;
      out[to + i] = d * signed[at + 192 + (i >> 4)] * ((low | high << 4) - 32);
    }
  }
}
