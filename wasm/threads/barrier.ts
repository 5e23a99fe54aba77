/** Numbers that all threads of a pool see at once, and where they wait for each other. */
import { Waiter } from "./wait.ts";

export interface Workspace {
  /** Makes room for `count` floats; what was there may be lost. */
  reserve(count: number): void;
  /** `count` floats from `first` on, valid until the next `reserve`. */
  floats(first: number, count: number): Float32Array;
}

/** A workspace for one thread. */
export class OwnWorkspace implements Workspace {
  #floats = new Float32Array(0);

  reserve(count: number): void {
    if (count > this.#floats.length) this.#floats = new Float32Array(count);
  }

  floats(first: number, count: number): Float32Array {
    return this.#floats.subarray(first, first + count);
  }
}

/** Words at the front, a cache line apart. */
const ARRIVED = 0, GENERATION = 16, FLOATS = 256;

/** A workspace in shared memory, where its threads wait until all have arrived. */
export class Barrier implements Workspace {
  readonly buffer: SharedArrayBuffer;
  readonly #control: Int32Array;
  readonly #waiter: Waiter;
  readonly #size: number;

  /** `size`: threads that meet here. */
  constructor(buffer: SharedArrayBuffer, size: number) {
    this.buffer = buffer;
    this.#control = new Int32Array(buffer, 0, FLOATS / 4);
    this.#waiter = new Waiter(this.#control, GENERATION);
    this.#size = size;
  }

  static create(size: number, mostBytes: number): Barrier {
    return new Barrier(new SharedArrayBuffer(FLOATS, { maxByteLength: mostBytes }), size);
  }

  /** Only while no other thread uses the workspace. @throws RangeError beyond its maximum. */
  reserve(count: number): void {
    const bytes = FLOATS + 4 * count;
    if (bytes > this.buffer.byteLength) this.buffer.grow(bytes);
  }

  floats(first: number, count: number): Float32Array {
    return new Float32Array(this.buffer, FLOATS + 4 * first, count);
  }

  /** Says that this thread is here; the last one wakes the others. Returns what {@link met} wants. */
  arrive(): number {
    const generation = Atomics.load(this.#control, GENERATION);
    if (Atomics.add(this.#control, ARRIVED, 1) + 1 === this.#size) {
      Atomics.store(this.#control, ARRIVED, 0);
      Atomics.add(this.#control, GENERATION, 1);
      Atomics.notify(this.#control, GENERATION);
    }
    return generation;
  }

  /** Waits until all have arrived, at most `ms`. */
  met(generation: number, ms: number): boolean {
    return this.#waiter.changed(generation, ms);
  }

  /** Waits until all have arrived. */
  meet(): void {
    const generation = this.arrive();
    while (!this.met(generation, Infinity)) { /* woken for nothing */ }
  }
}
