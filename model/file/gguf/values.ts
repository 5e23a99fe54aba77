import type { Notice } from "../notice.ts";
import type { Cursor } from "./cursor.ts";
import type { GgufArray, GgufValue } from "./types.ts";

/** Names of the value types, at their numbers in the file. */
const VALUE_TYPES = [
  "uint8",
  "int8",
  "uint16",
  "int16",
  "uint32",
  "int32",
  "float32",
  "bool",
  "string",
  "array",
  "uint64",
  "int64",
  "float64",
] as const;

/** Name of a metadata value's type. */
export type ValueTypeName = typeof VALUE_TYPES[number];

/** A string value may be long (a chat template, a grammar), not endless. */
const MAX_STRING_BYTES = 16 * 2 ** 20;
/** Array elements of the whole metadata together: three times what the largest tokenizers have. */
const MAX_ARRAY_ELEMENTS = 2 ** 22;
/** What a nested array costs of that besides its elements, since every array is an object in memory. */
const NESTED_ARRAY_COST = 64;
/** Nobody reads more. */
const MAX_NOTICES = 1000;
/** An array may hold arrays, to this depth in all. */
const MAX_ARRAY_DEPTH = 4;

/** Typed arrays by element type. The file is little-endian, as is every machine a JavaScript engine runs on today. */
const TYPED_ARRAYS = {
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float32: Float32Array,
  uint64: BigUint64Array,
  int64: BigInt64Array,
  float64: Float64Array,
} as const;

type NumericTypeName = keyof typeof TYPED_ARRAYS;
type NumericArray = InstanceType<typeof TYPED_ARRAYS[NumericTypeName]>;

/**
 * Reads metadata values. One reader serves one file, because it counts the array elements of all values together.
 * Errors: `gguf.type`, `gguf.string`, `gguf.count`, `gguf.depth`, `gguf.value`, and those of `Cursor`.
 */
export class ValueReader {
  readonly #cursor: Cursor;
  /** What was odd in texts that nothing is computed from. */
  readonly notices: Notice[] = [];
  #elementsLeft = MAX_ARRAY_ELEMENTS;
  readonly #note = (notice: Notice) => {
    if (this.notices.length < MAX_NOTICES) this.notices.push(notice);
  };
  /** Whether the value that is read may hold texts that are not UTF-8. */
  #loose = false;

  constructor(cursor: Cursor) {
    this.#cursor = cursor;
  }

  /** The type that stands before a value or before an array's elements. */
  async type(where: string): Promise<ValueTypeName> {
    const id = await this.#cursor.u32(where);
    if (id >= VALUE_TYPES.length) {
      throw this.#cursor.refuse(
        "gguf.type",
        where,
        `value type ${id} is unknown; types go from 0 to ${VALUE_TYPES.length - 1}`,
      );
    }
    return VALUE_TYPES[id];
  }

  /** A value of `type`; `path` is the entry's, `metadata["…"]`. In a `loose` one texts need not be UTF-8. */
  value(type: ValueTypeName, path: string, loose = false): Promise<GgufValue> {
    this.#loose = loose;
    if (type === "array") return this.#array(path, 1);
    return this.#scalar(type, `${path}.value`);
  }

  /** A key of the metadata. Those that matter are ASCII, so one that is not UTF-8 is only odd. */
  key(where: string, maxBytes: number): Promise<string> {
    this.#loose = true;
    return this.#text(where, maxBytes, "gguf.name");
  }

  /** A length, then that many bytes of UTF-8. */
  string(where: string, maxBytes: number = MAX_STRING_BYTES, code = "gguf.string"): Promise<string> {
    this.#loose = false;
    return this.#text(where, maxBytes, code);
  }

  async #text(where: string, maxBytes: number, code: string): Promise<string> {
    const length = await this.#cursor.u64(`${where}.length`);
    if (length > BigInt(maxBytes)) {
      throw this.#cursor.refuse(code, `${where}.length`, `a text of ${length} bytes; at most ${maxBytes} are read`);
    }
    return this.#cursor.text(Number(length), where, this.#loose ? this.#note : undefined);
  }

  async #scalar(type: Exclude<ValueTypeName, "array">, where: string): Promise<number | bigint | string | boolean> {
    if (type === "string") return this.#text(where, MAX_STRING_BYTES, "gguf.string");
    if (type === "bool") return this.#bool(where);
    const [value] = await this.#numbers(type, 1, where);
    return typeof value === "bigint" && Number.isSafeInteger(Number(value)) ? Number(value) : value;
  }

  async #bool(where: string): Promise<boolean> {
    const byte = await this.#cursor.u8(where);
    if (byte > 1) throw this.#cursor.refuse("gguf.value", where, `a bool is 0 or 1, got ${byte}`);
    return byte === 1;
  }

  async #numbers(type: NumericTypeName, count: number, where: string): Promise<NumericArray> {
    const Typed = TYPED_ARRAYS[type];
    const bytes = await this.#cursor.bytes(count * Typed.BYTES_PER_ELEMENT, where);
    return new Typed(bytes.buffer);
  }

  async #array(path: string, depth: number): Promise<GgufArray> {
    const type = await this.type(`${path}.elementType`);
    if (type === "array" && depth === MAX_ARRAY_DEPTH) {
      throw this.#cursor.refuse("gguf.depth", `${path}.elementType`, `arrays nest deeper than ${MAX_ARRAY_DEPTH}`);
    }
    const count = await this.#count(type, `${path}.count`);
    if (type === "string") return this.#texts(count, path);
    if (type === "bool") return this.#list(count, (i) => this.#bool(`${path}.value[${i}]`));
    if (type === "array") return this.#list(count, (i) => this.#array(`${path}.value[${i}]`, depth + 1));
    return this.#numbers(type, count, `${path}.value`);
  }

  async #count(type: ValueTypeName, where: string): Promise<number> {
    const count = await this.#cursor.u64(where);
    const least = minimumBytes(type);
    const fits = Math.floor(this.#cursor.remaining / least);
    if (count > BigInt(fits)) {
      throw this.#cursor.refuse(
        "gguf.count",
        where,
        `${count} elements of at least ${least} bytes, and only ${this.#cursor.remaining} bytes follow`,
      );
    }
    const cost = Number(count) * (type === "array" ? NESTED_ARRAY_COST : 1);
    if (cost > this.#elementsLeft) {
      throw this.#cursor.refuse(
        "gguf.count",
        where,
        `${count} elements; at most ${MAX_ARRAY_ELEMENTS} are read in all`,
      );
    }
    this.#elementsLeft -= cost;
    return Number(count);
  }

  /** Vocabularies have hundreds of thousands: those of a window are read at once. */
  async #texts(count: number, path: string): Promise<string[]> {
    const items: string[] = [];
    while (items.length < count) {
      items.push(
        this.#cursor.textHere() ??
          await this.#text(`${path}.value[${items.length}]`, MAX_STRING_BYTES, "gguf.string"),
      );
    }
    return items;
  }

  async #list<T>(count: number, next: (index: number) => Promise<T>): Promise<T[]> {
    const items: T[] = [];
    for (let i = 0; i < count; i++) items.push(await next(i));
    return items;
  }
}

/** The fewest bytes a value of a type takes in the file. */
function minimumBytes(type: ValueTypeName): number {
  if (type === "string") return 8;
  if (type === "array") return 12;
  if (type === "bool") return 1;
  return TYPED_ARRAYS[type].BYTES_PER_ELEMENT;
}
