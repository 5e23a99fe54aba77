/** Reads a model's tensors into a device's buffers, as they stand in the file. */
import { inputError } from "../../../core/errors.ts";
import type { GpuBuffer } from "../../../gpu/device.ts";
import type { DeviceOperation } from "../../../gpu/dense/lists.ts";
import type { DeviceWeights, Filling, MatrixPart } from "../../../gpu/dense/weights.ts";
import type { DenseOperation, TensorRows } from "../../architecture.ts";
import type { GgufFile, GgufTensor } from "../../file/gguf/reader.ts";
import { rowBytesOf, type TensorType } from "../../file/tensor_types.ts";
import { halvesOf, heldAs } from "../held.ts";

/** Bytes read from the file at a time. */
const SLICE = 1 << 22;
/** Floats of a row are made a multiple of it by zeros. */
const UNIT = 8;

/** Rows of matrices of one type, one below the other, and how they are held. */
interface Run {
  readonly parts: readonly TensorRows[];
  readonly type: TensorType;
  readonly inputs: number;
  readonly padded: number;
  readonly rowBytes: number;
}

export interface LoaderOptions {
  /** Bytes of a buffer at most. */
  readonly largest: number;
  /** No weight may be rounded. */
  readonly exact: boolean;
}

/** Reads operations and their weights. */
export class GpuWeightLoader {
  readonly #weights: DeviceWeights;
  readonly #file: GgufFile;
  readonly #largest: number;
  readonly #exact: boolean;
  /** Matrices that are whole tensors, by name: the embeddings may be the head. */
  readonly #whole = new Map<string, readonly MatrixPart[]>();
  /** Gains of 1, by how many they are. */
  readonly #unit = new Map<number, GpuBuffer>();

  constructor(weights: DeviceWeights, file: GgufFile, { largest, exact }: LoaderOptions) {
    this.#weights = weights;
    this.#file = file;
    this.#largest = largest;
    this.#exact = exact;
  }

  /** A list with its weights on the device. */
  async operations(operations: readonly DenseOperation[]): Promise<DeviceOperation[]> {
    const held: DeviceOperation[] = [];
    for (const operation of operations) held.push(await this.#operation(operation));
    return held;
  }

  /** All rows of a tensor; those of the head, where that is the same. */
  async whole(tensor: string, rows: number): Promise<readonly MatrixPart[]> {
    return this.#whole.get(tensor) ?? await this.#matrix([{ tensor, first: 0, rows, bias: false }]);
  }

  async #operation(operation: DenseOperation): Promise<DeviceOperation> {
    switch (operation.op) {
      case "norm":
      case "headNorm":
        return { ...operation, gains: await this.#floats(operation.gains) };
      case "multiply":
        return { ...operation, weights: await this.#matrix(operation.weights) };
      case "expand":
      case "collect":
        return { ...operation, weights: await this.#experts(operation.weights, operation.rows) };
      case "unitNorm":
        return { ...operation, op: "headNorm", gains: this.#ones(operation.width) };
      default:
        return operation;
    }
  }

  /** Of each matrix of an expert those of all, as they stand in the file. */
  async #experts(experts: readonly (readonly TensorRows[])[], rows: number): Promise<(readonly MatrixPart[])[]> {
    const isStack = experts.every((each, i) => each.every(({ first }) => first === i * rows));
    if (!isStack) throw new RangeError("Experts' rows must lie one expert below the other");
    const made: (readonly MatrixPart[])[] = [];
    for (const { tensor, bias } of experts[0]) {
      made.push(await this.#matrix([{ tensor, first: 0, rows: experts.length * rows, bias }]));
    }
    return made;
  }

  #ones(count: number): GpuBuffer {
    const known = this.#unit.get(count) ?? this.#weights.floats(new Float32Array(count).fill(1));
    this.#unit.set(count, known);
    return known;
  }

  async #floats(name: string): Promise<GpuBuffer> {
    const buffer = this.#weights.floats(await this.#file.readFloat32(name));
    await this.#weights.settle(name);
    return buffer;
  }

  /** Neighbours of one type share buffers; a buffer that would be too large is cut between rows. */
  async #matrix(all: readonly TensorRows[]): Promise<readonly MatrixPart[]> {
    const made: MatrixPart[] = [];
    let column = 0;
    for (const run of this.#runs(all)) {
      for await (const part of this.#parts(run, column)) made.push(part);
      column += rowsIn(run.parts);
    }
    const [{ tensor, first, rows }] = all;
    if (all.length === 1 && first === 0 && rows === this.#tensor(all[0]).shape[1]) this.#whole.set(tensor, made);
    return made;
  }

  #runs(all: readonly TensorRows[]): Run[] {
    const runs: { parts: TensorRows[]; type: TensorType }[] = [];
    for (const part of all) {
      const type = heldAs(this.#tensor(part).type, this.#exact), last = runs[runs.length - 1];
      if (last?.type === type) last.parts.push(part);
      else runs.push({ parts: [part], type });
    }
    return runs.map(({ parts, type }) => {
      const inputs = this.#tensor(parts[0]).shape[0];
      const padded = type.block === 1 ? Math.ceil(inputs / UNIT) * UNIT : inputs;
      return { parts, type, inputs, padded, rowBytes: rowBytesOf(type, padded) };
    });
  }

  async *#parts(run: Run, column: number): AsyncGenerator<MatrixPart> {
    const { parts, type: { id: kind }, inputs, padded, rowBytes } = run, all = rowsIn(parts);
    const most = Math.max(1, Math.floor(this.#largest / rowBytes)), biases = await this.#biases(parts);
    const rows = this.#rows(run), name = `${parts[0].tensor}.weight`;
    let left = new Uint8Array();
    for (let first = 0; first < all; first += most) {
      const outputs = Math.min(most, all - first), filling = this.#weights.fill(outputs * rowBytes);
      left = await fillFrom(filling, left, rows, outputs * rowBytes, () => this.#weights.pace(name));
      const weights = filling.end();
      const bias = biases && this.#weights.floats(biases.slice(first, first + outputs));
      await this.#weights.settle(name);
      yield { kind, inputs, padded, outputs, rowBytes, column: column + first, weights, bias };
    }
  }

  /** The rows of a run as they are to be held, a slice of whole rows at a time. */
  async *#rows({ parts, type, inputs, padded }: Run): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    for (const part of parts) {
      this.#check(part, inputs);
      const read = this.#reader(part, type), step = Math.max(1, Math.floor(SLICE / rowBytesOf(type, padded)));
      for (let first = 0; first < part.rows; first += step) {
        const count = Math.min(step, part.rows - first), bytes = await read(part.first + first, count);
        yield padded === inputs ? bytes : longer(bytes, count, rowBytesOf(type, padded));
      }
    }
  }

  #check(part: TensorRows, inputs: number): void {
    const { shape, name } = this.#tensor(part), rows = shape.slice(1).reduce((a, b) => a * b, 1);
    if (shape[0] === inputs && rows >= part.first + part.rows) return;
    const message = `${name}: ${rows} rows of ${shape[0]} weights, want ${part.rows} of ${inputs}`;
    throw inputError("gguf.shape", message, name);
  }

  /** Reads rows as they are to be held: as `type`. */
  #reader(part: TensorRows, type: TensorType): (first: number, count: number) => Promise<Uint8Array<ArrayBuffer>> {
    const { name, type: held, shape } = this.#tensor(part), rowBytes = rowBytesOf(held, shape[0]);
    if (type === held) {
      return async (first, count) =>
        await this.#file.readRaw(name, { offset: first * rowBytes, length: count * rowBytes }) as Uint8Array<
          ArrayBuffer
        >;
    }
    const floats = (firstRow: number, rows: number) => this.#file.readFloat32(name, { firstRow, rows });
    if (type.name === "F16") return async (first, count) => halvesOf(await floats(first, count), name);
    return async (first, count) => asBytes(await floats(first, count));
  }

  /** Biases of all rows, zeros where a part has none; nothing where no part has. */
  async #biases(parts: readonly TensorRows[]): Promise<Float32Array | undefined> {
    if (!parts.some(({ bias }) => bias)) return undefined;
    const all = new Float32Array(rowsIn(parts));
    let at = 0;
    for (const { tensor, first, rows, bias } of parts) {
      if (bias) all.set((await this.#file.readFloat32(`${tensor}.bias`)).subarray(first, first + rows), at);
      at += rows;
    }
    return all;
  }

  #tensor({ tensor }: TensorRows): GgufTensor {
    return this.#file.tensors.get(`${tensor}.weight`)!;
  }
}

/** Takes `bytes` from what is `left` and from `rows`, waiting for `pace` in between; returns what is left then. */
async function fillFrom(
  filling: Filling,
  left: Uint8Array<ArrayBuffer>,
  rows: AsyncGenerator<Uint8Array<ArrayBuffer>>,
  bytes: number,
  pace: () => Promise<void>,
): Promise<Uint8Array<ArrayBuffer>> {
  for (let wanted = bytes; wanted > 0;) {
    if (left.length === 0) {
      const { value, done } = await rows.next();
      if (done) throw new RangeError(`${wanted} bytes of weights are missing`);
      left = value;
    }
    const some = left.subarray(0, wanted);
    filling.add(some);
    left = left.subarray(some.length);
    wanted -= some.length;
    await pace();
  }
  return left;
}

/** The same rows, each made `rowBytes` long by zeros. */
function longer(bytes: Uint8Array, rows: number, rowBytes: number): Uint8Array<ArrayBuffer> {
  const own = bytes.length / rows, all = new Uint8Array(rows * rowBytes);
  for (let row = 0; row < rows; row++) all.set(bytes.subarray(row * own, (row + 1) * own), row * rowBytes);
  return all;
}

function rowsIn(parts: readonly TensorRows[]): number {
  return parts.reduce((sum, { rows }) => sum + rows, 0);
}

function asBytes({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
}
