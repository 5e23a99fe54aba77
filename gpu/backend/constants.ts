/** Numbers that are sent to the device once: of a gate, of a convolution. */
import type { GpuBuffer, GpuDevice } from "../device.ts";

export class Constants implements Disposable {
  readonly #gpu: GpuDevice;
  readonly #sent = new Map<Float32Array, GpuBuffer>();

  constructor(gpu: GpuDevice) {
    this.#gpu = gpu;
  }

  /** The buffer of an array, which must not be written to. It stays until the end. */
  of(numbers: Float32Array): GpuBuffer {
    const known = this.#sent.get(numbers);
    if (known) return known;
    const buffer = this.#gpu.own(numbers.byteLength);
    this.#gpu.write(buffer, 0, numbers as Float32Array<ArrayBuffer>);
    this.#sent.set(numbers, buffer);
    return buffer;
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#sent.values()) this.#gpu.destroy(buffer);
    this.#sent.clear();
  }
}
