/** Dense products over quantised weights in the kernels' memory: handles and copies, no arithmetic. */
import type { Kernels } from "../module.ts";
import { FormTrial } from "./forms.ts";

/** Bytes held in the kernels' memory until freed. */
export class Stored {
  readonly handle: number;
  readonly byteLength: number;
  readonly #kernels: Kernels;
  #woven = false;
  #infinite = false;

  /** Throws PalisadeError `wasm.memory` when there is no room. */
  constructor(kernels: Kernels, byteLength: number) {
    this.#kernels = kernels;
    this.byteLength = byteLength;
    const room = byteLength <= 0x7fffffff ? kernels.call.buffer_new(byteLength) : -1;
    this.handle = kernels.check(room, `hold ${byteLength} bytes of weights`);
  }

  /** Some of the bytes, to be written; valid until the memory grows. Once they are woven there is no view of them. */
  view(offset: number, length: number): Uint8Array {
    if (offset < 0 || length < 0 || offset + length > this.byteLength) {
      throw new RangeError(`No bytes ${offset} to ${offset + length} of ${this.byteLength}`);
    }
    if (this.#woven) throw new RangeError("Weights that are in use can't be written to");
    return this.#kernels.bytes((this.#kernels.call.buffer_address(this.handle) >>> 0) + offset, length);
  }

  /**
   * Has all rows of a matrix, of the type `kernel` and `inputs` wide, as products want them: eight side by side. Once.
   * Whether some scale is infinite or no number, which only float32 arithmetic sees.
   */
  weave(kernel: number, inputs: number): boolean {
    if (!this.#woven && this.byteLength > 0) {
      const result = this.#kernels.call.dense_weave(this.handle, kernel, inputs);
      this.#infinite = this.#kernels.check(result, "weave weights") === 1;
      this.#woven = true;
    }
    return this.#infinite;
  }

  /** Copies of rows as float32, one after another. */
  rows(kernel: number, inputs: number, rows: readonly number[]): Float32Array {
    const kernels = this.#kernels, floats = new Float32Array(rows.length * inputs);
    kernels.withBuffers((buffers) => {
      const out = buffers.zeros(4 * inputs);
      rows.forEach((row, i) => {
        kernels.check(kernels.call.dense_row(this.handle, kernel, inputs, this.#woven ? 1 : 0, row, out), "copy a row");
        buffers.read(out, floats.subarray(i * inputs, (i + 1) * inputs));
      });
    });
    return floats;
  }

  free(): void {
    this.#kernels.call.buffer_free(this.handle);
  }
}

/**
 * Tensor types, by number, whose inputs are int8 instead of int16 in the relaxed build: Q5_0, Q5_1, Q2_K to Q6_K, MXFP4
 * (`MOST` in wasm/kernels/src). There one instruction multiplies sixteen bytes, one factor being below 128, which their
 * integers are. Q4_0 and Q4_1 keep int16, which costs less of an answer (docs/decisions/products-of-many-rows.md).
 */
export const BYTE_INPUT_TYPES: readonly number[] = [6, 7, 10, 11, 12, 13, 14, 39];

/** A weight matrix `[outputs, inputs]` and what is added to its products. */
export interface StoredMatrix {
  /** Number of its tensor type in GGUF files; the kernels refuse those they don't know. */
  readonly kernel: number;
  readonly outputs: number;
  readonly inputs: number;
  readonly weights: Stored;
  /** `[outputs]`, float32. */
  readonly bias?: Stored;
}

/** Where products go: row `t` at `offset + t · stride` of a buffer. */
export interface Target {
  readonly buffer: number;
  readonly stride: number;
  readonly offset?: number;
  /** Add to what is there. */
  readonly add?: boolean;
}

/** Rows of inputs from which on weights are unpacked once for all (`MANY` in wasm/kernels/src/dense.rs). */
const MANY_ROWS = 4;

/** Numbers of `Arithmetic` in wasm/kernels/src/dense.rs. */
const INTS = 0, FLOATS = 1, WIDE_INTS = 2;

/** By kernels, then by tensor type and by whether rows are many. */
const TRIALS = new WeakMap<Kernels, Map<number, FormTrial>>();

/**
 * Which of two forms of products with int8 inputs is faster is tried while they are needed: sums in int32 at once are so
 * where the processor multiplies and adds four bytes in one instruction, as many have since about 2021, and Arm's.
 */
function trialOf(kernels: Kernels, kernel: number, count: number): FormTrial {
  const key = 2 * kernel + (count < MANY_ROWS ? 0 : 1), trials = TRIALS.get(kernels), known = trials?.get(key);
  if (known) return known;
  const trial = new FormTrial();
  if (trials) trials.set(key, trial);
  else TRIALS.set(kernels, new Map([[key, trial]]));
  return trial;
}

/** `target[t] = matrix · inputs[t] + bias` for `count` rows; `exact`: float32 arithmetic, else int16 or int8 inputs. */
export function multiply(
  kernels: Kernels,
  matrix: StoredMatrix,
  inputs: number,
  count: number,
  target: Target,
  exact: boolean,
): void {
  const { weights, kernel, outputs, inputs: width, bias } = matrix, infinite = weights.weave(kernel, width);
  const run = (arithmetic: number) =>
    kernels.call.dense_multiply(
      weights.handle,
      kernel,
      outputs,
      width,
      arithmetic,
      inputs,
      count,
      bias?.handle ?? -1,
      target.buffer,
      target.stride,
      target.offset ?? 0,
      target.add ? 1 : 0,
    );
  const inBytes = kernels.relaxed && BYTE_INPUT_TYPES.includes(kernel) && !exact && !infinite;
  const result = inBytes
    ? trialOf(kernels, kernel, count).run(count * outputs * width, (wide) => run(wide ? WIDE_INTS : INTS))
    : run(exact || infinite ? FLOATS : INTS);
  kernels.check(result, "multiply");
}
