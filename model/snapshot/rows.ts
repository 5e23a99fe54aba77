/**
 * Keys and values of a head as a cache stores them, to bytes and back: `copyRows` gives what is stored as float32, and
 * appending it stores the same, so both ways are exact, bit for bit. Typed arrays are little-endian, as the file is:
 * there is no runtime left that isn't.
 */
import { concatenate } from "../../core/concatenate.ts";
import { toHalf } from "../../core/backend/halves.ts";
import { toInt8 } from "../../core/backend/stored_rows.ts";
import type { RowType } from "../../core/cache/entry_type.ts";
import { float16Table } from "../file/gguf/float16.ts";
import type { Dtype } from "../file/safetensors.ts";

/** What a type of the cache is called in a safetensors file; rows of `int4` that are not packed are float16. */
export const ROW_DTYPES = { f32: "F32", f16: "F16", int8: "I8", int4: "F16" } as const satisfies Record<RowType, Dtype>;

/** Rows as bytes; scales, one a row, where the type has them. */
export interface PackedRows {
  readonly numbers: Uint8Array;
  readonly scales?: Uint8Array;
}

/** Rows of all heads of a layer, one head after another, `[rows, headDim]`. */
export function packRows(heads: readonly Float32Array[], type: RowType, headDim: number): PackedRows {
  const count = heads.reduce((sum, { length }) => sum + length, 0);
  if (type === "f32") return { numbers: bytesOf(concatenate(heads, Float32Array)) };
  if (type === "f16" || type === "int4") {
    const halves = new Uint16Array(count);
    let at = 0;
    for (const head of heads) for (let i = 0; i < head.length; i++) halves[at++] = toHalf(head[i]);
    return { numbers: bytesOf(halves) };
  }
  const numbers = new Int8Array(count), scales = new Float32Array(count / headDim);
  let row = 0;
  for (const head of heads) {
    for (let i = 0; i < head.length; i += headDim, row++) {
      scales[row] = toInt8(head.subarray(i, i + headDim), numbers, row * headDim);
    }
  }
  return { numbers: bytesOf(numbers), scales: bytesOf(scales) };
}

/** All rows as float32. The arrays are of their own, so that any of them may be viewed. */
export function unpackRows(
  numbers: Uint8Array<ArrayBuffer>,
  scales: Uint8Array<ArrayBuffer> | undefined,
  type: RowType,
  headDim: number,
): Float32Array {
  if (type === "f32") return new Float32Array(numbers.buffer, numbers.byteOffset, numbers.length / 4);
  if (type === "f16" || type === "int4") {
    const halves = new Uint16Array(numbers.buffer, numbers.byteOffset, numbers.length / 2), table = float16Table();
    const floats = new Float32Array(halves.length);
    for (let i = 0; i < halves.length; i++) floats[i] = table[halves[i]];
    return floats;
  }
  const whole = new Int8Array(numbers.buffer, numbers.byteOffset, numbers.length),
    floats = new Float32Array(whole.length);
  const scale = new Float32Array(scales!.buffer, scales!.byteOffset, scales!.length / 4);
  for (let row = 0, i = 0; row < scale.length; row++) {
    for (const end = i + headDim; i < end; i++) floats[i] = whole[i] * scale[row];
  }
  return floats;
}

/** The bytes under a typed array. */
export function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
}
