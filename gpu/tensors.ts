/** Tensors that stay on a WebGPU device. */
import type { Tensor, Tensors } from "../core/backend/tensor.ts";
import type { GpuBuffer, GpuDevice } from "./device.ts";
import type { Turning } from "./turning.ts";

/** Float32 numbers on the device, from the start of a borrowed buffer on, which may be larger. */
export class GpuTensor implements Tensor {
  readonly length: number;
  /** What makes its numbers when they are looked at, where they may not be there. */
  readonly lazy?: Lazy;
  readonly #buffer: GpuBuffer;
  #freed = false;

  constructor(buffer: GpuBuffer, length: number, lazy?: Lazy) {
    this.#buffer = buffer;
    this.length = length;
    this.lazy = lazy;
    lazy?.turning.add(lazy.part, buffer);
  }

  get byteLength(): number {
    return 4 * this.length;
  }

  /** @throws Error when it was freed. */
  get buffer(): GpuBuffer {
    if (this.#freed) throw new Error("The tensor was freed");
    this.lazy?.turning.look(this.lazy.part);
    return this.#buffer;
  }

  /** The buffer, which is the caller's from then on. @throws Error when it was freed. */
  release(): GpuBuffer {
    if (this.#freed) throw new Error("The tensor was freed");
    this.#freed = true;
    this.lazy?.turning.gone(this.lazy.part);
    return this.#buffer;
  }
}

/** One of three that are made together. */
export interface Lazy {
  readonly turning: Turning;
  readonly part: "queries" | "keys" | "values";
}

export interface GpuTensors extends Tensors<GpuTensor> {
  /** A tensor of any numbers, for a stage to write to. */
  make(length: number, lazy?: Lazy): GpuTensor;
  /** Tensors that were not freed. */
  readonly alive: number;
}

export function createGpuTensors(gpu: GpuDevice): GpuTensors {
  let alive = 0;
  const held = (buffer: GpuBuffer, length: number, lazy?: Lazy) => {
    alive++;
    return new GpuTensor(buffer, length, lazy);
  };
  const make = (length: number, lazy?: Lazy) => held(gpu.borrow(4 * length), length, lazy);
  return {
    make,
    get alive() {
      return alive;
    },
    upload(numbers) {
      const tensor = held(gpu.borrowIdle(numbers.byteLength), numbers.length);
      gpu.write(tensor.buffer, 0, numbers as Float32Array<ArrayBuffer>);
      return tensor;
    },
    zeros(length) {
      const tensor = make(length);
      gpu.clear(tensor.buffer, 0, 4 * length);
      return tensor;
    },
    room: (length) => make(length),
    copy(from, start, count, to, at) {
      checkPart(from, start, count);
      checkPart(to, at, count);
      gpu.copy(from.buffer, 4 * start, to.buffer, 4 * at, 4 * count);
    },
    async read(tensor) {
      return new Float32Array(await gpu.read(tensor.buffer, 0, tensor.byteLength));
    },
    free(tensor) {
      gpu.giveBack(tensor.release());
      alive--;
    },
  };
}

/** @throws RangeError */
function checkPart({ length }: Tensor, start: number, count: number): void {
  const fits = [start, count].every((n) => Number.isInteger(n) && n >= 0) && start + count <= length;
  if (!fits) throw new RangeError(`Cannot copy ${count} numbers from or to place ${start}: there are ${length}`);
}
