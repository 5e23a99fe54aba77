/** Rows of one width in one of the cache's types: the oracle of what the kernels store, bit for bit. */
import type { RowType } from "../cache/entry_type.ts";
import {
  firstPacked,
  GROUP,
  packedBytes,
  type PackedPart,
  packRows,
  parameterCount,
  type Part,
  unpackRows,
} from "../cache/packed.ts";
import { fromHalf, toHalf } from "./halves.ts";

const FLOAT = new Float32Array(1);
const BITS = new Uint32Array(FLOAT.buffer);

/** `[capacity, width]`. Rows of `int4` are float16 until they are packed; those appended later are float16 again. */
export class StoredRows {
  readonly type: RowType;
  readonly #width: number;
  readonly #part: Part;
  /** Of the rows that are not packed. */
  #numbers: Float32Array | Uint16Array | Int8Array;
  /** One per row; empty but for int8. */
  #scales = new Float32Array(0);
  /** The first rows. */
  #packed?: PackedPart;
  #packedRows = 0;

  constructor(width: number, type: RowType, part: Part) {
    this.type = type;
    this.#width = width;
    this.#part = part;
    this.#numbers = numbers(type, 0);
  }

  /** How many rows, from the first on, are packed. */
  get packedRows(): number {
    return this.#packedRows;
  }

  get capacity(): number {
    return this.#packedRows + this.#numbers.length / this.#width;
  }

  get byteLength(): number {
    const packed = packedBytes(this.#part, this.#packedRows, this.#width);
    return this.#numbers.byteLength + this.#scales.byteLength + packed;
  }

  /** Moves the first `used` rows to a block for `capacity`. */
  resize(capacity: number, used: number): void {
    if (used < this.#packedRows) this.#keepPacked(used);
    const loose = Math.max(0, used - this.#packedRows), room = Math.max(0, capacity - this.#packedRows);
    const before = this.#numbers.subarray(0, loose * this.#width), scales = this.#scales.subarray(0, loose);
    this.#numbers = numbers(this.type, room * this.#width);
    this.#numbers.set(before);
    if (this.type !== "int8") return;
    this.#scales = new Float32Array(room);
    this.#scales.set(scales);
  }

  /** Drops packed rows from the end. */
  #keepPacked(rows: number): void {
    this.#packed = rows > 0 ? firstPacked(this.#part, this.#packed!, rows, this.#width) : undefined;
    this.#packedRows = rows;
  }

  /** Drops rows from the end. */
  truncate(length: number): void {
    if (length < this.#packedRows) this.#keepPacked(length);
  }

  /** Stores `floats`, whole rows, from row `first` on. Packed ones are packed anew, which only values can be. */
  set(first: number, floats: Float32Array): void {
    const packed = Math.max(0, Math.min(this.#packedRows - first, floats.length / this.#width));
    if (packed > 0) this.#repack(first, floats.subarray(0, packed * this.#width));
    this.#setLoose(first + packed - this.#packedRows, floats.subarray(packed * this.#width));
  }

  #setLoose(first: number, floats: Float32Array): void {
    if (this.type === "f32") return this.#numbers.set(floats, first * this.#width);
    for (let at = 0, row = first; at < floats.length; at += this.#width, row++) {
      const [from, to] = [floats.subarray(at, at + this.#width), row * this.#width];
      if (this.type === "int8") this.#scales[row] = toInt8(from, this.#numbers, to);
      else from.forEach((x, j) => this.#numbers[to + j] = toHalf(x));
    }
  }

  #repack(first: number, floats: Float32Array): void {
    if (this.#part === "keys") throw new RangeError("Packed keys are stored by groups");
    const rows = floats.length / this.#width, codes = this.#packed!.codes.length / this.#packedRows;
    const packed = packRows("values", floats.map((x) => fromHalf(toHalf(x))), this.#width);
    const each = parameterCount("values", 1, this.#width);
    this.#packed!.codes.set(packed.codes.subarray(0, rows * codes), first * codes);
    this.#packed!.scales.set(packed.scales, first * each);
    this.#packed!.zeros.set(packed.zeros, first * each);
  }

  /** Packs the first `used` rows, or takes codes of the first rows as they are; nothing unless the type is `int4`. */
  pack(used: number, given?: { readonly rows: number; readonly part?: PackedPart }): void {
    if (this.type !== "int4") return;
    if (given) {
      if (given.rows === 0) return;
      const loose = this.#numbers.slice(given.rows * this.#width, used * this.#width);
      [this.#packed, this.#packedRows, this.#numbers] = [given.part, given.rows, loose];
      return;
    }
    if (this.#packedRows === used) return;
    this.loosen(this.#packedRows - this.#packedRows % GROUP, used);
    const fresh = packRows(this.#part, this.floats(used).subarray(this.#packedRows * this.#width), this.#width);
    this.#packed = this.#packed ? joined(this.#packed, fresh) : fresh;
    this.#packedRows = used;
    this.#numbers = numbers(this.type, 0);
  }

  /** Packed rows from `from` on, the first of a group, become float16 again. */
  loosen(from: number, used: number): void {
    if (from >= this.#packedRows) return;
    const capacity = this.capacity, floats = this.floats(used).slice(from * this.#width);
    this.#keepPacked(from);
    this.#numbers = numbers(this.type, (capacity - from) * this.#width);
    this.#setLoose(0, floats);
  }

  /** As {@link pack} takes it back. */
  get packed(): PackedPart | undefined {
    return this.#packed && firstPacked(this.#part, this.#packed, this.#packedRows, this.#width);
  }

  /** Copies row `from` over row `to`; neither is packed. */
  move(from: number, to: number): void {
    if (from === to) return;
    const [source, target] = [from - this.#packedRows, to - this.#packedRows];
    this.#numbers.copyWithin(target * this.#width, source * this.#width, (source + 1) * this.#width);
    if (this.type === "int8") this.#scales[target] = this.#scales[source];
  }

  /** Stored numbers and scales of the first `used` rows, as they are, from `other` rows of the same kind. */
  copyFrom(other: StoredRows, used: number): void {
    if (other.#packedRows > 0) {
      this.pack(used, { rows: other.#packedRows, part: other.packed });
      this.resize(Math.max(used, this.capacity), other.#packedRows);
    }
    const loose = used - other.#packedRows;
    this.#numbers.set(other.#numbers.subarray(0, loose * this.#width));
    this.#scales.set(other.#scales.subarray(0, Math.min(loose, other.#scales.length)));
  }

  /** The first `used` rows as float32; for `f32` not a copy. */
  floats(used: number): Float32Array {
    if (this.#packed) {
      const all = new Float32Array(used * this.#width), rows = Math.min(used, this.#packedRows);
      all.set(unpackRows(this.#part, this.#packed, rows, this.#width));
      all.set(this.#looseFloats(used - rows), rows * this.#width);
      return all;
    }
    return this.#looseFloats(used);
  }

  #looseFloats(used: number): Float32Array {
    const stored = this.#numbers.subarray(0, used * this.#width);
    if (stored instanceof Float32Array) return stored;
    if (stored instanceof Uint16Array) return Float32Array.from(stored, fromHalf);
    return Float32Array.from(stored, (x, i) => x * this.#scales[Math.floor(i / this.#width)]);
  }
}

/** Groups behind whole groups. */
function joined(first: PackedPart, then: PackedPart): PackedPart {
  const codes = new Uint8Array(first.codes.length + then.codes.length);
  codes.set(first.codes);
  codes.set(then.codes, first.codes.length);
  const both = (a: Uint16Array, b: Uint16Array) => Uint16Array.from([...a, ...b]);
  return { codes, scales: both(first.scales, then.scales), zeros: both(first.zeros, then.zeros) };
}

function numbers(type: RowType, count: number): Float32Array | Uint16Array | Int8Array {
  if (type === "f32") return new Float32Array(count);
  return type === "int8" ? new Int8Array(count) : new Uint16Array(count);
}

/**
 * Stores a row of finite floats at `to[at …]` and returns its scale: largest / 127, rounded up to 17 bits of mantissa.
 * Then a whole number times the scale is exact in float32, and storing what was read gives the same row.
 */
export function toInt8(row: Float32Array, to: Float32Array | Uint16Array | Int8Array, at: number): number {
  let most = 0;
  for (const x of row) most = Math.max(most, Math.abs(x));
  FLOAT[0] = most / 127;
  BITS[0] = BITS[0] + 0x7f & ~0x7f;
  const scale = FLOAT[0];
  row.forEach((x, j) => to[at + j] = scale === 0 ? 0 : roundHalfToEven(Math.fround(x / scale)));
  return scale;
}

/** Ties to even, |x| < 2²². */
function roundHalfToEven(x: number): number {
  const low = Math.floor(x), off = x - low;
  return off > 0.5 || (off === 0.5 && low % 2 !== 0) ? low + 1 : low;
}
