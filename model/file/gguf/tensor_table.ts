import { quoted } from "./cursor.ts";
import type { Cursor } from "./cursor.ts";
import { TENSOR_TYPES } from "../tensor_types.ts";
import type { TensorType } from "../tensor_types.ts";
import type { GgufTensor } from "./types.ts";
import type { ValueReader } from "./values.ts";

/** The specification's limit. */
const MAX_NAME_BYTES = 64;
/** ggml's limit. */
const MAX_DIMENSIONS = 4;

/** An entry as read; `offset` counts from the tensor data's start, which is not known before the table's end. */
interface Entry extends GgufTensor {
  readonly index: number;
}

/**
 * Reads and checks the tensor table of `count` entries, cursor at its first byte.
 * Result: tensors by name with absolute offsets, inside the file, aligned to `alignment`, not overlapping.
 * Errors: `gguf.name`, `gguf.duplicate`, `gguf.shape`, `gguf.dtype`, `gguf.alignment`,
 * `gguf.truncated`, `gguf.overlap`, and those of `Cursor`.
 */
export async function readTensorTable(
  cursor: Cursor,
  values: ValueReader,
  count: number,
  alignment: number,
): Promise<Map<string, GgufTensor>> {
  const entries: Entry[] = [];
  const seen = new Set<string>();
  for (let index = 0; index < count; index++) {
    const entry = await readEntry(cursor, values, index, alignment);
    if (seen.has(entry.name)) {
      throw cursor.refuse("gguf.duplicate", `tensor[${index}].name`, `${quoted(entry.name)} is there twice`);
    }
    seen.add(entry.name);
    entries.push(entry);
  }
  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  checkRanges(cursor, entries, dataStart);
  return new Map(entries.map(({ index: _, ...tensor }) => {
    return [tensor.name, { ...tensor, offset: dataStart + tensor.offset }];
  }));
}

async function readEntry(cursor: Cursor, values: ValueReader, index: number, alignment: number): Promise<Entry> {
  const where = `tensor[${index}]`;
  const name = await values.string(`${where}.name`, MAX_NAME_BYTES, "gguf.name");
  if (name === "") throw cursor.refuse("gguf.name", `${where}.name`, "a tensor without a name");
  const shape = await readShape(cursor, where);
  const type = await readType(cursor, `${where}.type`, name);
  if (shape[0] % type.block !== 0) {
    throw cursor.refuse(
      "gguf.shape",
      `${where}.shape[0]`,
      `rows of ${quoted(name)} have ${shape[0]} elements; ${type.name} needs a multiple of ${type.block}`,
    );
  }
  const elements = shape.reduce((product, size) => product * size, 1);
  const byteLength = elements / type.block * type.bytes;
  const offset = await readOffset(cursor, `${where}.offset`, name, alignment);
  return { index, name, type, shape, offset, byteLength, elements };
}

async function readShape(cursor: Cursor, where: string): Promise<number[]> {
  const dimensions = await cursor.u32(`${where}.dimensions`);
  if (dimensions < 1 || dimensions > MAX_DIMENSIONS) {
    throw cursor.refuse(
      "gguf.shape",
      `${where}.dimensions`,
      `${dimensions} dimensions; 1 to ${MAX_DIMENSIONS} are right`,
    );
  }
  const shape: number[] = [];
  let elements = 1n;
  for (let d = 0; d < dimensions; d++) {
    const field = `${where}.shape[${d}]`;
    const size = await cursor.u64(field);
    elements *= size;
    if (size === 0n) throw cursor.refuse("gguf.shape", field, "a dimension of 0");
    if (elements > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw cursor.refuse("gguf.shape", field, `a dimension of ${size} makes ${elements} elements, more than 2^53`);
    }
    shape.push(Number(size));
  }
  return shape;
}

async function readType(cursor: Cursor, where: string, name: string): Promise<TensorType> {
  const id = await cursor.u32(where);
  const type = TENSOR_TYPES.get(id);
  if (type === undefined) throw cursor.refuse("gguf.dtype", where, `tensor type ${id} of ${quoted(name)} is unknown`);
  return type;
}

async function readOffset(cursor: Cursor, where: string, name: string, alignment: number): Promise<number> {
  const offset = await cursor.u64(where);
  if (offset % BigInt(alignment) !== 0n) {
    throw cursor.refuse(
      "gguf.alignment",
      where,
      `${quoted(name)} starts at ${offset}, which is not a multiple of the alignment ${alignment}`,
    );
  }
  if (offset > BigInt(cursor.fileSize)) {
    throw cursor.refuse(
      "gguf.truncated",
      where,
      `${quoted(name)} starts at ${offset}, past the end of the file of ${cursor.fileSize} bytes`,
    );
  }
  return Number(offset);
}

/** Every tensor ends inside the file and before the next one starts. */
function checkRanges(cursor: Cursor, entries: readonly Entry[], dataStart: number): void {
  const sorted = entries.toSorted((a, b) => a.offset - b.offset || a.index - b.index);
  sorted.forEach((entry, i) => {
    const end = dataStart + entry.offset + entry.byteLength;
    if (end > cursor.fileSize) {
      throw cursor.refuse(
        "gguf.truncated",
        `tensor[${entry.index}].offset`,
        `${quoted(entry.name)} ends at byte ${end}, the file at ${cursor.fileSize}`,
      );
    }
    const before = sorted[i - 1];
    if (before !== undefined && before.offset + before.byteLength > entry.offset) {
      throw cursor.refuse(
        "gguf.overlap",
        `tensor[${entry.index}].offset`,
        `${quoted(entry.name)} starts at ${entry.offset}, inside ${quoted(before.name)}, which ends at ${
          before.offset + before.byteLength
        }`,
      );
    }
  });
}
