/**
 * What goes through the memory that threads share: messages of numbers and arrays, one after another, written by one
 * side while the other waits.
 */
import { PalisadeError } from "../../core/errors.ts";

export type NumberArray = Float32Array | Int32Array | Uint8Array;

/** A command and what it needs, or an answer. */
export interface Message {
  /** What to do; in an answer {@link ANSWER} or {@link FAILURE}. */
  readonly operation: number;
  readonly numbers: readonly number[];
  readonly arrays: readonly (NumberArray | undefined)[];
}

export const ANSWER = 0;
export const FAILURE = -1;

/** Operation, count of numbers, count of arrays, nothing. */
const HEADER_BYTES = 16;
const KINDS: readonly (new (buffer: ArrayBufferLike, at: number, length: number) => NumberArray)[] = [
  Float32Array,
  Int32Array,
  Uint8Array,
];

function padded(bytes: number): number {
  return Math.ceil(bytes / 8) * 8;
}

/** Bytes a message takes; a multiple of 8. */
export function messageBytes({ numbers, arrays }: Message): number {
  return arrays.reduce(
    (sum, array) => sum + 8 + padded(array?.byteLength ?? 0),
    HEADER_BYTES + 8 * numbers.length,
  );
}

/** A stretch of shared memory that grows and is read and written by messages. Addresses are multiples of 8. */
export class MessageMemory {
  readonly buffer: SharedArrayBuffer;
  #words: Int32Array;
  #doubles: Float64Array;

  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.#words = new Int32Array(0);
    this.#doubles = new Float64Array(0);
    this.refresh();
  }

  /** Sees what the other side has grown. */
  refresh(): void {
    const bytes = this.buffer.byteLength;
    if (bytes === this.#words.byteLength) return;
    // Fixed lengths: views that follow the buffer's length are slow.
    this.#words = new Int32Array(this.buffer, 0, bytes / 4);
    this.#doubles = new Float64Array(this.buffer, 0, bytes / 8);
  }

  /** Makes room up to `end`. @throws RangeError beyond the buffer's maximum. */
  reserve(end: number): void {
    if (end > this.buffer.byteLength) {
      const wanted = Math.ceil(Math.max(end, 2 * this.buffer.byteLength) / 65536) * 65536;
      this.buffer.grow(Math.max(end, Math.min(wanted, this.buffer.maxByteLength)));
    }
    this.refresh();
  }

  /** Writes a message for which there is room; returns where it ends. */
  write(at: number, { operation, numbers, arrays }: Message): number {
    const words = this.#words;
    words.set([operation, numbers.length, arrays.length, 0], at / 4);
    at += HEADER_BYTES;
    for (const x of numbers) {
      this.#doubles[at / 8] = x;
      at += 8;
    }
    for (const array of arrays) {
      words[at / 4] = array ? KINDS.findIndex((kind) => array instanceof kind) + 1 : 0;
      words[at / 4 + 1] = array?.length ?? 0;
      at += 8;
      if (!array) continue;
      const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
      new Uint8Array(this.buffer, at, bytes.length).set(bytes);
      at += padded(bytes.length);
    }
    return at;
  }

  /** Reads a message and where it ends. Its arrays are views: valid until the memory is written again. */
  read(at: number): { message: Message; end: number } {
    const words = this.#words;
    const [operation, numberCount, arrayCount] = words.subarray(at / 4, at / 4 + 3);
    at += HEADER_BYTES;
    const numbers = Array.from(this.#doubles.subarray(at / 8, at / 8 + numberCount));
    at += 8 * numberCount;
    const arrays: (NumberArray | undefined)[] = [];
    for (let i = 0; i < arrayCount; i++) {
      const kind = words[at / 4], length = words[at / 4 + 1];
      at += 8;
      const array = kind === 0 ? undefined : new KINDS[kind - 1](this.buffer, at, length);
      arrays.push(array);
      at += padded(array?.byteLength ?? 0);
    }
    return { message: { operation, numbers, arrays }, end: at };
  }
}

/** An error as an answer. */
export function failure(error: unknown): Message {
  const plain = error instanceof PalisadeError
    ? error.plain()
    : { message: error instanceof Error ? error.message : String(error), range: error instanceof RangeError };
  return { operation: FAILURE, numbers: [], arrays: [new TextEncoder().encode(JSON.stringify(plain))] };
}

/** The error that {@link failure} was made of. */
export function errorOf({ arrays: [text] }: Message): Error {
  const plain = parsed(text!) as { message: string; range: boolean } | ReturnType<PalisadeError["plain"]>;
  if ("kind" in plain) return new PalisadeError(plain.kind, plain.code, plain.said, { where: plain.where });
  return plain.range ? new RangeError(plain.message) : new Error(plain.message);
}

/** What JSON text in shared bytes says. */
export function parsed(text: NumberArray): unknown {
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(text)));
}
