/**
 * Rows of four bits: keys in groups of 32 rows of one channel, values in groups of 32 channels of one row (KIVI's layout,
 * arXiv 2402.02750).
 *
 * A number is zero + scale · q, q from 0 to 15. Scale and zero are float16, as the rows were before: so zero is exactly
 * the group's least, scale · q is exact, and a number is off by half a scale at most: 1/30 of the group's range.
 * A last group of keys may have fewer rows. Widths are filled up to whole groups with zeros.
 *
 * The kernels store the same bits (`wasm/kernels/src/packed.rs`).
 */
import { fromHalf, toHalf } from "../backend/halves.ts";

/** Numbers that share a scale and a zero. */
export const GROUP = 32;

export type Part = "keys" | "values";

/** One head's packed keys or values. */
export interface PackedPart {
  /** `[rows, width / 2]`, two numbers a byte: of each 32 channels 16 bytes, byte `j` with channel `j` in its low bits. */
  readonly codes: Uint8Array;
  /** float16: of keys `[groups of rows, width]`, of values `[rows, groups of channels]`. */
  readonly scales: Uint16Array;
  /** The same. */
  readonly zeros: Uint16Array;
}

/** What is packed of one head: its first `rows` rows, the part or parts whose type is `int4`. */
export interface PackedHead {
  readonly rows: number;
  readonly keys?: PackedPart;
  readonly values?: PackedPart;
}

/** A row's numbers, filled up to whole groups. */
export function packedWidth(headDim: number): number {
  return Math.ceil(headDim / GROUP) * GROUP;
}

/** Bytes of `rows` packed rows. */
export function packedBytes(part: Part, rows: number, headDim: number): number {
  return rows * packedWidth(headDim) / 2 + 4 * parameterCount(part, rows, headDim);
}

/** Scales, and as many zeros, of `rows` packed rows. */
export function parameterCount(part: Part, rows: number, headDim: number): number {
  const width = packedWidth(headDim);
  return part === "keys" ? Math.ceil(rows / GROUP) * width : rows * width / GROUP;
}

/** Room for so many rows. */
export function emptyPart(part: Part, rows: number, headDim: number): PackedPart {
  const parameters = parameterCount(part, rows, headDim);
  return {
    codes: new Uint8Array(rows * packedWidth(headDim) / 2),
    scales: new Uint16Array(parameters),
    zeros: new Uint16Array(parameters),
  };
}

/** Packs rows that float16 holds, `[rows, headDim]`. */
export function packRows(part: Part, floats: Float32Array, headDim: number): PackedPart {
  const rows = floats.length / headDim, packed = emptyPart(part, rows, headDim), width = packedWidth(headDim);
  const at = (row: number, channel: number) => channel < headDim ? floats[row * headDim + channel] : 0;
  for (let row = 0; row < rows; row += part === "keys" ? GROUP : 1) {
    for (let channel = 0; channel < width; channel += part === "keys" ? 1 : GROUP) {
      const places = part === "keys"
        ? Array.from({ length: Math.min(GROUP, rows - row) }, (_, i) => [row + i, channel])
        : Array.from({ length: GROUP }, (_, i) => [row, channel + i]);
      const numbers = places.map(([r, c]) => at(r, c));
      const group = parameterPlace(part, row, channel, width);
      const { scale, zero } = parametersOf(numbers);
      packed.scales[group] = scale;
      packed.zeros[group] = zero;
      places.forEach(([r, c], i) =>
        packed.codes[codePlace(r, c, width)] |= codeOf(numbers[i], scale, zero) << shift(c)
      );
    }
  }
  return packed;
}

/** The first `rows` packed rows as float32, `[rows, headDim]`. */
export function unpackRows(part: Part, packed: PackedPart, rows: number, headDim: number): Float32Array {
  const floats = new Float32Array(rows * headDim), width = packedWidth(headDim), { codes } = packed;
  // Each parameter is read as float once, not for each number.
  const scales = Float64Array.from(packed.scales, fromHalf), zeros = Float64Array.from(packed.zeros, fromHalf);
  const step = part === "keys" ? 1 : 0;
  for (let row = 0; row < rows; row++) {
    for (let first = 0; first < headDim; first += 16) {
      const group = parameterPlace(part, row, first, width), end = row * headDim + Math.min(headDim, first + 16);
      const up = shift(first);
      let from = codePlace(row, first, width), parameter = group;
      for (let to = row * headDim + first; to < end; to++, from++, parameter += step) {
        floats[to] = zeros[parameter] + scales[parameter] * (codes[from] >> up & 15);
      }
    }
  }
  return floats;
}

/** The first rows alone. */
export function firstPacked(part: Part, packed: PackedPart, rows: number, headDim: number): PackedPart {
  const parameters = parameterCount(part, rows, headDim);
  return {
    codes: packed.codes.slice(0, rows * packedWidth(headDim) / 2),
    scales: packed.scales.slice(0, parameters),
    zeros: packed.zeros.slice(0, parameters),
  };
}

/** How many of a head's packed rows stay packed when only the `kept` rows stay: those in front of the first that moves. */
export function packedAfter(kept: Int32Array, packed: number): number {
  let still = 0;
  while (still < kept.length && kept[still] === still) still++;
  if (still === kept.length) return Math.min(packed, still);
  return still < packed ? still - still % GROUP : packed;
}

function parameterPlace(part: Part, row: number, channel: number, width: number): number {
  return part === "keys"
    ? Math.floor(row / GROUP) * width + channel
    : row * (width / GROUP) + Math.floor(channel / GROUP);
}

function codePlace(row: number, channel: number, width: number): number {
  return row * width / 2 + Math.floor(channel / GROUP) * 16 + channel % 16;
}

function shift(channel: number): number {
  return Math.floor(channel % GROUP / 16) * 4;
}

/** The scale is rounded up, so that 15 of it reach the group's largest. */
function parametersOf(numbers: readonly number[]): { scale: number; zero: number } {
  const least = Math.min(...numbers), range = Math.fround(Math.max(...numbers) - least);
  let scale = toHalf(Math.fround(range / 15));
  if (fromHalf(scale) * 15 < range) scale++;
  // +0 where it is −0.
  return { scale, zero: toHalf(least + 0) };
}

function codeOf(x: number, scale: number, zero: number): number {
  const step = fromHalf(scale);
  if (step === 0) return 0;
  const steps = Math.fround(Math.fround(x - fromHalf(zero)) / step);
  const low = Math.floor(steps), off = steps - low;
  return Math.max(0, Math.min(15, off > 0.5 || (off === 0.5 && low % 2 !== 0) ? low + 1 : low));
}
