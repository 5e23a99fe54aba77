/** Files as NumPy and safetensors write them, from this side. */
import { zipSync } from "fflate";

export interface NpyOptions {
  readonly descr?: string;
  readonly fortran?: boolean;
  readonly version?: 1 | 2 | 3;
}

/** An array file of raw bytes. */
export function npyFile(
  bytes: Uint8Array,
  shape: readonly number[],
  options: NpyOptions = {},
): Uint8Array<ArrayBuffer> {
  const { descr = "<f4", fortran = false, version = 1 } = options;
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
  const order = fortran ? "True" : "False";
  return npyOf(`{'descr': '${descr}', 'fortran_order': ${order}, 'shape': ${tuple}, }`, bytes, version);
}

/** An array file with this header. */
export function npyOf(header: string, bytes: Uint8Array, version: 1 | 2 | 3 = 1): Uint8Array<ArrayBuffer> {
  const from = version === 1 ? 10 : 12, length = Math.ceil((from + header.length + 1) / 64) * 64 - from;
  const file = new Uint8Array(from + length + bytes.length), view = new DataView(file.buffer);
  file.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, version, 0]);
  if (version === 1) view.setUint16(8, length, true);
  else view.setUint32(8, length, true);
  file.set(new TextEncoder().encode(`${header.padEnd(length - 1)}\n`), from);
  file.set(bytes, from + length);
  return file;
}

export function bytesOf(values: ArrayBufferView): Uint8Array<ArrayBuffer> {
  return new Uint8Array(values.buffer.slice(values.byteOffset, values.byteOffset + values.byteLength) as ArrayBuffer);
}

/** `.npz` of float32 arrays, stored or packed. */
export function npzFile(
  arrays: Readonly<Record<string, { readonly data: Float32Array; readonly shape: readonly number[] }>>,
  packed = false,
): Uint8Array<ArrayBuffer> {
  const files = Object.entries(arrays).map(([name, { data, shape }]) => [`${name}.npy`, npyFile(bytesOf(data), shape)]);
  return zipSync(Object.fromEntries(files), { level: packed ? 6 : 0 }) as Uint8Array<ArrayBuffer>;
}

/** A safetensors file with this header, as an object or as text, in front of `data`. */
export function safetensorsOf(header: unknown, data: Uint8Array = new Uint8Array(0)): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + text.length + data.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
  file.set(text, 8);
  file.set(data, 8 + text.length);
  return file;
}
