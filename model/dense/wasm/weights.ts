/** Copies a model's weights into the kernels' memory: every matrix's rows to the thread that owns them, slice by slice. */
import { inputError } from "../../../core/errors.ts";
import type { Ask, ThreadPool } from "../../../wasm/threads/pool.ts";
import { BYTE_INPUT_TYPES, Stored } from "../../../wasm/dense/products.ts";
import type { Asked } from "../../../wasm/threads/command.ts";
import { DENSE } from "../../../wasm/dense/service.ts";
import {
  type DensePlan,
  type Inputs,
  type MatrixPlan,
  type PlanOperation,
  shareRows,
} from "../../../wasm/dense/part.ts";
import type { Kernels } from "../../../wasm/module.ts";
import type { DenseOperation, TensorRows } from "../../architecture.ts";
import type { GgufFile, GgufTensor } from "../../file/gguf/reader.ts";
import { rowBytesOf, type TensorType } from "../../file/tensor_types.ts";
import { halvesOf, heldAs } from "../held.ts";

/** Bytes read from the file at a time. */
const SLICE_BYTES = 1 << 22;

/** Weights in the memory of this thread and its pool. */
export class WeightMemory {
  readonly kernels: Kernels;
  readonly pool?: ThreadPool;
  /** Bytes of weights in all threads. */
  bytes = 0;
  /** Whether some matrices take int8 inputs. */
  hasByteInputs = false;
  /** This thread's. */
  readonly stored = new Map<number, Stored>();
  readonly #others: number[][];
  #failed?: Error;
  #next = 1;

  constructor(kernels: Kernels, pool?: ThreadPool) {
    this.kernels = kernels;
    this.pool = pool;
    this.#others = Array.from({ length: this.threads }, () => []);
  }

  get threads(): number {
    return this.pool?.size ?? 1;
  }

  newId(): number {
    return this.pool?.newId() ?? this.#next++;
  }

  /** Throws PalisadeError `wasm.memory` when there is no room; for another thread at the latest in {@link finish}. */
  store(rank: number, bytes: number): number {
    const id = this.newId();
    this.bytes += bytes;
    if (rank === 0) this.stored.set(id, new Stored(this.kernels, bytes));
    else {
      this.#others[rank].push(id);
      this.#tell(rank, DENSE.store, { id, bytes });
    }
    return id;
  }

  /** Once it resolves the bytes are there, and may be others. */
  async write(rank: number, id: number, at: number, bytes: Uint8Array): Promise<void> {
    if (rank === 0) return this.stored.get(id)!.view(at, bytes.length).set(bytes);
    const pool = this.pool!;
    try {
      await pool.answer(rank, pool.ask(rank, DENSE.write, { id, at, bytes }));
    } catch (error) {
      // Room for them may have failed before.
      throw this.#failed ?? error;
    }
  }

  /** Copies of rows of a matrix as float32, one after another. */
  rows(rank: number, { weights: id, kernel, inputs }: MatrixPlan, rows: readonly number[]): Float32Array {
    if (rank === 0) return this.stored.get(id)!.rows(kernel, inputs, rows);
    const pool = this.pool!;
    return pool.answerNow(rank, pool.ask(rank, DENSE.rows, { id, kernel, inputs, rows })).floats;
  }

  /** Gives every other thread its own of the `plans` under `id`; throws what went wrong there so far. */
  async finish(id: number, plans: readonly DensePlan[]): Promise<void> {
    const asks: Ask<unknown>[] = [];
    for (let rank = 1; rank < this.threads; rank++) {
      asks.push(this.pool!.ask(rank, DENSE.plan, { id, plan: plans[rank] }));
    }
    for (const [i, ask] of asks.entries()) await this.pool!.answer(i + 1, ask);
    if (this.#failed) throw this.#failed;
  }

  /** Gives back what other threads hold; this thread's memory goes with its kernels. */
  free(id: number): void {
    for (let rank = 1; rank < this.threads; rank++) {
      try {
        this.pool!.tell(rank, DENSE.free, { id, weights: this.#others[rank].splice(0) });
      } catch {
        // The thread has ended and its memory with it.
      }
    }
    this.stored.clear();
  }

  #tell<I>(rank: number, command: Asked<I, unknown>, input: I): void {
    this.pool!.tell(rank, command, input, { onFailure: (error) => this.#failed ??= error });
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

/** Each thread's part of something; after them what this thread takes where it works alone. */
export type PerThread<T> = readonly T[];

/** Which threads hold a matrix: all of them some rows, and this one all where it works alone; or this one alone. */
export type Holders = "shared" | "alone" | "here";

/** Reads a model's tensors into a {@link WeightMemory}. */
export class WeightLoader {
  readonly #memory: WeightMemory;
  readonly #file: GgufFile;
  readonly #holders: (operations: readonly DenseOperation[], inputs: Inputs) => Holders;
  readonly #exact: boolean;
  /** Bytes on their way from the file to where they belong. */
  #slice = new Uint8Array(SLICE_BYTES);
  /** Matrices of whole tensors. */
  readonly #whole = new Map<string, PerThread<MatrixPlan>>();

  /**
   * `holders`: of a list's matrices; this thread holds all rows where it works alone at it, over few rows or any. `exact`:
   * no weight may be rounded.
   */
  constructor(
    memory: WeightMemory,
    file: GgufFile,
    holders: (operations: readonly DenseOperation[], inputs: Inputs) => Holders,
    exact: boolean,
  ) {
    this.#exact = exact;
    this.#memory = memory;
    this.#file = file;
    this.#holders = holders;
  }

  /** A list that begins with `inputs`, with each thread's part of its weights. */
  async operations(operations: readonly DenseOperation[], inputs: Inputs): Promise<PerThread<PlanOperation[]>> {
    const holders = this.#holders(operations, inputs);
    const gated = new Set(operations.flatMap((each) => each.op === "gate" ? [each.from] : []));
    const parts: PlanOperation[][] = Array.from({ length: this.#memory.threads + 1 }, () => []);
    for (const operation of operations) {
      const held = await this.#operation(operation, holders, gated);
      parts.forEach((part, i) => part.push(held(i)));
    }
    return parts;
  }

  /** The embeddings: as the head has them, where it has them, else in this thread. */
  async embedding(tensor: string, rows: number, inputs: number): Promise<PerThread<MatrixPlan>> {
    const whole = { tensor, first: 0, rows, bias: false };
    return this.#whole.get(tensor) ?? await this.#matrix([whole], inputs, "here", 0);
  }

  /** What an operation becomes for part `i`. */
  async #operation(
    operation: DenseOperation,
    holders: Holders,
    gated: ReadonlySet<string>,
  ): Promise<(i: number) => PlanOperation> {
    switch (operation.op) {
      case "norm":
      case "headNorm": {
        const gains = await this.#floats(operation.gains);
        return (i) => ({ ...operation, gains: gains[i] });
      }
      case "unitNorm": {
        const gains = await this.#holdAll(new Float32Array(operation.width).fill(1));
        return (i) => ({ ...operation, op: "headNorm", gains: gains[i] });
      }
      case "multiply": {
        const weights = await this.#beside(operation.weights, holders, gated.has(operation.to));
        return (i) => ({ ...operation, weights: weights.map((matrix) => matrix[i]) });
      }
      case "expand":
      case "collect": {
        const experts: PerThread<MatrixPlan>[][] = [];
        const gated = operation.op === "expand";
        for (const parts of operation.weights) experts.push(await this.#beside(parts, holders, gated));
        return (i) => ({ ...operation, weights: experts.map((matrices) => matrices.map((matrix) => matrix[i])) });
      }
      default:
        return () => operation;
    }
  }

  /** A tensor as float32, whole in every thread. */
  async #floats(name: string): Promise<PerThread<number>> {
    return await this.#holdAll(await this.#file.readFloat32(name));
  }

  async #holdAll(numbers: Float32Array): Promise<PerThread<number>> {
    const ids: number[] = [], all = asBytes(numbers);
    for (const rank of this.#ranks()) ids.push(await this.#hold(rank, all));
    return [...ids, ids[0]];
  }

  /**
   * Matrices over one input, their results one beside the other: one of all rows where the types are alike. `gated`: every
   * thread of several gets the same rows of each.
   */
  async #beside(
    parts: readonly TensorRows[],
    holders: Holders,
    gated: boolean,
  ): Promise<PerThread<MatrixPlan>[]> {
    const inputs = this.#tensor(parts[0]).shape[0],
      together = this.#alike(parts) && !(gated && this.#memory.threads > 1);
    const matrices: PerThread<MatrixPlan>[] = [];
    let column = 0;
    for (const some of together ? [parts] : parts.map((part) => [part])) {
      matrices.push(await this.#matrix(some, inputs, holders, column));
      column += rowsIn(some);
    }
    const [{ tensor, first, rows }] = parts;
    if (parts.length === 1 && first === 0 && rows === this.#tensor(parts[0]).shape[1]) {
      this.#whole.set(tensor, matrices[0]);
    }
    return matrices;
  }

  /** Copies a matrix of these rows; `column`: where its results begin. */
  async #matrix(
    parts: readonly TensorRows[],
    inputs: number,
    holders: Holders,
    column: number,
  ): Promise<PerThread<MatrixPlan>> {
    const all = rowsIn(parts),
      type = heldAs(this.#tensor(parts[0]).type, this.#exact),
      rowBytes = rowBytesOf(type, inputs);
    this.#memory.hasByteInputs ||= this.#memory.kernels.relaxed && BYTE_INPUT_TYPES.includes(type.id);
    const own = this.#ranks().map((rank) => this.#share(all, rank, holders));
    const whole = { from: 0, to: holders === "alone" ? all : own[0].to };
    // What this thread owns are the first of its rows.
    const held = [whole, ...own.slice(1)];
    const ids = held.map(({ from, to }, rank) => this.#memory.store(rank, (to - from) * rowBytes));
    const biases: number[][] = held.map(() => []);
    let above = 0;
    for (const part of parts) {
      const pieces = held.map((rows, rank): Piece => {
        const from = clamp(rows.from - above, part.rows), to = clamp(rows.to - above, part.rows);
        return { rank, id: ids[rank], from, to, at: (above + from - rows.from) * rowBytes };
      });
      await this.#copy(part, type, inputs, pieces);
      const bias = await this.#bias(part);
      if (bias) { for (const { rank, from, to } of pieces) biases[rank].push(...bias.subarray(from, to)); }
      above += part.rows;
    }
    const hasBias = parts.some(({ bias }) => bias);
    const bias: (number | undefined)[] = [];
    for (const [rank, each] of biases.entries()) {
      bias.push(hasBias ? await this.#hold(rank, asBytes(Float32Array.from(each))) : undefined);
    }
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

  async #bias({ tensor, first, rows, bias }: TensorRows): Promise<Float32Array | undefined> {
    if (!bias) return undefined;
    const name = `${tensor}.bias`, { shape } = this.#file.tensors.get(name)!;
    // Those of experts are rows of one tensor.
    if (shape.length === 2) return await this.#file.readFloat32(name, { firstRow: first / rows, rows: 1 });
    return (await this.#file.readFloat32(name)).subarray(first, first + rows);
  }

  #share(outputs: number, rank: number, holders: Holders): Rows {
    if (holders === "here") return { from: 0, to: rank ? 0 : outputs };
    return shareRows(outputs, this.#memory.threads, rank);
  }

  /** Copies rows of a tensor to the threads that own them, a slice of whole rows at a time. */
  async #copy(part: TensorRows, type: TensorType, inputs: number, pieces: readonly Piece[]) {
    const { rows } = part, { shape, name } = this.#tensor(part), there = shape.slice(1).reduce((a, b) => a * b, 1);
    if (shape[0] !== inputs || there < part.first + rows) {
      throw inputError("gguf.shape", `${name}: ${there} rows of ${shape[0]} weights, want ${rows} of ${inputs}`, name);
    }
    const read = this.#reader(part, type), rowBytes = rowBytesOf(type, inputs);
    const step = Math.max(1, Math.floor(SLICE_BYTES / rowBytes));
    for (let first = 0; first < rows; first += step) {
      const count = Math.min(step, rows - first), bytes = await read(part.first + first, count);
      for (const { rank, id, from, to, at } of pieces) {
        const [start, end] = [Math.max(from, first), Math.min(to, first + count)];
        if (start >= end) continue;
        const mine = bytes.subarray((start - first) * rowBytes, (end - first) * rowBytes);
        await this.#memory.write(rank, id, at + (start - from) * rowBytes, mine);
      }
    }
  }

  /** Reads rows as they are to be held. */
  #reader(part: TensorRows, type: TensorType) {
    const { name, type: held, shape } = this.#tensor(part), rowBytes = rowBytesOf(held, shape[0]);
    const raw = (first: number, count: number) => {
      const length = count * rowBytes;
      if (length > this.#slice.length) this.#slice = new Uint8Array(length);
      return this.#file.readRaw(name, { offset: first * rowBytes, length, into: this.#slice });
    };
    if (type === held) return raw;
    const floats = (firstRow: number, rows: number) => this.#file.readFloat32(name, { firstRow, rows });
    if (type.name === "F16") return async (first: number, rows: number) => halvesOf(await floats(first, rows), name);
    return async (first: number, rows: number) => asBytes(await floats(first, rows));
  }

  async #hold(rank: number, bytes: Uint8Array): Promise<number> {
    const id = this.#memory.store(rank, bytes.length);
    await this.#memory.write(rank, id, 0, bytes);
    return id;
  }

  #ranks(): number[] {
    return Array.from({ length: this.#memory.threads }, (_, rank) => rank);
  }

  #alike(parts: readonly TensorRows[]): boolean {
    return new Set(parts.map((part) => this.#tensor(part).type)).size === 1;
  }

  #tensor({ tensor }: TensorRows): GgufTensor {
    return this.#file.tensors.get(`${tensor}.weight`)!;
  }
}

function rowsIn(parts: readonly TensorRows[]): number {
  return parts.reduce((sum, { rows }) => sum + rows, 0);
}

function clamp(row: number, most: number): number {
  return Math.min(most, Math.max(0, row));
}

function asBytes({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
