/** Rows of one width in one of the cache's types: the oracle of what the kernels store, bit for bit. */
import type { CacheType } from "../cache/entry_type.ts";

const FLOAT = new Float32Array(1);
const BITS = new Uint32Array(FLOAT.buffer);

/** `[capacity, width]`. */
export class StoredRows {
  readonly type: CacheType;
  readonly #width: number;
  #numbers: Float32Array | Uint16Array | Int8Array;
  /** One per row; empty but for int8. */
  #scales = new Float32Array(0);

  constructor(width: number, type: CacheType) {
    this.type = type;
    this.#width = width;
    this.#numbers = numbers(type, 0);
  }

  get capacity(): number {
    return this.#numbers.length / this.#width;
  }

  get byteLength(): number {
    return this.#numbers.byteLength + this.#scales.byteLength;
  }

  /** Moves the first `used` rows to a block for `capacity`. */
  resize(capacity: number, used: number): void {
    const before = this.#numbers.subarray(0, used * this.#width), scales = this.#scales.subarray(0, used);
    this.#numbers = numbers(this.type, capacity * this.#width);
    this.#numbers.set(before);
    if (this.type !== "int8") return;
    this.#scales = new Float32Array(capacity);
    this.#scales.set(scales);
  }

  /** Stores `floats`, whole rows, from row `first` on. */
  set(first: number, floats: Float32Array): void {
    if (this.type === "f32") return this.#numbers.set(floats, first * this.#width);
    for (let at = 0, row = first; at < floats.length; at += this.#width, row++) {
      const [from, to] = [floats.subarray(at, at + this.#width), row * this.#width];
      if (this.type === "int8") this.#scales[row] = toInt8(from, this.#numbers, to);
      else from.forEach((x, j) => this.#numbers[to + j] = toHalf(x));
    }
  }

  /** Copies row `from` over row `to`. */
  move(from: number, to: number): void {
    this.#numbers.copyWithin(to * this.#width, from * this.#width, (from + 1) * this.#width);
    if (this.type === "int8") this.#scales[to] = this.#scales[from];
  }

  /** Stored numbers and scales of the first `used` rows, as they are, from `other` rows of the same kind. */
  copyFrom(other: StoredRows, used: number): void {
    this.#numbers.set(other.#numbers.subarray(0, used * this.#width));
    this.#scales.set(other.#scales.subarray(0, Math.min(used, other.#scales.length)));
  }

  /** The first `used` rows as float32; for `f32` not a copy. */
  floats(used: number): Float32Array {
    const stored = this.#numbers.subarray(0, used * this.#width);
    if (stored instanceof Float32Array) return stored;
    if (stored instanceof Uint16Array) return Float32Array.from(stored, fromHalf);
    return Float32Array.from(stored, (x, i) => x * this.#scales[Math.floor(i / this.#width)]);
  }
}

function numbers(type: CacheType, count: number): Float32Array | Uint16Array | Int8Array {
  if (type === "f32") return new Float32Array(count);
  return type === "f16" ? new Uint16Array(count) : new Int8Array(count);
}

/**
 * The float16 pattern next to a finite |x| < 65520, ties to even. Normal halves: the mantissa loses 13 bits, with a
 * carry; subnormal ones: adding ½ leaves multiples of 2⁻²⁴ in the low bits.
 */
export function toHalf(x: number): number {
  FLOAT[0] = x;
  const sign = BITS[0] >>> 16 & 0x8000, magnitude = BITS[0] & 0x7fffffff;
  if (magnitude >= 0x38800000) return sign | magnitude - 0x38000000 + 0xfff + (magnitude >>> 13 & 1) >>> 13;
  FLOAT[0] = Math.abs(x) + 0.5;
  return sign | BITS[0] - 0x3f000000;
}

/** Exact. */
function fromHalf(half: number): number {
  const exponent = half >>> 10 & 31, mantissa = half & 1023;
  const magnitude = exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
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
