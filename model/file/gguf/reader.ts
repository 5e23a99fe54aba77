import { inputError } from "../../../core/errors.ts";
import type { ByteSource } from "../../../runtime/interface.ts";
import { readInto } from "../../../runtime/read_into.ts";
import type { Notice } from "../notice.ts";
import { Cursor, quoted } from "./cursor.ts";
import { dequantise, readableTypes } from "../tensor_types.ts";
import { readTensorTable } from "./tensor_table.ts";
import type { GgufFile, GgufTensor, GgufValue, RawRange } from "./types.ts";
import { ValueReader } from "./values.ts";
import type { ValueTypeName } from "./values.ts";

export type { GgufArray, GgufFile, GgufTensor, GgufValue, RawRange } from "./types.ts";

export interface OpenGgufOptions {
  /** Bytes per read of header and tensor table, 1 to 16 MiB; default 1 MiB. */
  readonly windowBytes?: number;
}

const MAGIC = "GGUF";
/** Versions we read. Version 1 had 32-bit counts and was replaced within weeks. */
const VERSIONS: readonly number[] = [2, 3];
/** The specification's limit. */
const MAX_KEY_BYTES = 65535;
/** Thirty times what the largest models have. */
const MAX_ENTRIES = 2 ** 16;
/** Key length, a key of one byte, type, a value of one byte. */
const MIN_METADATA_BYTES = 8 + 1 + 4 + 1;
/** Name length, a name of one byte, dimensions, one dimension, type, offset. */
const MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8;
const DEFAULT_ALIGNMENT = 32;
/** A huge page; nothing needs more. */
const MAX_ALIGNMENT = 2 ** 21;
/** Most that is read of a tensor at once. */
const SLICE_BYTES = 16 * 2 ** 20;

/**
 * Opens a GGUF file of version 2 or 3: reads header, metadata and tensor table, and checks every count, length, offset
 * and shape against the file's size before it makes a buffer for it. Tensor data is not read. The file takes over
 * `source` and closes it, also when it is refused.
 *
 * PalisadeErrors of kind input; `where` is the field's path (see `types.ts`). Codes: `gguf.magic`, `gguf.endian`,
 * `gguf.version`, `gguf.truncated`, `gguf.limit`, `gguf.count`, `gguf.name`, `gguf.utf8`, `gguf.duplicate`, `gguf.type`,
 * `gguf.string`, `gguf.depth`, `gguf.value`, `gguf.shape`, `gguf.dtype`, `gguf.alignment`,
 * `gguf.overlap`; and what `source` throws.
 */
export async function openGguf(source: ByteSource, options: OpenGgufOptions = {}): Promise<GgufFile> {
  try {
    return await readGguf(source, options);
  } catch (error) {
    await source.close();
    throw error;
  }
}

async function readGguf(source: ByteSource, options: OpenGgufOptions): Promise<GgufFile> {
  const cursor = new Cursor(source, options.windowBytes);
  const values = new ValueReader(cursor);
  await checkMagic(cursor);
  const version = await readVersion(cursor);
  const tensorCount = await readCount(cursor, "header.tensorCount", MIN_TENSOR_BYTES);
  const metadataCount = await readCount(cursor, "header.metadataCount", MIN_METADATA_BYTES);
  const { metadata, types } = await readMetadata(cursor, values, metadataCount);
  const alignment = alignmentOf(cursor, metadata, types);
  const tensors = await readTensorTable(cursor, values, tensorCount, alignment);
  return new OpenGguf(source, { version, alignment, metadata, tensors, notices: values.notices });
}

async function checkMagic(cursor: Cursor): Promise<void> {
  const bytes = await cursor.bytes(MAGIC.length, "header.magic");
  const text = String.fromCharCode(...bytes);
  if (text !== MAGIC) {
    throw cursor.refuse("gguf.magic", "header.magic", `not a GGUF file: it starts with ${quoted(text)}, not "GGUF"`);
  }
}

async function readVersion(cursor: Cursor): Promise<number> {
  const version = await cursor.u32("header.version");
  if (version !== 0 && version % 65536 === 0) {
    throw cursor.refuse("gguf.endian", "header.version", "a big-endian file; only little-endian ones are read");
  }
  if (!VERSIONS.includes(version)) {
    throw cursor.refuse("gguf.version", "header.version", `version ${version}; ${VERSIONS.join(" and ")} are read`);
  }
  return version;
}

async function readCount(cursor: Cursor, where: string, minimumBytes: number): Promise<number> {
  const count = await cursor.u64(where);
  const most = Math.min(MAX_ENTRIES, Math.floor(cursor.remaining / minimumBytes));
  if (count > BigInt(most)) {
    throw cursor.refuse(
      "gguf.count",
      where,
      `${count} entries; the ${cursor.remaining} bytes that follow can hold at most ${most}`,
    );
  }
  return Number(count);
}

async function readMetadata(cursor: Cursor, values: ValueReader, count: number) {
  const metadata = new Map<string, GgufValue>();
  const types = new Map<string, ValueTypeName>();
  const twice: Repeat[] = [];
  for (let i = 0; i < count; i++) {
    const field = `metadata[${i}].key`;
    const key = await values.key(field, MAX_KEY_BYTES);
    if (key === "") throw cursor.refuse("gguf.name", field, "an empty key");
    const path = `metadata[${quoted(key)}]`;
    const type = await values.type(`${path}.type`);
    const value = await values.value(type, path, !TEXT_COUNTS.test(key));
    if (metadata.has(key)) twice.push({ key, field, same: type === types.get(key) && same(metadata.get(key)!, value) });
    else {
      metadata.set(key, value);
      types.set(key, type);
    }
  }
  for (const each of twice) values.notices.push(repeated(cursor, each, metadata));
  return { metadata, types };
}

/** Keys whose text decides what is computed. A token may be any bytes, and so may what only people read. */
const TEXT_COUNTS = /^(?:tokenizer\.(?!ggml\.tokens$)|split\.|general\.(?:architecture|type|alignment)$|[^.]+\.rope\.)/;

/** A key that is there again. */
interface Repeat {
  readonly key: string;
  readonly field: string;
  /** Whether it says the same again. */
  readonly same: boolean;
}

/** What a repeated key is worth saying; refused where its two values differ and something is computed from them. */
function repeated(cursor: Cursor, { key, field, same }: Repeat, metadata: ReadonlyMap<string, GgufValue>): Notice {
  const counts = TEXT_COUNTS.test(key) || key === "tokenizer.ggml.tokens" ||
    key.startsWith(`${metadata.get("general.architecture")}.`);
  if (counts && !same) throw cursor.refuse("gguf.duplicate", field, `${quoted(key)} is there twice, with two values`);
  return { where: field, text: `${quoted(key)} is there twice${same ? "" : ", with two values; the first is taken"}` };
}

function same(a: GgufValue, b: GgufValue): boolean {
  if (typeof a !== "object" || typeof b !== "object") return Object.is(a, b);
  const left = Array.from<GgufValue>(a), right = Array.from<GgufValue>(b);
  return left.length === right.length && left.every((item, i) => same(item, right[i]));
}

function alignmentOf(
  cursor: Cursor,
  metadata: ReadonlyMap<string, GgufValue>,
  types: ReadonlyMap<string, ValueTypeName>,
): number {
  const key = "general.alignment";
  const value = metadata.get(key);
  if (value === undefined) return DEFAULT_ALIGNMENT;
  if (types.get(key) !== "uint32") {
    throw cursor.refuse("gguf.type", `metadata["${key}"].type`, `alignment has type ${types.get(key)}, not uint32`);
  }
  const alignment = value as number;
  if (alignment === 0 || alignment % 8 !== 0 || alignment > MAX_ALIGNMENT) {
    throw cursor.refuse(
      "gguf.alignment",
      `metadata["${key}"].value`,
      `alignment ${alignment}; a multiple of 8 from 8 to ${MAX_ALIGNMENT} is right`,
    );
  }
  return alignment;
}

interface Contents {
  readonly version: number;
  readonly alignment: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  readonly notices: readonly Notice[];
}

class OpenGguf implements GgufFile {
  readonly name: string;
  readonly size: number;
  readonly version: number;
  readonly alignment: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  readonly notices: readonly Notice[];
  readonly #source: ByteSource;

  constructor(source: ByteSource, contents: Contents) {
    this.#source = source;
    this.name = source.name;
    this.size = source.size;
    this.version = contents.version;
    this.alignment = contents.alignment;
    this.metadata = contents.metadata;
    this.tensors = contents.tensors;
    this.notices = contents.notices;
  }

  async readRaw(name: string, range: RawRange = {}): Promise<Uint8Array<ArrayBuffer>> {
    const tensor = this.#tensor(name);
    const offset = range.offset ?? 0;
    const length = range.length ?? tensor.byteLength - offset;
    checkRange("readRaw() bytes", offset, length, tensor.byteLength);
    if (range.into) checkRange("readRaw() into bytes", 0, length, range.into.length);
    const out = range.into?.subarray(0, length) ?? new Uint8Array(length);
    for (let done = 0; done < length; done += SLICE_BYTES) {
      const step = Math.min(SLICE_BYTES, length - done);
      await readInto(this.#source, tensor.offset + offset + done, out.subarray(done, done + step));
    }
    return out;
  }

  async readFloat32(
    name: string,
    range: { readonly firstRow?: number; readonly rows?: number } = {},
  ): Promise<Float32Array> {
    const tensor = this.#tensor(name);
    const { type } = tensor;
    if (!type.decode) {
      throw inputError(
        "gguf.dtype",
        `${this.name}: tensor ${quoted(name)} is ${type.name}; supported are ${readableTypes().join(", ")}`,
        `tensor[${quoted(name)}].type`,
      );
    }
    const width = tensor.shape[0];
    const firstRow = range.firstRow ?? 0;
    const rows = range.rows ?? tensor.elements / width - firstRow;
    checkRange("readFloat32() rows", firstRow, rows, tensor.elements / width);
    const out = new Float32Array(rows * width);
    const blocksPerSlice = Math.floor(SLICE_BYTES / type.bytes);
    const firstByte = tensor.offset + firstRow * width / type.block * type.bytes;
    const blocks = out.length / type.block;
    for (let block = 0; block < blocks; block += blocksPerSlice) {
      const step = Math.min(blocksPerSlice, blocks - block);
      const bytes = await this.#source.read(firstByte + block * type.bytes, step * type.bytes);
      dequantise(type, bytes, out.subarray(block * type.block, (block + step) * type.block));
    }
    return out;
  }

  close(): Promise<void> {
    return this.#source.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #tensor(name: string): GgufTensor {
    const tensor = this.tensors.get(name);
    if (tensor === undefined) {
      throw inputError("gguf.missing", `${this.name}: there is no tensor ${quoted(name)}`, `tensor[${quoted(name)}]`);
    }
    return tensor;
  }
}

function checkRange(what: string, start: number, length: number, total: number): void {
  if (!Number.isInteger(start) || !Number.isInteger(length) || start < 0 || length < 0 || start + length > total) {
    throw new RangeError(`${what} ${start} to ${start + length} are not inside 0 to ${total}`);
  }
}
