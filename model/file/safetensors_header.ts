/**
 * The header of a safetensors file (https://huggingface.co/docs/safetensors): eight bytes with its length, then JSON. It
 * is checked whole before anything is taken from the file, and nothing is let through that the Rust crate refuses.
 */
import { inputError, PalisadeError } from "../../core/errors.ts";
import { type Json, readObject } from "./strict_json.ts";

/** Bytes of the types that are known, so that a file holding them can be checked. */
export const DTYPE_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

export type Dtype = keyof typeof DTYPE_BYTES;
/** The format's own limit is 100 MB; a tensor takes about 100 bytes. */
const MAX_HEADER = 4 * 2 ** 20;
const MAX_TENSORS = 65536;
const MAX_DIMENSIONS = 8;
const METADATA = "__metadata__";
/** The first byte of every header. */
const BRACE = 0x7b;
const NO_SAFETENSORS = "it isn't a safetensors file";
/** Bytes in front of the header. */
const LENGTH_BYTES = 8;

/** A tensor as a checked header describes it: `start` and `end` count from the first byte behind the header. */
export interface HeaderEntry {
  readonly name: string;
  readonly dtype: Dtype;
  /** Outermost dimension first. */
  readonly shape: readonly number[];
  readonly start: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  readonly metadata: ReadonlyMap<string, string>;
  /** In the header's order. */
  readonly tensors: readonly HeaderEntry[];
}

/**
 * Where the tensors begin, from a file's first bytes, nine or all there are. `size`: that of the file.
 * @throws PalisadeError `safetensors.truncated`, `safetensors.header`.
 */
export function dataStart(first: Uint8Array, size: number, file: string): number {
  if (size < LENGTH_BYTES) {
    throw refuse("truncated", file, "", `${NO_SAFETENSORS}: ${size} bytes, want at least ${LENGTH_BYTES}`);
  }
  const length = new DataView(first.buffer, first.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER)) {
    if (first[LENGTH_BYTES] !== BRACE) throw refuse("header", file, "", NO_SAFETENSORS);
    throw refuse("header", file, "header.length", `a header of ${length} bytes: want at most ${MAX_HEADER}`);
  }
  const start = LENGTH_BYTES + Number(length);
  if (start > size) {
    throw refuse("truncated", file, "header.length", `a header of ${length} bytes in a file of ${size}`);
  }
  return start;
}

/**
 * Checks a header, `bytes` behind the length, of a file with `dataBytes` behind it.
 * @throws PalisadeError `safetensors.header`, `safetensors.dtype`, `safetensors.shape`, `safetensors.offsets`.
 */
export function parseHeader(bytes: Uint8Array, dataBytes: number, file: string): SafetensorsHeader {
  let metadata: ReadonlyMap<string, string> = new Map();
  const tensors: HeaderEntry[] = [];
  try {
    readObject(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes), (name, value) => {
      if (name === METADATA) return void (metadata = readMetadata(value, file));
      if (tensors.length === MAX_TENSORS) throw refuse("header", file, "", `more than ${MAX_TENSORS} tensors`);
      tensors.push(checkEntry(name, value, file));
    });
  } catch (error) {
    if (error instanceof PalisadeError) throw error;
    const what = bytes[0] === BRACE ? "text" : "object";
    throw refuse("header", file, "header", `the header is no JSON ${what}: ${(error as Error).message}`);
  }
  checkLayout(inOrder(tensors), dataBytes, file);
  return { metadata, tensors };
}

/**
 * The tensors that a header describes which somebody else has read, in the order of their data; `end`: where they end.
 * `dataBytes`: how many there are behind the header, where that is known. Throws as {@link parseHeader}.
 */
export function checkHeader(
  header: Readonly<Record<string, unknown>>,
  file: string,
  dataBytes?: number,
): { readonly entries: readonly HeaderEntry[]; readonly end: number } {
  const described = Object.entries(header).filter(([name]) => name !== METADATA);
  if (described.length > MAX_TENSORS) throw refuse("header", file, "", `more than ${MAX_TENSORS} tensors`);
  const entries = inOrder(described.map(([name, value]) => checkEntry(name, asMap(value), file)));
  return { entries, end: checkLayout(entries, dataBytes, file) };
}

function asMap(value: unknown): Json {
  const plain = typeof value === "object" && value !== null && !Array.isArray(value);
  return plain ? new Map(Object.entries(value)) : null;
}

function inOrder(entries: readonly HeaderEntry[]): HeaderEntry[] {
  return [...entries].sort((a, b) => a.start - b.start || a.end - b.end);
}

function refuse(code: string, file: string, where: string, reason: string): PalisadeError {
  return inputError(`safetensors.${code}`, `${file}: ${reason}`, where);
}

function readMetadata(value: Json, file: string): Map<string, string> {
  if (!(value instanceof Map) || ![...value.values()].every((each) => typeof each === "string")) {
    throw refuse("header", file, METADATA, "the metadata must be an object of texts");
  }
  return value;
}

function checkEntry(name: string, value: Json, file: string): HeaderEntry {
  const where = `tensor[${JSON.stringify(name.slice(0, 80))}]`;
  if (!(value instanceof Map)) throw refuse("header", file, where, "a tensor must be described by an object");
  const fields: ReadonlyMap<string, Json> = value, dtype = fields.get("dtype");
  if (!isDtype(dtype)) {
    throw refuse("dtype", file, `${where}.dtype`, `unknown type ${JSON.stringify(dtype)}`);
  }
  const shape = fields.get("shape"), offsets = fields.get("data_offsets");
  if (!isCounts(shape) || shape.length > MAX_DIMENSIONS) {
    throw refuse("shape", file, `${where}.shape`, `want at most ${MAX_DIMENSIONS} whole numbers ≥ 0`);
  }
  const bytes = byteLength(shape, DTYPE_BYTES[dtype]);
  if (bytes === undefined) throw refuse("shape", file, `${where}.shape`, `${shape.join(" × ")} is too large`);
  if (!isCounts(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]) {
    throw refuse("offsets", file, `${where}.data_offsets`, "want two whole numbers, the first not above the second");
  }
  const [start, end] = offsets;
  if (end - start !== bytes) {
    const reason = `${end - start} bytes for ${shape.join(" × ") || "one"} ${dtype}, which takes ${bytes}`;
    throw refuse("offsets", file, `${where}.data_offsets`, reason);
  }
  return { name, dtype, shape, start, end };
}

function isDtype(value: Json | undefined): value is Dtype {
  return typeof value === "string" && Object.hasOwn(DTYPE_BYTES, value);
}

function isCounts(value: Json | undefined): value is readonly number[] {
  return Array.isArray(value) && value.every((each) => Number.isSafeInteger(each) && each >= 0);
}

/** Bytes of a tensor; undefined where a product on the way, taken left to right, can't be told exactly. */
export function byteLength(shape: readonly number[], each: number): number | undefined {
  let product = 1;
  for (const size of shape) {
    product *= size;
    if (!Number.isSafeInteger(product)) return undefined;
  }
  return Number.isSafeInteger(product * each) ? product * each : undefined;
}

/** The tensors, in order, must cover the data exactly, as the format demands; returns where they end. */
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
