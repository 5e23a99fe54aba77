/** Cuts a GGUF of tests into the parts that llama.cpp's gguf-split makes. */

const SIZES = [1, 1, 2, 2, 4, 4, 4, 1, -1, -1, 8, 8, 8];
const STRING = 8, ARRAY = 9, ALIGNMENT = 32;

interface Tensor {
  readonly head: Uint8Array;
  readonly data: Uint8Array;
}

/** Reads forwards over the fields of a well-formed file. */
class Fields {
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  at = 0;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  u32(): number {
    return this.#view.getUint32((this.at += 4) - 4, true);
  }

  u64(): number {
    return Number(this.#view.getBigUint64((this.at += 8) - 8, true));
  }

  skipString(): void {
    const length = this.u64();
    this.at += length;
  }

  skipValue(type = this.u32()): void {
    if (type === STRING) return this.skipString();
    if (type !== ARRAY) return void (this.at += SIZES[type]);
    const of = this.u32();
    for (let count = this.u64(); count > 0; count--) this.skipValue(of);
  }
}

const u16 = (value: number) => Uint8Array.of(value, value >> 8);
const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
const u64 = (value: number) => new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
const text = (value: string) => join(u64(value.length), new TextEncoder().encode(value));

function join(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const padding = (length: number) => new Uint8Array((ALIGNMENT - length % ALIGNMENT) % ALIGNMENT);

export interface PartHeader {
  readonly no: number;
  readonly count: number;
  readonly tensors: number;
}

/**
 * `count` parts with the tensors dealt out in order; the first has the metadata. `header` may lie about a part.
 * The file must keep to the default alignment.
 */
export function splitGguf(
  bytes: Uint8Array,
  count: number,
  header: (truth: PartHeader) => PartHeader = (truth) => truth,
): Uint8Array<ArrayBuffer>[] {
  const fields = new Fields(bytes);
  fields.at = 8;
  const tensorCount = fields.u64(), metadataCount = fields.u64();
  const from = fields.at;
  for (let i = 0; i < metadataCount; i++) {
    fields.skipString();
    fields.skipValue();
  }
  const metadata = bytes.subarray(from, fields.at);
  const table = Array.from({ length: tensorCount }, () => {
    const start = fields.at;
    fields.skipString();
    const dimensions = fields.u32();
    fields.at += 8 * dimensions + 4;
    return { head: bytes.subarray(start, fields.at), offset: fields.u64() };
  });
  const data = fields.at + padding(fields.at).length;
  const tensors = table.map(({ head, offset }, i): Tensor => {
    const end = table[i + 1]?.offset ?? bytes.length - data;
    return { head, data: bytes.subarray(data + offset, data + end) };
  });
  return Array.from({ length: count }, (_, i) => {
    const { no, count: of, tensors: total } = header({ no: i, count, tensors: tensorCount });
    const split = join(
      ...[text("split.no"), u32(2), u16(no), text("split.count"), u32(2), u16(of)],
      ...[text("split.tensors.count"), u32(5), u32(total)],
    );
    const mine = tensors.slice(Math.floor(i * tensorCount / count), Math.floor((i + 1) * tensorCount / count));
    const first = i === 0 ? metadata : new Uint8Array(0);
    return partOf(join(first, split), (i === 0 ? metadataCount : 0) + 3, mine);
  });
}

function partOf(metadata: Uint8Array, metadataCount: number, tensors: readonly Tensor[]): Uint8Array<ArrayBuffer> {
  let offset = 0;
  const heads = tensors.map(({ head, data }) => {
    const entry = join(head, u64(offset));
    offset += data.length + padding(data.length).length;
    return entry;
  });
  const magic = join(new TextEncoder().encode("GGUF"), u32(3), u64(tensors.length), u64(metadataCount));
  const header = join(magic, metadata, ...heads);
  return join(header, padding(header.length), ...tensors.flatMap(({ data }) => [data, padding(data.length)]));
}
