/**
 * One thread's part of the dense layers: some rows of every matrix. Inputs and outputs of each step are on the board
 * that all threads see; between two phases of a step they wait for each other. One thread alone never waits: for steps
 * that are too small to be shared out ({@link worthSharing}) the first thread holds all rows.
 */
import type { Board } from "../threads/barrier.ts";
import { multiply, type Stored, type StoredMatrix, type Target } from "./products.ts";
import { Buffers, type Kernels } from "../module.ts";
import { WORK_PER_WAIT } from "../threads/cost.ts";

/** Some rows of a matrix. Weights by id, so that a plan can be sent to another thread. */
export interface MatrixPlan {
  /** Number of its tensor type. */
  readonly kernel: number;
  /** Rows of this thread, possibly none. */
  readonly outputs: number;
  readonly inputs: number;
  readonly weights: number;
  readonly bias?: number;
  /** Where the first of them stands in the whole result. */
  readonly column: number;
}

export interface LayerPlan {
  readonly attentionNorm: number;
  /** Query, key, value; one matrix where they have one type. */
  readonly projections: readonly MatrixPlan[];
  readonly output: MatrixPlan;
  readonly feedForwardNorm: number;
  /** Gate, up, the same rows of both; one matrix, gates first, where they have one type. */
  readonly gateUp: readonly MatrixPlan[];
  /** The same rows as `output`. */
  readonly down: MatrixPlan;
}

export interface DensePlan {
  readonly width: number;
  /** heads · headDim */
  readonly attention: number;
  /** (heads + 2 · kvHeads) · headDim */
  readonly projected: number;
  readonly feedForward: number;
  readonly vocabulary: number;
  readonly normEpsilon: number;
  /** Float32 arithmetic instead of int16 inputs. */
  readonly exact: boolean;
  readonly layers: readonly LayerPlan[];
  readonly norm: number;
  readonly head: MatrixPlan;
}

/** The steps. The board holds, one after another, for `qkv`: hidden, projections; `finish`: hidden, attention, gated; `logits`: hidden, logits. */
export const STEP = { qkv: 0, finish: 1, logits: 2 } as const;
export type Step = typeof STEP[keyof typeof STEP];

/** Times that threads wait for one another in a step, at its start and between its phases; the board costs one more. */
const WAITS: Readonly<Record<Step, number>> = [2, 4, 2];

/** Sizes of a model's steps. */
export type StepSizes = Pick<DensePlan, "width" | "attention" | "projected" | "feedForward" | "vocabulary">;

/** Whether a step over `count` rows has `workPerWait` multiply-adds for every wait, or is better left to one thread. */
export function worthSharing(sizes: StepSizes, step: Step, count: number, workPerWait = WORK_PER_WAIT): boolean {
  const { width, attention, projected, feedForward, vocabulary } = sizes;
  const work = [width * projected, width * attention + 3 * width * feedForward, width * vocabulary][step];
  return count * work >= workPerWait * WAITS[step];
}

/** Rows of a matrix are shared out in runs of this many, which the kernels take together. */
const RUN = 16;

/** Rows `[from, to)` of `outputs` that belong to a thread. */
export function shareRows(outputs: number, threads: number, rank: number): { from: number; to: number } {
  const runs = Math.ceil(outputs / RUN);
  const start = (r: number) => Math.min(outputs, Math.ceil(r * runs / threads) * RUN);
  return { from: start(rank), to: start(rank + 1) };
}

/** Floats on the board for a step over `count` rows. */
export function boardFloats(plan: DensePlan, step: Step, count: number): number {
  const { width, attention, projected, feedForward, vocabulary } = plan;
  return count * (width + [projected, attention + feedForward, vocabulary][step]);
}

type Phase = (buffers: Buffers) => void;
type Matrix = StoredMatrix & { readonly column: number };

interface Layer {
  readonly attentionNorm: Stored;
  readonly projections: readonly Matrix[];
  readonly output: Matrix;
  readonly feedForwardNorm: Stored;
  readonly gateUp: readonly Matrix[];
  readonly down: Matrix;
}

export class DenseShare {
  readonly #kernels: Kernels;
  readonly #board: Board;
  readonly #plan: DensePlan;
  readonly #layers: readonly Layer[];
  readonly #norm: Stored;
  readonly #head: Matrix;

  /** `stored`: the weights by id. */
  constructor(kernels: Kernels, board: Board, plan: DensePlan, stored: ReadonlyMap<number, Stored>) {
    const matrix = (part: MatrixPlan): Matrix => ({
      ...part,
      weights: stored.get(part.weights)!,
      bias: part.bias === undefined ? undefined : stored.get(part.bias)!,
    });
    this.#kernels = kernels;
    this.#board = board;
    this.#plan = plan;
    this.#layers = plan.layers.map((layer) => ({
      attentionNorm: stored.get(layer.attentionNorm)!,
      projections: layer.projections.map(matrix),
      output: matrix(layer.output),
      feedForwardNorm: stored.get(layer.feedForwardNorm)!,
      gateUp: layer.gateUp.map(matrix),
      down: matrix(layer.down),
    }));
    this.#norm = stored.get(plan.norm)!;
    this.#head = matrix(plan.head);
  }

  /** Carries out a step over `count` rows on the board; `meet` waits for the other threads, failed or not. */
  run(step: Step, layer: number, count: number, meet: () => void): void {
    const running = this.start(step, layer, count);
    while (!running.next()) meet();
  }

  /** The same, phase by phase: after each `next()` that is not the last one the threads must meet. */
  start(step: Step, layer: number, count: number): Running {
    return new Running(this.#kernels, this.#phases(step, layer, count));
  }

  #phases(step: Step, layer: number, count: number): Phase[] {
    switch (step) {
      case STEP.qkv:
        return [this.#qkv(this.#layers[layer], count)];
      case STEP.finish:
        return this.#finish(this.#layers[layer], count);
      case STEP.logits:
        return [this.#logits(count)];
      default:
        return step satisfies never;
    }
  }

  #qkv({ attentionNorm, projections }: Layer, count: number): Phase {
    const { width, projected } = this.#plan;
    return (buffers) => {
      const normed = this.#normed(buffers, attentionNorm, count);
      for (const matrix of projections) this.#product(buffers, matrix, normed, count, count * width, projected);
    };
  }

  #finish({ output, feedForwardNorm, gateUp, down }: Layer, count: number): Phase[] {
    const { width, attention, feedForward } = this.#plan, board = this.#board;
    const gates = count * (width + attention);
    const mine = gateUp[0].outputs * gateUp.length / 2, residual = { stride: output.outputs, add: true };
    let hidden = -1;
    return [
      (buffers) => {
        if (output.outputs === 0) return;
        hidden = buffers.from(this.#columns(output, count));
        const inputs = buffers.from(board.floats(count * width, count * attention));
        this.#multiply(output, inputs, count, { ...residual, buffer: hidden });
        this.#publish(buffers, hidden, output, output.outputs, count, 0, width);
      },
      (buffers) => {
        if (mine === 0) return;
        const normed = this.#normed(buffers, feedForwardNorm, count);
        const both = buffers.zeros(count * 2 * mine * 4);
        gateUp.forEach((matrix, i) =>
          this.#multiply(matrix, normed, count, { buffer: both, stride: 2 * mine, offset: i * mine })
        );
        const gated = buffers.zeros(count * mine * 4);
        this.#kernels.check(this.#kernels.call.dense_swiglu(both, mine, count, gated), "gate");
        this.#publish(buffers, gated, gateUp[0], mine, count, gates, feedForward);
      },
      (buffers) => {
        if (output.outputs === 0) return;
        const inputs = buffers.from(board.floats(gates, count * feedForward));
        this.#multiply(down, inputs, count, { ...residual, buffer: hidden });
        this.#publish(buffers, hidden, down, down.outputs, count, 0, width);
      },
    ];
  }

  #logits(count: number): Phase {
    const { width, vocabulary } = this.#plan;
    return (buffers) => {
      const normed = this.#normed(buffers, this.#norm, count);
      this.#product(buffers, this.#head, normed, count, count * width, vocabulary);
    };
  }

  /** The hidden states on the board after their norm. */
  #normed(buffers: Buffers, gains: Stored, count: number): number {
    const { width, normEpsilon } = this.#plan;
    const x = buffers.from(this.#board.floats(0, count * width)), out = buffers.zeros(count * width * 4);
    this.#kernels.check(this.#kernels.call.dense_norm(x, gains.handle, width, count, normEpsilon, out), "norm");
    return out;
  }

  #multiply(matrix: Matrix, inputs: number, count: number, target: Target): void {
    multiply(this.#kernels, matrix, inputs, count, target, this.#plan.exact);
  }

  /** Products of the matrix onto the board, where whole rows of `stride` begin at `at`. */
  #product(buffers: Buffers, matrix: Matrix, inputs: number, count: number, at: number, stride: number): void {
    if (matrix.outputs === 0) return;
    const buffer = buffers.zeros(count * matrix.outputs * 4);
    this.#multiply(matrix, inputs, count, { buffer, stride: matrix.outputs });
    this.#publish(buffers, buffer, matrix, matrix.outputs, count, at, stride);
  }

  #publish(buffers: Buffers, from: number, { column }: Matrix, own: number, count: number, at: number, stride: number) {
    if (count === 1 || own === stride) {
      buffers.read(from, this.#board.floats(at + column, count * own));
      return;
    }
    const floats = buffers.read(from, new Float32Array(count * own));
    const all = this.#board.floats(at, count * stride);
    for (let t = 0; t < count; t++) all.set(floats.subarray(t * own, (t + 1) * own), t * stride + column);
  }

  /** The hidden states' columns that a matrix adds to. */
  #columns({ column, outputs }: Matrix, count: number): Float32Array {
    const { width } = this.#plan;
    if (count === 1 || outputs === width) return this.#board.floats(column, count * outputs);
    const all = this.#board.floats(0, count * width), mine = new Float32Array(count * outputs);
    for (let t = 0; t < count; t++) {
      mine.set(all.subarray(t * width + column, t * width + column + outputs), t * outputs);
    }
    return mine;
  }
}

/** A step under way. */
export class Running {
  readonly #buffers: Buffers;
  readonly #phases: readonly Phase[];
  #done = 0;
  #failed?: { readonly error: unknown };

  constructor(kernels: Kernels, phases: readonly Phase[]) {
    this.#buffers = new Buffers(kernels);
    this.#phases = phases;
  }

  /**
   * Does the next phase; true after the last one. A failure is thrown there and no earlier, so that nobody waits in vain
   * for this thread.
   */
  next(): boolean {
    if (!this.#failed) {
      try {
        this.#phases[this.#done](this.#buffers);
      } catch (error) {
        this.#failed = { error };
      }
    }
    if (++this.#done < this.#phases.length) return false;
    this.stop();
    if (this.#failed) throw this.#failed.error;
    return true;
  }

  /** Gives the buffers back. */
  stop(): void {
    this.#buffers.free();
  }
}
