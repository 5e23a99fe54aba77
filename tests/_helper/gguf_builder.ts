/** Builds small GGUF files byte by byte, right or wrong, and knows where each field lies. */

export interface Field {
  /** Path as in errors, e.g. `tensor[1].offset`. */
  readonly where: string;
  readonly offset: number;
  readonly length: number;
  /** For a count: the fewest bytes that many items take, all together. */
  readonly least?: number;
}

export const VALUE_TYPE = {
  uint8: 0,
  int8: 1,
  uint16: 2,
  int16: 3,
  uint32: 4,
  int32: 5,
  float32: 6,
  bool: 7,
  string: 8,
  array: 9,
  uint64: 10,
  int64: 11,
  float64: 12,
} as const;

export type ValueType = keyof typeof VALUE_TYPE;

const SCALAR_BYTES: Record<Exclude<ValueType, "string" | "array">, number> = {
  uint8: 1,
  int8: 1,
  uint16: 2,
  int16: 2,
  uint32: 4,
  int32: 4,
  float32: 4,
  bool: 1,
  uint64: 8,
  int64: 8,
  float64: 8,
};

export interface ArrayItems {
  readonly of: ValueType;
  readonly items: readonly Item[];
}

export type Item = number | bigint | string | Uint8Array | ArrayItems;

export interface Entry {
  readonly key: string | Uint8Array;
  readonly type: ValueType;
  readonly value: Item;
}

export interface TensorSpec {
  readonly name: string | Uint8Array;
  readonly shape: readonly (number | bigint)[];
  readonly type: number;
  /** From the start of the tensor data. */
  readonly offset: number | bigint;
}

export interface FileSpec {
  readonly version?: number;
  readonly metadata: readonly Entry[];
  readonly tensors: readonly TensorSpec[];
  readonly alignment?: number;
  /** Bytes of tensor data after the padding. */
  readonly data: number;
}

export interface Built {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly fields: readonly Field[];
  readonly dataStart: number;
}

/** Little-endian bytes of an unsigned or two's complement integer. */
export function integer(value: number | bigint, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let rest = BigInt.asUintN(64, BigInt(value));
  for (let i = 0; i < length; i++, rest >>= 8n) bytes[i] = Number(rest & 255n);
  return bytes;
}

class Writer {
  readonly #parts: Uint8Array[] = [];
  readonly fields: Field[] = [];
  length = 0;

  put(where: string, bytes: Uint8Array, least?: number): void {
    this.fields.push({ where, offset: this.length, length: bytes.length, least });
    this.pad(bytes);
  }

  pad(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    this.length += bytes.length;
  }

  text(where: string, text: string | Uint8Array): void {
    const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text;
    this.put(`${where}.length`, integer(bytes.length, 8));
    this.put(where, bytes);
  }

  joined(): Uint8Array<ArrayBuffer> {
    const out = new Uint8Array(this.length);
    let at = 0;
    for (const part of this.#parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }
}

/** The bytes of a file and its field table. Data bytes count up from 0 to 250. */
export function build(spec: FileSpec): Built {
  const writer = new Writer();
  writer.put("header.magic", new TextEncoder().encode("GGUF"));
  writer.put("header.version", integer(spec.version ?? 3, 4));
  writer.put("header.tensorCount", integer(spec.tensors.length, 8), 33 * spec.tensors.length);
  writer.put("header.metadataCount", integer(spec.metadata.length, 8), 14 * spec.metadata.length);
  spec.metadata.forEach((entry, i) => writeEntry(writer, entry, i));
  spec.tensors.forEach((tensor, i) => writeTensor(writer, tensor, i));
  const alignment = spec.alignment ?? 32;
  writer.pad(new Uint8Array((alignment - writer.length % alignment) % alignment));
  const dataStart = writer.length;
  writer.pad(Uint8Array.from({ length: spec.data }, (_, i) => i % 251));
  return { bytes: writer.joined(), fields: writer.fields, dataStart };
}

function writeEntry(writer: Writer, entry: Entry, index: number): void {
  writer.text(`metadata[${index}].key`, entry.key);
  const key = typeof entry.key === "string" ? entry.key : new TextDecoder().decode(entry.key);
  const path = `metadata[${JSON.stringify(key)}]`;
  writer.put(`${path}.type`, integer(VALUE_TYPE[entry.type], 4));
  if (entry.type === "array") writeArray(writer, path, entry.value as ArrayItems);
  else if (entry.type === "string") writer.text(`${path}.value`, entry.value as string);
  else writer.put(`${path}.value`, scalar(entry.type, entry.value as number));
}

function writeArray(writer: Writer, path: string, { of, items }: ArrayItems): void {
  writer.put(`${path}.elementType`, integer(VALUE_TYPE[of], 4));
  const least = of === "string" ? 8 : of === "array" ? 12 : SCALAR_BYTES[of];
  writer.put(`${path}.count`, integer(items.length, 8), least * items.length);
  if (of === "string") items.forEach((item, i) => writer.text(`${path}.value[${i}]`, item as string));
  else if (of === "array") items.forEach((item, i) => writeArray(writer, `${path}.value[${i}]`, item as ArrayItems));
  else if (of === "bool") {
    items.forEach((item, i) => writer.put(`${path}.value[${i}]`, scalar(of, item as number)));
  } else {
    const bytes = items.flatMap((item) => [...scalar(of, item as number)]);
    writer.put(`${path}.value`, Uint8Array.from(bytes));
  }
}

function scalar(type: Exclude<ValueType, "string" | "array">, value: number | bigint): Uint8Array {
  if (type === "float32") return new Uint8Array(Float32Array.of(Number(value)).buffer);
  if (type === "float64") return new Uint8Array(Float64Array.of(Number(value)).buffer);
  return integer(value, SCALAR_BYTES[type]);
}

function writeTensor(writer: Writer, tensor: TensorSpec, index: number): void {
  const path = `tensor[${index}]`;
  writer.text(`${path}.name`, tensor.name);
  writer.put(`${path}.dimensions`, integer(tensor.shape.length, 4));
  tensor.shape.forEach((size, d) => writer.put(`${path}.shape[${d}]`, integer(size, 8)));
  writer.put(`${path}.type`, integer(tensor.type, 4));
  writer.put(`${path}.offset`, integer(tensor.offset, 8));
}

/** A copy of a built file with `value` written over the field `where`. */
export function overwrite(built: Built, where: string, value: Uint8Array): Uint8Array<ArrayBuffer> {
  const field = built.fields.find((each) => each.where === where);
  if (field === undefined || value.length > field.length) {
    throw new RangeError(`can't write ${value.length} at ${where}`);
  }
  const bytes = built.bytes.slice();
  bytes.set(value, field.offset);
  return bytes;
}
