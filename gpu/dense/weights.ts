/** A model's weights on a device: matrices as they stand in the file, cut where a stage can't see all of one. */
import { PalisadeError, resourceError } from "../../core/errors.ts";
import type { GpuBuffer, GpuDevice } from "../device.ts";

/** Neighbouring rows of a matrix in one buffer. */
export interface MatrixPart {
  /** Number of the tensor type. */
  readonly kind: number;
  /** Numbers in a row of the inputs. */
  readonly inputs: number;
  /** The same with the zeros behind a row of the weights: a multiple of 8. */
  readonly padded: number;
  /** Rows. */
  readonly outputs: number;
  readonly rowBytes: number;
  /** Where its results begin in a row of them; of the embeddings the first token. */
  readonly column: number;
  readonly weights: GpuBuffer;
  /** `[outputs]`. */
  readonly bias?: GpuBuffer;
}

/** Bytes that are written at once. */
const SLICE = 1 << 22;
/** Bytes written before the device is waited for, so that what waits to be copied stays small. */
const IN_FLIGHT = 1 << 26;

/** Buffers of weights, which end together. */
export class DeviceWeights implements Disposable {
  readonly gpu: GpuDevice;
  readonly #buffers: GpuBuffer[] = [];
  #bytes = 0;
  #unsettled = 0;

  constructor(gpu: GpuDevice) {
    this.gpu = gpu;
  }

  /** Bytes held. */
  get bytes(): number {
    return this.#bytes;
  }

  /** A buffer of `bytes`, to be written in order and then ended. */
  fill(bytes: number): Filling {
    // One word more: an odd row's last word may reach over its end.
    const buffer = this.gpu.own(Math.ceil(bytes / 4) * 4 + 4);
    this.#buffers.push(buffer);
    this.#bytes += buffer.size;
    return new Filling(this.gpu, buffer, (written) => this.#unsettled += written);
  }

  /** The numbers in a buffer. */
  floats(numbers: Float32Array): GpuBuffer {
    const filling = this.fill(numbers.byteLength);
    filling.add(new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength));
    return filling.end();
  }

  /** Waits when much was written since the device was last waited for. @throws as `settle`. */
  async pace(tensor: string): Promise<void> {
    if (this.#unsettled >= IN_FLIGHT) await this.settle(tensor);
  }

  /**
   * Waits until the device has what was written.
   * @throws PalisadeError `gpu.memory` by the name of the tensor that there was no room for, or what else went wrong.
   */
  async settle(tensor: string): Promise<void> {
    this.#unsettled = 0;
    try {
      await this.gpu.settled();
    } catch (error) {
      throw noRoom(error, tensor);
    }
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#buffers) this.gpu.destroy(buffer);
    this.#buffers.length = this.#bytes = 0;
  }
}

function noRoom(error: unknown, tensor: string): unknown {
  if (!(error instanceof PalisadeError) || error.code !== "gpu.memory") return error;
  return resourceError("gpu.memory", `There is no room for ${tensor}: ${error.message}`, tensor, error);
}

/** A buffer that is being written from its beginning on, in pieces of any length. */
export class Filling {
  readonly #gpu: GpuDevice;
  readonly #buffer: GpuBuffer;
  readonly #wrote: (bytes: number) => void;
  /** What has come and was not written yet: writes begin and end at whole words. */
  #waiting: Uint8Array<ArrayBuffer>;
  #count = 0;
  #at = 0;

  /** `wrote` hears of every write. */
  constructor(gpu: GpuDevice, buffer: GpuBuffer, wrote: (bytes: number) => void) {
    this.#gpu = gpu;
    this.#buffer = buffer;
    this.#wrote = wrote;
    this.#waiting = new Uint8Array(Math.min(SLICE, buffer.size));
  }

  add(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length;) {
      const some = bytes.subarray(done, done + this.#waiting.length - this.#count);
      this.#waiting.set(some, this.#count);
      this.#count += some.length;
      done += some.length;
      if (this.#count === this.#waiting.length) this.#write();
    }
  }

  /** The buffer, whose rest stays zero. */
  end(): GpuBuffer {
    this.#waiting.fill(0, this.#count, this.#count + 3);
    this.#write();
    this.#waiting = new Uint8Array();
    return this.#buffer;
  }

  #write(): void {
    const bytes = Math.ceil(this.#count / 4) * 4;
    this.#gpu.write(this.#buffer, this.#at, this.#waiting.subarray(0, bytes));
    this.#wrote(bytes);
    this.#at += bytes;
    this.#count = 0;
  }
}
