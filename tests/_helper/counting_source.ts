import type { ByteSource } from "../../runtime/interface.ts";

/** Bytes in memory, followed by zeros up to `size`, that counts what is asked of it. */
export class CountingSource implements ByteSource {
  readonly name = "test.gguf";
  readonly size: number;
  readonly #bytes: Uint8Array;
  readonly #integers: readonly (readonly [offset: number, value: number])[];
  reads = 0;
  totalBytes = 0;
  largestRead = 0;
  closed = false;

  /** `integers`: little-endian integers of eight bytes that lie among the zeros. */
  constructor(
    bytes: Uint8Array,
    size: number = bytes.length,
    integers: readonly (readonly [offset: number, value: number])[] = [],
  ) {
    this.#bytes = bytes;
    this.#integers = integers;
    this.size = size;
  }

  // deno-lint-ignore require-await
  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    this.reads++;
    this.totalBytes += length;
    this.largestRead = Math.max(this.largestRead, length);
    const whole = [offset, length].every((n) => Number.isSafeInteger(n) && n >= 0);
    if (!whole || offset + length > this.size) throw new RangeError(`read(${offset}, ${length}) of ${this.size} bytes`);
    const out = new Uint8Array(length);
    out.set(this.#bytes.subarray(offset, offset + length));
    for (const [at, value] of this.#integers) {
      for (let i = 0; i < 8; i++) {
        const to = at + i - offset;
        if (to >= 0 && to < length) out[to] = Math.floor(value / 256 ** i) % 256;
      }
    }
    return out;
  }

  // deno-lint-ignore require-await
  async close(): Promise<void> {
    this.closed = true;
  }
}
