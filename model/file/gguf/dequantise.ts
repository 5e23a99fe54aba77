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

/** Block: d, m, 32 fifth bits, 16 bytes of two 4-bit q each (low: first half). Value d·q + m. */
export function expandQ5_1(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 24, to += 32) {
    const d = half[bytes[at] | bytes[at + 1] << 8], m = half[bytes[at + 2] | bytes[at + 3] << 8];
    for (let j = 0; j < 32; j++) {
      const fifth = bytes[at + 4 + (j >> 3)] >> (j & 7) & 1;
      out[to + j] = d * (nibble(bytes, at + 8, j) | fifth << 4) + m;
    }
  }
}

/** 4-bit q number `j` of 32 in 16 bytes (low: first half). */
function nibble(bytes: Uint8Array, at: number, j: number): number {
  return bytes[at + (j & 15)] >> (j & 16) / 4 & 15;
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

/**
 * Block: 16 bytes of 4-bit scales s (low) and minima m (high) of groups of 16, then for each half of the block 32 bytes
 * of four 2-bit q (lowest: its first 32 elements), d, dmin. Value d·s·q − dmin·m.
 */
export function expandQ2_K(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 84, to += 256) {
    const d = half[bytes[at + 80] | bytes[at + 81] << 8], dmin = half[bytes[at + 82] | bytes[at + 83] << 8];
    for (let i = 0; i < 256; i++) {
      const group = bytes[at + (i >> 4)];
      out[to + i] = d * (group & 15) * twoBits(bytes, at + 16, i) - dmin * (group >> 4);
    }
  }
}

/**
 * Block: 32 bytes of third bits (bit n: the n-th 32 elements), the lower two as in Q2_K, 12 bytes of 6-bit scales s of
 * groups of 16, d. Value d·(s − 32)·(q − 4).
 */
export function expandQ3_K(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 110, to += 256) {
    const d = half[bytes[at + 108] | bytes[at + 109] << 8];
    for (let i = 0; i < 256; i++) {
      const third = bytes[at + (i & 31)] >> (i >> 5) & 1;
      out[to + i] = d * smallScale(bytes, at + 96, i >> 4) * (twoBits(bytes, at + 32, i) + 4 * third - 4);
    }
  }
}

function twoBits(bytes: Uint8Array, at: number, i: number): number {
  return bytes[at + (i >> 7) * 32 + (i & 31)] >> (i >> 5 & 3) * 2 & 3;
}

/** Of 16 scales the lower four bits are in the halves of 8 bytes, the upper two in the quarters of 4. */
function smallScale(bytes: Uint8Array, at: number, group: number): number {
  const low = bytes[at + (group & 7)] >> (group >> 3) * 4 & 15;
  return (low | (bytes[at + 8 + (group & 3)] >> (group >> 2) * 2 & 3) << 4) - 32;
}

/** Block: as Q4_K with 32 bytes of fifth bits (bit n: the n-th group) before the 4-bit q. Value d·s·q − dmin·m. */
export function expandQ5_K(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 176, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8], dmin = half[bytes[at + 2] | bytes[at + 3] << 8];
    for (let group = 0; group < 8; group++) {
      const scale = d * groupScale(bytes, at + 4, group), minimum = dmin * groupMinimum(bytes, at + 4, group);
      const from = at + 48 + (group >> 1) * 32, shift = (group & 1) * 4;
      for (let j = 0; j < 32; j++) {
        const fifth = bytes[at + 16 + j] >> group & 1;
        out[to + group * 32 + j] = scale * (bytes[from + j] >> shift & 15 | fifth << 4) - minimum;
      }
    }
  }
}

/** What the 4-bit q of IQ4_NL and IQ4_XS stand for. */
const IQ4_VALUES = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** Block: d, 16 bytes of two 4-bit places in `IQ4_VALUES` each (low: first half). Value d·v. */
export function expandIQ4_NL(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 18, to += 32) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let j = 0; j < 32; j++) out[to + j] = d * IQ4_VALUES[nibble(bytes, at + 2, j)];
  }
}

/**
 * Block: d, the upper two bits of 8 scales s in 16 bits, their lower four in 4 bytes, for each group of 32 16 bytes as
 * in IQ4_NL. Value d·(s − 32)·v.
 */
export function expandIQ4_XS(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 136, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8], high = bytes[at + 2] | bytes[at + 3] << 8;
    for (let group = 0; group < 8; group++) {
      const low = bytes[at + 4 + (group >> 1)] >> (group & 1) * 4 & 15;
      const scale = d * ((low | (high >> 2 * group & 3) << 4) - 32);
      for (let j = 0; j < 32; j++) {
        out[to + group * 32 + j] = scale * IQ4_VALUES[nibble(bytes, at + 8 + group * 16, j)];
      }
    }
  }
}

/** Twice the 4-bit floats of the OCP Microscaling specification: a sign, two bits of exponent, one of mantissa. */
const FP4_DOUBLES = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/** Block: an exponent e, 16 bytes of two 4-bit floats each (low: first half). Value 2^(e − 127) times the float. */
export function expandMXFP4(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 17, to += 32) {
    const d = 2 ** (bytes[at] - 128);
    for (let j = 0; j < 32; j++) out[to + j] = d * FP4_DOUBLES[nibble(bytes, at + 1, j)];
  }
}
