/** Types of floats that dumps hold, and their numbers as float32. */
import { float16Table } from "../file/gguf/float16.ts";

/** By the names of safetensors. F8_E4M3 has no infinities (OCP FP8), F8_E5M2 has. */
export const FLOAT_BYTES = { F64: 8, F32: 4, F16: 2, BF16: 2, F8_E4M3: 1, F8_E5M2: 1 } as const;
export type FloatType = keyof typeof FLOAT_BYTES;

export function isFloatType(name: string): name is FloatType {
  return Object.hasOwn(FLOAT_BYTES, name);
}

/** Puts the numbers of `bytes`, a whole number of them, into `into` from place `at` on. */
export function decodeFloats(type: FloatType, bytes: Uint8Array, into: Float32Array, at: number, little = true): void {
  const count = bytes.length / FLOAT_BYTES[type];
  if (type === "F8_E4M3" || type === "F8_E5M2") {
    const table = float8Table(type);
    for (let i = 0; i < count; i++) into[at + i] = table[bytes[i]];
    return;
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (type === "F64") { for (let i = 0; i < count; i++) into[at + i] = view.getFloat64(8 * i, little); }
  if (type === "F32") { for (let i = 0; i < count; i++) into[at + i] = view.getFloat32(4 * i, little); }
  if (type === "F16") {
    const table = float16Table();
    for (let i = 0; i < count; i++) into[at + i] = table[view.getUint16(2 * i, little)];
  }
  if (type === "BF16") {
    // The upper half of a float32.
    const bits = new Uint32Array(into.buffer, into.byteOffset + 4 * at, count);
    for (let i = 0; i < count; i++) bits[i] = view.getUint16(2 * i, little) << 16;
  }
}

/** How many numbers are NaN or infinite. */
export function countNotFinite(values: Float32Array): number {
  let count = 0;
  for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i])) count++;
  return count;
}

const tables = new Map<FloatType, Float32Array>();

function float8Table(type: "F8_E4M3" | "F8_E5M2"): Float32Array {
  const known = tables.get(type);
  if (known) return known;
  const table = Float32Array.from({ length: 256 }, (_, bits) => type === "F8_E4M3" ? e4m3(bits) : e5m2(bits));
  tables.set(type, table);
  return table;
}

/** Sign, 4 bits of exponent (bias 7), 3 of fraction; all ones is NaN (arXiv 2209.05433, table 1). */
function e4m3(bits: number): number {
  if ((bits & 0x7f) === 0x7f) return NaN;
  return small(bits, { exponent: bits >> 3 & 15, fraction: (bits & 7) / 8, bias: 7 });
}

/** Sign, 5 bits of exponent (bias 15), 2 of fraction, as a float16 cut short. */
function e5m2(bits: number): number {
  if ((bits & 0x7c) === 0x7c) return (bits & 3) === 0 ? (bits & 0x80 ? -Infinity : Infinity) : NaN;
  return small(bits, { exponent: bits >> 2 & 31, fraction: (bits & 3) / 4, bias: 15 });
}

function small(bits: number, { exponent, fraction, bias }: { exponent: number; fraction: number; bias: number }) {
  const sign = bits & 0x80 ? -1 : 1;
  return sign * (exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias));
}
