/** Dense products over quantised weights in the kernels' memory: handles and copies, no arithmetic. */
import type { Kernels } from "../module.ts";

/** GGUF tensor types the kernels multiply as they stand in the file, by their numbers there. */
export const KERNEL_TYPES = { F32: 0, Q4_0: 2, Q4_1: 3, Q8_0: 8 } as const;
export type KernelType = keyof typeof KERNEL_TYPES;

/** Bytes of one block of 32 weights. */
const BLOCK_BYTES: Readonly<Record<KernelType, number>> = { F32: 128, Q4_0: 18, Q4_1: 20, Q8_0: 34 };

/** Whether the kernels multiply rows of `inputs` weights of this type. */
export function isKernelType(type: string, inputs: number): type is KernelType {
  return Object.hasOwn(KERNEL_TYPES, type) && (type === "F32" || inputs % 32 === 0);
}

/** Bytes held in the kernels' memory until freed. */
export class Stored {
  readonly handle: number;
  readonly byteLength: number;
  readonly #kernels: Kernels;

  /** Throws PalisadeError `wasm.memory` when there is no room. */
  constructor(kernels: Kernels, byteLength: number) {
    this.#kernels = kernels;
    this.byteLength = byteLength;
    const room = byteLength <= 0x7fffffff ? kernels.call.buffer_new(byteLength) : -1;
    this.handle = kernels.check(room, `hold ${byteLength} bytes of weights`);
  }

  /** A view, valid until the memory grows. */
  view(offset: number, length: number): Uint8Array {
    if (offset < 0 || length < 0 || offset + length > this.byteLength) {
      throw new RangeError(`No bytes ${offset} to ${offset + length} of ${this.byteLength}`);
    }
    return this.#kernels.bytes((this.#kernels.call.buffer_address(this.handle) >>> 0) + offset, length);
  }

  free(): void {
    this.#kernels.call.buffer_free(this.handle);
  }
}

/** A weight matrix `[outputs, inputs]` and what is added to its products. */
export interface StoredMatrix {
  readonly type: KernelType;
  readonly outputs: number;
  readonly inputs: number;
  readonly weights: Stored;
  /** `[outputs]`, float32. */
  readonly bias?: Stored;
}

/** Bytes of a matrix of this type. */
export function matrixBytes(type: KernelType, outputs: number, inputs: number): number {
  return type === "F32" ? outputs * inputs * 4 : outputs * (inputs / 32) * BLOCK_BYTES[type];
}

/** Where products go: row `t` at `offset + t · stride` of a buffer. */
export interface Target {
  readonly buffer: number;
  readonly stride: number;
  readonly offset?: number;
  /** Add to what is there. */
  readonly add?: boolean;
}

/** `target[t] = matrix · inputs[t] + bias` for `count` rows; `exact`: float32 arithmetic, else int16 inputs. */
export function multiply(
  kernels: Kernels,
  matrix: StoredMatrix,
  inputs: number,
  count: number,
  target: Target,
  exact: boolean,
): void {
  const { weights, type, outputs, inputs: width, bias } = matrix;
  const result = kernels.call.dense_multiply(
    weights.handle,
    KERNEL_TYPES[type],
    outputs,
    width,
    exact ? 1 : 0,
    inputs,
    count,
    bias?.handle ?? -1,
    target.buffer,
    target.stride,
    target.offset ?? 0,
    target.add ? 1 : 0,
  );
  kernels.check(result, "multiply");
}
