/**
 * Numbers that stay where they were computed: queries, keys, values, attention outputs, hidden states. On this side a
 * tensor is a `Float32Array`; a device gives out handles, of which nothing but the size is known here. All tensors are
 * float32 and row-major. Who needs the numbers asks for them (`read`), and waits.
 */

/** Opaque: only the device that made it, or `Tensors.read`, knows what is in it. */
export interface Tensor {
  /** Numbers in it. */
  readonly length: number;
  readonly byteLength: number;
}

/**
 * A device's tensors. What hands nothing back is carried out in the order of the calls, before anything that is called
 * afterwards; ranges that don't fit are RangeErrors, at once.
 */
export interface Tensors<T extends Tensor = Tensor> {
  /** A tensor with these numbers. The array is the device's from then on: don't write to it any more. */
  upload(numbers: Float32Array): T;
  /** A tensor of `length` zeros. */
  zeros(length: number): T;
  /** A tensor that holds anything, for results that are written whole. */
  room(length: number): T;
  /** Copies `count` numbers of `from`, from `start` on, to place `at` of `to`. */
  copy(from: T, start: number, count: number, to: T, at: number): void;
  /** The numbers; of a tensor on this side the tensor itself, so don't write to them. */
  read(tensor: T): Promise<Float32Array>;
  /** Gives the memory back. Anything called before still sees the tensor; nothing after it may use it. */
  free(tensor: T): void;
}

/** Tensors on this side: arrays. The garbage collector frees them. */
export const HOST_TENSORS: Tensors<Float32Array> = {
  upload: (numbers) => numbers,
  zeros: (length) => new Float32Array(length),
  room: (length) => new Float32Array(length),
  copy: (from, start, count, to, at) => {
    if (!(start >= 0 && count >= 0 && start + count <= from.length)) {
      throw new RangeError(`Cannot copy ${count} numbers from ${start} on: there are ${from.length}`);
    }
    to.set(from.subarray(start, start + count), at);
  },
  read: (tensor) => Promise.resolve(tensor),
  free: () => {},
};

/** Tensors that end together, whatever happens on the way. */
export class Temporaries implements Disposable {
  readonly #tensors: Tensors;
  readonly #held: Tensor[] = [];

  constructor(tensors: Tensors) {
    this.#tensors = tensors;
  }

  /** Takes a tensor over; returns it. */
  add<T extends Tensor>(tensor: T): T {
    this.#held.push(tensor);
    return tensor;
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#held) this.#tensors.free(tensor);
    this.#held.length = 0;
  }
}

/** The numbers of a part, `count` from `start` on. */
export async function readPart(tensors: Tensors, tensor: Tensor, start: number, count: number): Promise<Float32Array> {
  using temporaries = new Temporaries(tensors);
  const part = temporaries.add(tensors.zeros(count));
  tensors.copy(tensor, start, count, part, 0);
  return await tensors.read(part);
}
