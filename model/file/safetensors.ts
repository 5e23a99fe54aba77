/**
 * Safetensors files (https://huggingface.co/docs/safetensors): eight bytes with the header's length, a JSON header, the
 * tensors one after another. Read whole, for small files; a file from outside is checked before anything is taken from it.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import { float16Table } from "./gguf/float16.ts";
import { dataStart, type Dtype, type HeaderEntry, parseHeader } from "./safetensors_header.ts";

export { checkHeader, type Dtype, DTYPE_BYTES, type HeaderEntry } from "./safetensors_header.ts";

/** Types that are read as float32, and those that are written. */
const BYTES = { F16: 2, F32: 4, I32: 4 } as const;
const METADATA = "__metadata__";

export interface SafeTensor {
  readonly dtype: Dtype;
  /** Outermost dimension first. */
  readonly shape: readonly number[];
  /** A copy as float32. @throws PalisadeError `safetensors.dtype` for other types than F16 and F32. */
  read(): Float32Array;
}

export interface SafetensorsFile {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, SafeTensor>;
}

/**
 * Reads a file's bytes; `file` is its name for messages.
 *
 * PalisadeErrors of kind input with `where` = the field: `safetensors.truncated` (too short for its header),
 * `safetensors.header` (not JSON of the right form, too large), `safetensors.dtype`, `safetensors.shape`,
 * `safetensors.offsets` (outside the file, not as long as the shape says, overlapping, or with holes between).
 */
export function parseSafetensors(bytes: Uint8Array, file: string): SafetensorsFile {
  const start = dataStart(bytes.subarray(0, 9), bytes.length, file);
  const { metadata, tensors } = parseHeader(bytes.subarray(8, start), bytes.length - start, file);
  return {
    metadata,
    tensors: new Map(tensors.map((entry) => [entry.name, tensorOf(entry, bytes.subarray(start), file)])),
  };
}

function refuse(code: string, file: string, where: string, reason: string): PalisadeError {
  return inputError(`safetensors.${code}`, `${file}: ${reason}`, where);
}

function tensorOf({ name, dtype, shape, start, end }: HeaderEntry, data: Uint8Array, file: string): SafeTensor {
  return {
    dtype,
    shape,
    read() {
      // A copy, because a tensor's offset need not be a multiple of its element size. Not `slice`: a Buffer's shares.
      const bytes = new Uint8Array(data.subarray(start, end));
      if (dtype === "F32") return new Float32Array(bytes.buffer);
      if (dtype === "F16") return Float32Array.from(new Uint16Array(bytes.buffer), (bits) => float16Table()[bits]);
      throw refuse("dtype", file, `tensor[${JSON.stringify(name)}].dtype`, `${dtype} can't be read; F16 and F32 can`);
    },
  };
}

/** What {@link writeSafetensors} writes. */
export interface TensorToWrite {
  readonly name: string;
  readonly dtype: keyof typeof BYTES;
  readonly shape: readonly number[];
  readonly data: Float32Array | Int32Array;
}

/**
 * The bytes of a file, tensors in the given order, the header padded so that the data begins at a multiple of 8.
 * F16 values are rounded to nearest, ties to even.
 * @throws RangeError when a shape does not fit its data, or a value is too large for F16.
 */
export function writeSafetensors(
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array<ArrayBuffer> {
  const header: Record<string, unknown> = { [METADATA]: metadata };
  let end = 0;
  for (const { name, dtype, shape, data } of tensors) {
    if (shape.reduce((product, size) => product * size, 1) !== data.length) {
      throw new RangeError(`Tensor ${name} has ${data.length} values: want ${shape.join(" × ")}`);
    }
    header[name] = { dtype, shape, data_offsets: [end, end += data.length * BYTES[dtype]] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const headerBytes = Math.ceil(text.length / 8) * 8;
  const bytes = new Uint8Array(8 + headerBytes + end);
  bytes.fill(0x20, 8, 8 + headerBytes).set(text, 8);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(headerBytes), true);
  let at = 8 + headerBytes;
  for (const { name, dtype, data } of tensors) {
    for (const value of data) {
      if (dtype === "F32") view.setFloat32(at, value, true);
      else if (dtype === "I32") view.setInt32(at, value, true);
      else view.setUint16(at, toFloat16(value, name), true);
      at += BYTES[dtype];
    }
  }
  return bytes;
}

/** The values as F16 holds them, in a new array. @throws RangeError for one that is too large. */
export function roundToFloat16(values: Float32Array): Float32Array {
  return values.map((value) => float16Table()[toFloat16(value, "values")]);
}

/** The bit pattern of the nearest binary16. */
function toFloat16(value: number, name: string): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (!(size < 65520)) throw new RangeError(`Tensor ${name}: ${value} does not fit into F16`);
  const exponent = Math.max(-14, Math.floor(Math.log2(size || 1e-10)));
  // In units of the last place, ties to even; a carry moves into the exponent by itself.
  const units = roundToEven(size / 2 ** (exponent - 10));
  return sign + (exponent + 14) * 1024 + units;
}

function roundToEven(value: number): number {
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 === 1) ? low + 1 : low;
}
