/**
 * Reads the tensors of a GGUF as the weights of the segments. That all are there with the right shapes was checked when
 * the configuration was made (`configOf`).
 */
import { concatenate } from "../../../core/concatenate.ts";
import type { DenseOperation, TensorRows } from "../../architecture.ts";
import type { GgufFile, GgufTensor } from "../../file/gguf/reader.ts";
import { rowBytesOf, type TensorType, toBlocks } from "../../file/tensor_types.ts";
import { ordinary } from "../own_kernels.ts";
import type { Linear, SegmentOperation } from "./segments.ts";

/** How weights are held: all in float32, or in the file's blocks where they are quantised. */
export type WeightForm = "float32" | "blocks";

/** How a file's weights are held in a form, for people: `float32 weights` or `quantised weights`. */
export function describeWeights(file: GgufFile, form: WeightForm): string {
  const quantised = form === "blocks" && [...file.tensors.values()].some(({ type }) => type.blocks);
  return quantised ? "quantised weights" : "float32 weights";
}

/** Weights of a model, read from the file when asked for and not kept here. */
export class WeightReader {
  readonly #file: GgufFile;
  readonly #form: WeightForm;

  constructor(file: GgufFile, form: WeightForm) {
    this.#file = file;
    this.#form = form;
  }

  /** The same operations with what they need of the file. */
  async operations(operations: readonly DenseOperation[]): Promise<SegmentOperation[]> {
    const read: SegmentOperation[] = [];
    for (const operation of operations) read.push(await this.#operation(operation));
    return read;
  }

  async #operation(operation: DenseOperation): Promise<SegmentOperation> {
    switch (operation.op) {
      case "norm":
      case "headNorm":
        return { ...operation, gains: await this.#file.readFloat32(operation.gains) };
      case "multiply":
        return { ...operation, weights: await this.#linears(operation.weights) };
      default:
        return ordinary(operation, "onnxruntime");
    }
  }

  /**
   * Layers over the same input whose outputs lie side by side: one layer of all rows where they can be held alike,
   * else one each.
   */
  async #linears(parts: readonly TensorRows[]): Promise<Linear[]> {
    const types = new Set(parts.map((part) => this.#typeOf(part)));
    if (this.#form === "float32" || types.size === 1) return [await this.#linear(parts)];
    const linears = [];
    for (const part of parts) linears.push(await this.#linear([part]));
    return linears;
  }

  /** One layer of the rows of all `parts`, which have one type where weights are held as blocks. */
  async #linear(parts: readonly TensorRows[]): Promise<Linear> {
    const outputs = parts.reduce((sum, part) => sum + part.rows, 0);
    const inputs = this.#tensor(parts[0]).shape[0], type = this.#typeOf(parts[0]);
    const weights = this.#form === "blocks" && type.blocks
      ? toBlocks(type, joined(await this.#each(parts, (part) => this.#raw(part)), Uint8Array))
      : {
        kind: "float32" as const,
        values: joined(await this.#each(parts, (part) => this.#floats(part)), Float32Array),
      };
    if (!parts.some(({ bias }) => bias)) return { inputs, outputs, weights };
    return {
      inputs,
      outputs,
      weights,
      bias: joined(await this.#each(parts, (part) => this.#bias(part)), Float32Array),
    };
  }

  #raw(part: TensorRows): Promise<Uint8Array> {
    const { type, shape } = this.#tensor(part), rowBytes = rowBytesOf(type, shape[0]);
    return this.#file.readRaw(`${part.tensor}.weight`, {
      offset: part.first * rowBytes,
      length: part.rows * rowBytes,
    });
  }

  #floats({ tensor, first, rows }: TensorRows): Promise<Float32Array> {
    return this.#file.readFloat32(`${tensor}.weight`, { firstRow: first, rows });
  }

  /** `[rows]`, 0 where there is none. */
  async #bias({ tensor, first, rows, bias }: TensorRows): Promise<Float32Array> {
    if (!bias) return new Float32Array(rows);
    return (await this.#file.readFloat32(`${tensor}.bias`)).subarray(first, first + rows);
  }

  async #each<T>(parts: readonly TensorRows[], read: (part: TensorRows) => Promise<T>): Promise<T[]> {
    const all = [];
    for (const part of parts) all.push(await read(part));
    return all;
  }

  #tensor({ tensor }: TensorRows): GgufTensor {
    return this.#file.tensors.get(`${tensor}.weight`)!;
  }

  #typeOf(part: TensorRows): TensorType {
    return this.#tensor(part).type;
  }
}

/** The arrays one after another; a single one as it is. */
function joined<T extends Uint8Array | Float32Array>(parts: readonly T[], make: new (length: number) => T): T {
  return parts.length === 1 ? parts[0] : concatenate(parts, make);
}
