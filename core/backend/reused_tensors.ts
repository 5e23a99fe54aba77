import { HOST_TENSORS, type Tensors } from "./tensor.ts";

/** Bytes from which on an array is worth keeping. */
const LEAST_BYTES = 1 << 14;
/** Most free arrays of one length, and bytes of all: a step has a few shapes, and frees each before it wants it again. */
const MOST_ALIKE = 6, MOST_BYTES = 48 << 20;

/**
 * Tensors on this side whose arrays are used again once they are freed. A reading makes its queries, keys, values and hidden
 * states anew in every chunk of every layer. Left to the garbage collector, which comes late, tens of megabytes of them
 * would always be resident.
 *
 * An array that was read is its reader's, and never used again here; so is one that came by `upload`.
 */
export class ReusedTensors implements Tensors<Float32Array> {
  readonly upload = HOST_TENSORS.upload;
  readonly copy = HOST_TENSORS.copy;
  /** Made here, and seen by nobody. */
  readonly #own = new WeakSet<Float32Array>();
  /** Those that were freed longest ago first. */
  readonly #free: Float32Array[] = [];

  zeros(length: number): Float32Array {
    return this.#again(length)?.fill(0) ?? this.#made(length);
  }

  room(length: number): Float32Array {
    return this.#again(length) ?? this.#made(length);
  }

  #made(length: number): Float32Array {
    const array = new Float32Array(length);
    if (array.byteLength >= LEAST_BYTES) this.#own.add(array);
    return array;
  }

  #again(length: number): Float32Array | undefined {
    if (4 * length < LEAST_BYTES) return undefined;
    const at = this.#free.findLastIndex((array) => array.length === length);
    if (at < 0) return undefined;
    const [array] = this.#free.splice(at, 1);
    this.#own.add(array);
    return array;
  }

  read(tensor: Float32Array): Promise<Float32Array> {
    this.#own.delete(tensor);
    return HOST_TENSORS.read(tensor);
  }

  free(tensor: Float32Array): void {
    if (!this.#own.delete(tensor)) return;
    const alike = this.#free.reduce((count, { length }) => count + (length === tensor.length ? 1 : 0), 0);
    if (alike === MOST_ALIKE) return;
    this.#free.push(tensor);
    let bytes = this.#free.reduce((sum, { byteLength }) => sum + byteLength, 0);
    while (bytes > MOST_BYTES) bytes -= this.#free.shift()!.byteLength;
  }
}
