/** Copies a model's weights into the kernels' memory: every matrix's rows to the thread that owns them, slice by slice. */
import { inputError } from "../../../core/errors.ts";
import type { Ask, Crew } from "../../../wasm/threads/pool.ts";
import { Stored } from "../../../wasm/dense/products.ts";
import { DENSE, rowsOf } from "../../../wasm/dense/service.ts";
import {
  type DensePlan,
  type LayerPlan,
  type MatrixPlan,
  shareRows,
  STEP,
  type Step,
} from "../../../wasm/dense/part.ts";
import type { Kernels } from "../../../wasm/module.ts";
import type { ModelConfig } from "../../config.ts";
import type { GgufFile } from "../../file/gguf/reader.ts";
import { rowBytesOf, type TensorType, typeNamed } from "../../file/tensor_types.ts";

/** Bytes read from the file at a time. */
const SLICE_BYTES = 1 << 22;

/** Weights in the memory of this thread and its crew. */
export class WeightMemory {
  readonly kernels: Kernels;
  readonly crew?: Crew;
  /** Bytes of weights in all threads. */
  bytes = 0;
  /** This thread's. */
  readonly stored = new Map<number, Stored>();
  readonly #others: number[][];
  #failed?: Error;
  #next = 1;

  constructor(kernels: Kernels, crew?: Crew) {
    this.kernels = kernels;
    this.crew = crew;
    this.#others = Array.from({ length: this.threads }, () => []);
  }

  get threads(): number {
    return this.crew?.size ?? 1;
  }

  newId(): number {
    return this.crew?.newId() ?? this.#next++;
  }

  /** Throws PalisadeError `wasm.memory` when there is no room; for another thread at the latest in {@link finish}. */
  store(rank: number, bytes: number): number {
    const id = this.newId();
    this.bytes += bytes;
    if (rank === 0) this.stored.set(id, new Stored(this.kernels, bytes));
    else {
      this.#others[rank].push(id);
      this.#tell(rank, DENSE.store, [id, bytes]);
    }
    return id;
  }

  write(rank: number, id: number, at: number, bytes: Uint8Array): void {
    if (rank === 0) this.stored.get(id)!.view(at, bytes.length).set(bytes);
    else this.#tell(rank, DENSE.write, [id, at], bytes);
  }

  /** Copies of rows of `rowBytes` bytes, one after another. */
  rows(rank: number, id: number, rowBytes: number, rows: readonly number[]): Uint8Array {
    if (rank === 0) return rowsOf(this.stored.get(id)!, rowBytes, rows);
    const ask = this.crew!.ask(rank, { operation: DENSE.rows, numbers: [id, rowBytes, ...rows], arrays: [] });
    return this.crew!.answerNow(rank, ask).arrays[0] as Uint8Array;
  }

  /** Gives every other thread its own of the `plans` under `id`; throws what went wrong there so far. */
  async finish(id: number, plans: readonly DensePlan[]): Promise<void> {
    const asks: Ask[] = [];
    for (let rank = 1; rank < this.threads; rank++) {
      const text = new TextEncoder().encode(JSON.stringify(plans[rank]));
      asks.push(this.crew!.ask(rank, { operation: DENSE.plan, numbers: [id], arrays: [text] }));
    }
    for (const [i, ask] of asks.entries()) await this.crew!.answer(i + 1, ask);
    if (this.#failed) throw this.#failed;
  }

  /** Gives back what other threads hold; this thread's memory goes with its kernels. */
  free(id: number): void {
    for (let rank = 1; rank < this.threads; rank++) {
      try {
        this.crew!.tell(rank, { operation: DENSE.free, numbers: [id, ...this.#others[rank].splice(0)], arrays: [] });
      } catch {
        // The thread has ended and its memory with it.
      }
    }
    this.stored.clear();
  }

  #tell(rank: number, operation: number, numbers: readonly number[], bytes?: Uint8Array): void {
    this.crew!.tell(rank, { operation, numbers, arrays: [bytes] }, (error) => this.#failed ??= error);
  }
}

/** Rows `[from, to)`. */
interface Rows {
  readonly from: number;
  readonly to: number;
}

/** Rows of a tensor that go to one thread, from byte `at` of its matrix on. */
interface Piece extends Rows {
  readonly rank: number;
  readonly id: number;
  readonly at: number;
}

/** A matrix in the file: tensors one below the other, with the rows each must have. */
interface Source {
  readonly names: readonly string[];
  readonly sizes: readonly number[];
  readonly inputs: number;
  readonly hasBias?: boolean;
}

/** Each thread's part of something; after them what this thread takes where it works alone. */
type PerThread<T> = readonly T[];

/** Reads a model's tensors into a {@link WeightMemory}. */
export class WeightLoader {
  readonly #memory: WeightMemory;
  readonly #file: GgufFile;
  readonly #alone: (step: Step) => boolean;

  /** `alone`: whether this thread works alone at steps over few rows, and so holds all rows of their matrices. */
  constructor(memory: WeightMemory, file: GgufFile, alone: (step: Step) => boolean) {
    this.#memory = memory;
    this.#file = file;
    this.#alone = alone;
  }

  async layer(config: ModelConfig, index: number): Promise<PerThread<LayerPlan>> {
    const { width, heads, kvHeads, headDim, feedForward, qkvBias } = config;
    const named = (tensor: string) => `blk.${index}.${tensor}`;
    const sizes = [heads * headDim, kvHeads * headDim, kvHeads * headDim];
    const attentionNorm = await this.floats(named("attn_norm.weight"));
    const projections = await this.#beside(["attn_q", "attn_k", "attn_v"].map(named), sizes, width, qkvBias);
    const output = await this.matrix(named("attn_output"), width, heads * headDim, STEP.finish);
    const feedForwardNorm = await this.floats(named("ffn_norm.weight"));
    const gateUp = await this.#gateUp(["ffn_gate", "ffn_up"].map(named), feedForward, width);
    const down = await this.matrix(named("ffn_down"), width, feedForward, STEP.finish);
    return output.map((_, part) => ({
      attentionNorm: attentionNorm[part],
      projections: projections.map((matrix) => matrix[part]),
      output: output[part],
      feedForwardNorm: feedForwardNorm[part],
      gateUp: gateUp.map((matrix) => matrix[part]),
      down: down[part],
    }));
  }

  /** A tensor as float32, whole in every thread. */
  async floats(name: string): Promise<PerThread<number>> {
    const all = asBytes(await this.#file.readFloat32(name)), ids = this.#ranks().map((rank) => this.#hold(rank, all));
    return [...ids, ids[0]];
  }

  /** A matrix of a step with its rows shared out, or all in this thread `here`. */
  async matrix(tensor: string, outputs: number, inputs: number, step: Step | "here"): Promise<PerThread<MatrixPlan>> {
    return await this.#matrix({ names: [tensor], sizes: [outputs], inputs }, step, 0);
  }

  /** Matrices over one input, their results one beside the other: one of all rows where the types are alike. */
  async #beside(names: readonly string[], sizes: readonly number[], inputs: number, hasBias: boolean) {
    const all = this.#alike(names) ? [{ names, sizes, inputs, hasBias }] : names.map((name, i) => {
      return { names: [name], sizes: [sizes[i]], inputs, hasBias };
    });
    const matrices: PerThread<MatrixPlan>[] = [];
    let column = 0;
    for (const source of all) {
      matrices.push(await this.#matrix(source, STEP.qkv, column));
      column += source.sizes.reduce((a, b) => a + b);
    }
    return matrices;
  }

  /** Gate and up: every thread of a crew gets the same rows of both; one alone has one below the other. */
  async #gateUp(names: readonly string[], outputs: number, inputs: number): Promise<PerThread<MatrixPlan>[]> {
    if (this.#memory.threads === 1 && this.#alike(names)) {
      return [await this.#matrix({ names, sizes: [outputs, outputs], inputs }, STEP.finish, 0)];
    }
    const matrices = [];
    for (const name of names) matrices.push(await this.matrix(name, outputs, inputs, STEP.finish));
    return matrices;
  }

  /** Copies a matrix of a step; `column`: where its results begin. */
  async #matrix(source: Source, step: Step | "here", column: number): Promise<PerThread<MatrixPlan>> {
    const { names, sizes, inputs, hasBias } = source, all = sizes.reduce((a, b) => a + b);
    const type = heldAs(this.#typeOf(names[0])), rowBytes = rowBytesOf(type, inputs);
    const own = this.#ranks().map((rank) => this.#share(all, rank, step));
    const whole = { from: 0, to: step !== "here" && this.#alone(step) ? all : own[0].to };
    // What this thread owns are the first of its rows.
    const held = [whole, ...own.slice(1)];
    const ids = held.map(({ from, to }, rank) => this.#memory.store(rank, (to - from) * rowBytes));
    const biases: number[][] = held.map(() => []);
    let above = 0;
    for (const [i, name] of names.entries()) {
      const pieces = held.map((rows, rank): Piece => {
        const from = clamp(rows.from - above, sizes[i]), to = clamp(rows.to - above, sizes[i]);
        return { rank, id: ids[rank], from, to, at: (above + from - rows.from) * rowBytes };
      });
      await this.#copy(`${name}.weight`, type, inputs, sizes[i], pieces);
      if (hasBias) {
        const bias = await this.#file.readFloat32(`${name}.bias`);
        for (const { rank, from, to } of pieces) biases[rank].push(...bias.subarray(from, to));
      }
      above += sizes[i];
    }
    const bias = biases.map((each, rank) => hasBias ? this.#hold(rank, asBytes(Float32Array.from(each))) : undefined);
    const plan = ({ from, to }: Rows, rank: number): MatrixPlan => ({
      kernel: type.id,
      outputs: to - from,
      inputs,
      weights: ids[rank],
      bias: bias[rank],
      column: column + from,
    });
    return [...own.map(plan), plan(whole, 0)];
  }

  #share(outputs: number, rank: number, step: Step | "here"): Rows {
    if (step === "here") return { from: 0, to: rank ? 0 : outputs };
    return shareRows(outputs, this.#memory.threads, rank);
  }

  /** Copies a tensor's rows to the threads that own them, a slice of whole rows at a time. */
  async #copy(name: string, type: TensorType, inputs: number, rows: number, pieces: readonly Piece[]) {
    const { shape, byteLength, type: held } = this.#file.tensors.get(name)!;
    const there = shape.slice(1).reduce((a, b) => a * b, 1);
    if (shape[0] !== inputs || there !== rows) {
      throw inputError("gguf.shape", `${name}: ${there} rows of ${shape[0]} weights, want ${rows} of ${inputs}`, name);
    }
    const read = this.#reader(name, held, type, byteLength / rows);
    const rowBytes = rowBytesOf(type, inputs);
    const step = Math.max(1, Math.floor(SLICE_BYTES / rowBytes));
    for (let first = 0; first < rows; first += step) {
      const count = Math.min(step, rows - first), bytes = await read(first, count);
      for (const { rank, id, from, to, at } of pieces) {
        const [start, end] = [Math.max(from, first), Math.min(to, first + count)];
        if (start >= end) continue;
        const mine = bytes.subarray((start - first) * rowBytes, (end - first) * rowBytes);
        this.#memory.write(rank, id, at + (start - from) * rowBytes, mine);
      }
    }
  }

  /** Reads rows as they are to be held. */
  #reader(name: string, held: TensorType, type: TensorType, fileRowBytes: number) {
    const raw = (first: number, count: number) =>
      this.#file.readRaw(name, { offset: first * fileRowBytes, length: count * fileRowBytes });
    if (type === held) return raw;
    return async (firstRow: number, rows: number) => asBytes(await this.#file.readFloat32(name, { firstRow, rows }));
  }

  #hold(rank: number, bytes: Uint8Array): number {
    const id = this.#memory.store(rank, bytes.length);
    this.#memory.write(rank, id, 0, bytes);
    return id;
  }

  #ranks(): number[] {
    return Array.from({ length: this.#memory.threads }, (_, rank) => rank);
  }

  #alike(names: readonly string[]): boolean {
    return new Set(names.map((name) => this.#typeOf(name))).size === 1;
  }

  #typeOf(name: string): TensorType {
    return this.#file.tensors.get(`${name}.weight`)!.type;
  }
}

function clamp(row: number, most: number): number {
  return Math.min(most, Math.max(0, row));
}

function asBytes({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** What the kernels hold a type of the file as: itself where they multiply it. */
function heldAs(type: TensorType): TensorType {
  return type.kernel ? type : typeNamed("F32");
}
