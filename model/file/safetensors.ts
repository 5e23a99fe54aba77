/**
 * Safetensors files (https://huggingface.co/docs/safetensors): eight bytes with the header's length, a JSON header, the
 * tensors one after another. Read whole, for small files; a file from outside is checked before anything is taken from it.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import { float16Table } from "./gguf/float16.ts";

/** Types that are read as float32. */
const BYTES = { F16: 2, F32: 4 } as const;
/** Bytes of the types that are known, so that a file holding them can be checked. */
export const DTYPE_BYTES = {
  ...BYTES,
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

export type Dtype = keyof typeof DTYPE_BYTES;
/** The format's own limit is 100 MB; small files need far less. */
const MAX_HEADER = 4 * 2 ** 20;
const MAX_TENSORS = 65536;
const MAX_DIMENSIONS = 8;
const METADATA = "__metadata__";
/** The first byte of every header. */
const BRACE = 0x7b;
const NO_SAFETENSORS = "it isn't a safetensors file";

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

/** A tensor as a checked header describes it: `start` and `end` count from the first byte behind the header. */
export interface HeaderEntry {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly start: number;
  readonly end: number;
}

/**
 * Reads a file's bytes; `file` is its name for messages.
 *
 * PalisadeErrors of kind input with `where` = the field: `safetensors.truncated` (too short for its header),
 * `safetensors.header` (not JSON of the right form, too large), `safetensors.dtype`, `safetensors.shape`,
 * `safetensors.offsets` (outside the file, not as long as the shape says, overlapping, or with holes between).
 */
export function parseSafetensors(bytes: Uint8Array, file: string): SafetensorsFile {
  const { header, start } = readHeader(bytes, file);
  const metadata = readMetadata(header[METADATA], file);
  const { entries } = checkHeader(header, file, bytes.length - start);
  return {
    metadata,
    tensors: new Map(entries.map((entry) => [entry.name, tensorOf(entry, bytes.subarray(start), file)])),
  };
}

/**
 * The tensors that a header describes, in the order of their data, which they cover without holes; `end`: where they
 * end. `dataBytes`: how many there are behind the header, where that is known. Throws as {@link parseSafetensors}.
 */
export function checkHeader(
  header: Readonly<Record<string, unknown>>,
  file: string,
  dataBytes?: number,
): { readonly entries: readonly HeaderEntry[]; readonly end: number } {
  const described = Object.entries(header).filter(([name]) => name !== METADATA);
  if (described.length > MAX_TENSORS) {
    throw refuse("header", file, "", `${described.length} tensors; at most ${MAX_TENSORS}`);
  }
  const entries = described.map(([name, value]) => checkEntry(name, value, file))
    .sort((a, b) => a.start - b.start || a.end - b.end);
  return { entries, end: checkLayout(entries, dataBytes, file) };
}

function refuse(code: string, file: string, where: string, reason: string): PalisadeError {
  return inputError(`safetensors.${code}`, `${file}: ${reason}`, where);
}

function readHeader(bytes: Uint8Array, file: string): { header: Record<string, unknown>; start: number } {
  if (bytes.length < 8) {
    throw refuse("truncated", file, "", `${NO_SAFETENSORS}: ${bytes.length} bytes, want at least 8`);
  }
  const length = new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER)) {
    if (bytes[8] !== BRACE) throw refuse("header", file, "", NO_SAFETENSORS);
    throw refuse("header", file, "header.length", `a header of ${length} bytes: want at most ${MAX_HEADER}`);
  }
  const start = 8 + Number(length);
  if (start > bytes.length) {
    throw refuse("truncated", file, "header.length", `a header of ${length} bytes in a file of ${bytes.length}`);
  }
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, start)));
  } catch (error) {
    throw refuse("header", file, "header", `the header is no JSON text: ${(error as Error).message}`);
  }
  if (!isObject(header)) throw refuse("header", file, "header", "the header is no JSON object");
  return { header, start };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function readMetadata(value: unknown, file: string): Map<string, string> {
  if (value === undefined) return new Map();
  if (!isObject(value) || !Object.values(value).every((each) => typeof each === "string")) {
    throw refuse("header", file, METADATA, "the metadata must be an object of texts");
  }
  return new Map(Object.entries(value) as [string, string][]);
}

function checkEntry(name: string, value: unknown, file: string): HeaderEntry {
  const where = `tensor[${JSON.stringify(name.slice(0, 80))}]`;
  if (!isObject(value)) throw refuse("header", file, where, "a tensor must be described by an object");
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isDtype(dtype)) {
    throw refuse("dtype", file, `${where}.dtype`, `unknown type ${JSON.stringify(dtype)}`);
  }
  if (!Array.isArray(shape) || shape.length > MAX_DIMENSIONS || !shape.every(isCount)) {
    throw refuse("shape", file, `${where}.shape`, `want at most ${MAX_DIMENSIONS} whole numbers ≥ 0`);
  }
  const bytes = shape.reduce((product, size) => product * size, DTYPE_BYTES[dtype] as number);
  if (!Number.isSafeInteger(bytes)) throw refuse("shape", file, `${where}.shape`, `${shape.join(" × ")} is too large`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount) || offsets[0] > offsets[1]) {
    throw refuse("offsets", file, `${where}.data_offsets`, "want two whole numbers, the first not above the second");
  }
  const [start, end] = offsets;
  if (end - start !== bytes) {
    const reason = `${end - start} bytes for ${shape.join(" × ") || "one"} ${dtype}, which takes ${bytes}`;
    throw refuse("offsets", file, `${where}.data_offsets`, reason);
  }
  return { name, dtype, shape, start, end };
}

function isDtype(value: unknown): value is Dtype {
  return typeof value === "string" && Object.hasOwn(DTYPE_BYTES, value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** The tensors, in order, must cover the data exactly, as the format demands. */
function checkLayout(entries: readonly HeaderEntry[], dataBytes: number | undefined, file: string): number {
  let at = 0;
  for (const { name, start, end } of entries) {
    const where = `tensor[${JSON.stringify(name.slice(0, 80))}].data_offsets`;
    if (dataBytes !== undefined && end > dataBytes) {
      throw refuse("offsets", file, where, `it ends at ${end} of ${dataBytes} bytes`);
    }
    if (start !== at) throw refuse("offsets", file, where, `it begins at ${start}, the one before ends at ${at}`);
    at = end;
  }
  const rest = (dataBytes ?? at) - at;
  if (rest !== 0) throw refuse("offsets", file, "", `${rest} bytes after the last tensor`);
  return at;
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
  readonly data: Float32Array;
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
