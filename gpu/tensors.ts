/** Tensors that stay on a WebGPU device. */
import type { Tensor, Tensors } from "../core/backend/tensor.ts";
import type { GpuBuffer, GpuDevice } from "./device.ts";

/** Float32 numbers on the device, from the start of a borrowed buffer on, which may be larger. */
export class GpuTensor implements Tensor {
  readonly length: number;
  readonly #buffer: GpuBuffer;
  #freed = false;

  constructor(buffer: GpuBuffer, length: number) {
    this.#buffer = buffer;
    this.length = length;
  }

  get byteLength(): number {
    return 4 * this.length;
  }

  /** @throws Error when it was freed. */
  get buffer(): GpuBuffer {
    if (this.#freed) throw new Error("The tensor was freed");
    return this.#buffer;
  }

  /** The buffer, which is the caller's from then on. @throws Error when it was freed. */
  release(): GpuBuffer {
    const { buffer } = this;
    this.#freed = true;
    return buffer;
  }
}

export interface GpuTensors extends Tensors<GpuTensor> {
  /** A tensor of any numbers, for a stage to write to. */
  make(length: number): GpuTensor;
  /** Tensors that were not freed. */
  readonly alive: number;
}

export function createGpuTensors(gpu: GpuDevice): GpuTensors {
  let alive = 0;
  const held = (buffer: GpuBuffer, length: number) => {
    alive++;
    return new GpuTensor(buffer, length);
  };
  const make = (length: number) => held(gpu.borrow(4 * length), length);
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
