/**
 * How the blocks of the i-quants below four bits and of the ternary types become float32; see `dequantise.ts`, whose rules
 * hold here too. An i-quant's places stand for several numbers at once, from the grids of `grids.ts`.
 */
import { float16Table } from "./float16.ts";
import { IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID } from "./grids.ts";

const IQ1_VALUES = [-1, 0, 1];
const IQ2_VALUES = [8, 25, 43];
const IQ3_XXS_VALUES = [4, 12, 20, 28, 36, 44, 52, 62];
const IQ3_S_VALUES = [1, 3, 5, 7, 9, 11, 13, 15];

/** A grid, `[entries, each]`, unpacked when it is first asked for. */
function gridOf(text: string, each: number, values: readonly number[]): () => Int8Array {
  let grid: Int8Array | undefined;
  return () => grid ??= unpacked(text, each, values);
}

function unpacked(text: string, each: number, values: readonly number[]): Int8Array {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), bits = values.length > 4 ? 3 : 2;
  const grid = new Int8Array(bytes.length / 2 * each);
  for (let entry = 0, to = 0; entry < bytes.length; entry += 2) {
    const codes = bytes[entry] | bytes[entry + 1] << 8;
    for (let i = 0; i < each; i++) grid[to++] = values[codes >> bits * i & (1 << bits) - 1];
  }
  return grid;
}

const iq2xxsGrid = gridOf(IQ2_XXS_GRID, 8, IQ2_VALUES), iq2xsGrid = gridOf(IQ2_XS_GRID, 8, IQ2_VALUES);
const iq2sGrid = gridOf(IQ2_S_GRID, 8, IQ2_VALUES), iq1Grid = gridOf(IQ1_GRID, 8, IQ1_VALUES);
const iq3xxsGrid = gridOf(IQ3_XXS_GRID, 4, IQ3_XXS_VALUES), iq3sGrid = gridOf(IQ3_S_GRID, 4, IQ3_S_VALUES);

/** Signs of eight numbers from seven bits: the eighth makes their number even. */
function evenSigns(bits: number): number {
  let odd = bits;
  for (const shift of [4, 2, 1]) odd ^= odd >> shift;
  return bits | (odd & 1) << 7;
}

/** `out[to + i] = scale · grid[from + i]`, less where the i-th bit of `signs` is set. */
function put(
  out: Float32Array,
  to: number,
  [grid, from]: readonly [Int8Array, number],
  count: number,
  scale: number,
  signs: number,
): void {
  for (let i = 0; i < count; i++) out[to + i] = signs >> i & 1 ? -scale * grid[from + i] : scale * grid[from + i];
}

function word(bytes: Uint8Array, at: number): number {
  return (bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16 | bytes[at + 3] << 24) >>> 0;
}

/** Block: d, for each group of 32 four places, then 4·7 bits of signs and a 4-bit scale s. Value d·(s + ½)/4·grid. */
export function expandIQ2_XXS(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table(), grid = iq2xxsGrid();
  for (let at = 0, to = 0; to < out.length; at += 66, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let group = 0; group < 8; group++) {
      const from = at + 2 + 8 * group, signs = word(bytes, from + 4), scale = d * (0.5 + (signs >>> 28)) * 0.25;
      for (let i = 0; i < 4; i++) {
        put(out, to + 32 * group + 8 * i, [grid, 8 * bytes[from + i]], 8, scale, evenSigns(signs >> 7 * i & 127));
      }
    }
  }
}

/** Block: d, 32 words of a 9-bit place and 7 bits of signs, 4-bit scales s of groups of 16. Value d·(s + ½)/4·grid. */
export function expandIQ2_XS(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table(), grid = iq2xsGrid();
  for (let at = 0, to = 0; to < out.length; at += 74, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let i = 0; i < 32; i++) {
      const place = bytes[at + 2 + 2 * i] | bytes[at + 3 + 2 * i] << 8;
      const scale = d * (0.5 + (bytes[at + 66 + (i >> 2)] >> (i & 2) * 2 & 15)) * 0.25;
      put(out, to + 8 * i, [grid, 8 * (place & 511)], 8, scale, evenSigns(place >> 9));
    }
  }
}

/** Block: d, the lower eight bits of 32 places, 32 bytes of signs, the places' upper two, 4-bit scales as IQ2_XS. */
export function expandIQ2_S(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table(), grid = iq2sGrid();
  for (let at = 0, to = 0; to < out.length; at += 82, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let i = 0; i < 32; i++) {
      const place = bytes[at + 2 + i] | (bytes[at + 66 + (i >> 2)] >> 2 * (i & 3) & 3) << 8;
      const scale = d * (0.5 + (bytes[at + 74 + (i >> 2)] >> (i & 2) * 2 & 15)) * 0.25;
      put(out, to + 8 * i, [grid, 8 * place], 8, scale, bytes[at + 34 + i]);
    }
  }
}

/** Block: d, 64 places, for each group of 32 4·7 bits of signs and a 4-bit scale s. Value d·(s + ½)/2·grid. */
export function expandIQ3_XXS(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table(), grid = iq3xxsGrid();
  for (let at = 0, to = 0; to < out.length; at += 98, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let group = 0; group < 8; group++) {
      const signs = word(bytes, at + 66 + 4 * group), scale = d * (0.5 + (signs >>> 28)) * 0.5;
      for (let i = 0; i < 8; i++) {
        const eight = evenSigns(signs >> 7 * (i >> 1) & 127), place = bytes[at + 2 + 8 * group + i];
        put(out, to + 32 * group + 4 * i, [grid, 4 * place], 4, scale, eight >> 4 * (i & 1));
      }
    }
  }
}

/**
 * Block: d, the lower eight bits of 64 places, their ninth, 32 bytes of signs, 4-bit scales s of groups of 32. Value
 * d·(2s + 1)·grid.
 */
export function expandIQ3_S(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table(), grid = iq3sGrid();
  for (let at = 0, to = 0; to < out.length; at += 110, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let i = 0; i < 64; i++) {
      const place = bytes[at + 2 + i] | (bytes[at + 66 + (i >> 3)] >> (i & 7) & 1) << 8;
      const scale = d * (1 + 2 * (bytes[at + 106 + (i >> 4)] >> (i >> 3 & 1) * 4 & 15));
      put(out, to + 4 * i, [grid, 4 * place], 4, scale, bytes[at + 74 + (i >> 1)] >> 4 * (i & 1));
    }
  }
}

/** What IQ1_S and IQ1_M add to all numbers of a group, or take off. */
const DELTA = 0.125;

/** `out[to + i] = scale · (grid[from + i] + delta)` for eight. */
function shifted(out: Float32Array, to: number, from: number, scale: number, delta: number): void {
  const grid = iq1Grid();
  for (let i = 0; i < 8; i++) out[to + i] = scale * (grid[from + i] + delta);
}

/**
 * Block: d, the lower eight bits of 32 places; for each group of 32 their upper three, a 3-bit scale s and a sign of δ.
 * Value d·(2s + 1)·(grid ± δ).
 */
export function expandIQ1_S(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 50, to += 256) {
    const d = half[bytes[at] | bytes[at + 1] << 8];
    for (let i = 0; i < 32; i++) {
      const high = bytes[at + 34 + 2 * (i >> 2)] | bytes[at + 35 + 2 * (i >> 2)] << 8;
      const place = bytes[at + 2 + i] | (high >> 3 * (i & 3) & 7) << 8;
      shifted(out, to + 8 * i, 8 * place, d * (2 * (high >> 12 & 7) + 1), high & 0x8000 ? -DELTA : DELTA);
    }
  }
}

/**
 * Block: the lower eight bits of 32 places; their upper three, each with a sign of δ; four words of 3-bit scales s of groups
 * of 16, in whose upper four bits d is. Value as IQ1_S.
 */
export function expandIQ1_M(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 56, to += 256) {
    const words = [0, 1, 2, 3].map((i) => bytes[at + 48 + 2 * i] | bytes[at + 49 + 2 * i] << 8);
    const d = half[words.reduce((bits, word, i) => bits | word >> 12 << 4 * i, 0)];
    for (let i = 0; i < 32; i++) {
      const high = bytes[at + 32 + (i >> 1)] >> 4 * (i & 1), place = bytes[at + i] | (high & 7) << 8;
      const scale = d * (2 * (words[i >> 3] >> 3 * (i >> 1 & 3) & 7) + 1);
      shifted(out, to + 8 * i, 8 * place, scale, high & 8 ? -DELTA : DELTA);
    }
  }
}

const POWERS_OF_3 = [1, 3, 9, 27, 81];

/** Block: 32, 16 and 4 bytes of five, five and four base-3 digits each, as fractions of 256; d. Value d·(digit − 1). */
export function expandTQ1_0(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 54) {
    const d = half[bytes[at + 52] | bytes[at + 53] << 8];
    for (const [from, count, digits] of [[0, 32, 5], [32, 16, 5], [48, 4, 4]]) {
      for (let digit = 0; digit < digits; digit++) {
        for (let i = 0; i < count; i++) {
          out[to++] = d * (((bytes[at + from + i] * POWERS_OF_3[digit] & 255) * 3 >> 8) - 1);
        }
      }
    }
  }
}

/** Block: 2-bit q in the order of Q2_K, d. Value d·(q − 1). */
export function expandTQ2_0(bytes: Uint8Array, out: Float32Array): void {
  const half = float16Table();
  for (let at = 0, to = 0; to < out.length; at += 66, to += 256) {
    const d = half[bytes[at + 64] | bytes[at + 65] << 8];
    for (let i = 0; i < 256; i++) {
      out[to + i] = d * ((bytes[at + (i >> 7) * 32 + (i & 31)] >> (i >> 5 & 3) * 2 & 3) - 1);
    }
  }
}
