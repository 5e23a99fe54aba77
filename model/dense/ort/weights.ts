/**
 * Reads the tensors of a llama or qwen2 GGUF as the weights of the segments. That all are there with the right shapes
 * was checked when the configuration was made (`configOf`).
 */
import type { ModelConfig } from "../../config.ts";
import type { GgufFile } from "../../file/gguf/reader.ts";
import { type TensorType, toBlocks } from "../../file/tensor_types.ts";
import type { FinishWeights, HeadWeights, Linear, QkvWeights } from "./segments.ts";

/** How weights are held: all in float32, or in the file's blocks where they are quantised. */
export type WeightForm = "float32" | "blocks";

/** How a file's weights are held in a form, for people: `float32 weights` or `quantised weights`. */
export function describeWeights(file: GgufFile, form: WeightForm): string {
  const quantised = form === "blocks" && [...file.tensors.values()].some(({ type }) => type.blocks);
  return quantised ? "quantised weights" : "float32 weights";
}

/** Some rows of a layer: the tensor's name without its `.weight`, and its rows. */
interface Part {
  readonly name: string;
  readonly outputs: number;
}

/** Weights of a model, read from the file when asked for and not kept here. */
export class WeightReader {
  readonly #file: GgufFile;
  readonly #config: ModelConfig;
  readonly #form: WeightForm;

  constructor(file: GgufFile, config: ModelConfig, form: WeightForm) {
    this.#file = file;
    this.#config = config;
    this.#form = form;
  }

  /** Norm and the three projections of a layer. */
  async qkv(layer: number): Promise<QkvWeights> {
    const { width, heads, kvHeads, headDim, qkvBias } = this.#config;
    const parts = (["q", "k", "v"] as const).map((part) => ({
      name: `blk.${layer}.attn_${part}`,
      outputs: (part === "q" ? heads : kvHeads) * headDim,
    }));
    return {
      norm: await this.#file.readFloat32(`blk.${layer}.attn_norm.weight`),
      qkv: await this.#linears(parts, width, qkvBias),
    };
  }

  /** The rest of a layer. */
  async finish(layer: number): Promise<FinishWeights> {
    const { width, heads, headDim, feedForward } = this.#config;
    const name = (part: string) => `blk.${layer}.${part}`;
    return {
      output: await this.#linear([{ name: name("attn_output"), outputs: width }], heads * headDim),
      norm: await this.#file.readFloat32(name("ffn_norm.weight")),
      gateUp: await this.#linears(
        [{ name: name("ffn_gate"), outputs: feedForward }, { name: name("ffn_up"), outputs: feedForward }],
        width,
      ),
      down: await this.#linear([{ name: name("ffn_down"), outputs: width }], feedForward),
    };
  }

  /** Final norm and head. */
  async head(): Promise<HeadWeights> {
    const { width, vocabulary, tiedHead } = this.#config;
    const name = tiedHead ? "token_embd" : "output";
    return {
      norm: await this.#file.readFloat32("output_norm.weight"),
      head: await this.#linear([{ name, outputs: vocabulary }], width),
    };
  }

  /**
   * Layers over the same input whose outputs lie side by side: one layer of all rows where they can be held alike,
   * else one each.
   */
  async #linears(parts: readonly Part[], inputs: number, hasBias = false): Promise<Linear[]> {
    const types = new Set(parts.map((part) => this.#typeOf(part)));
    if (this.#form === "float32" || types.size === 1) return [await this.#linear(parts, inputs, hasBias)];
    const linears = [];
    for (const part of parts) linears.push(await this.#linear([part], inputs, hasBias));
    return linears;
  }

  /** One layer of the rows of all `parts`, which have one type where weights are held as blocks. */
  async #linear(parts: readonly Part[], inputs: number, hasBias = false): Promise<Linear> {
    const outputs = parts.reduce((sum, part) => sum + part.outputs, 0);
    const names = parts.map((part) => `${part.name}.weight`);
    const type = this.#typeOf(parts[0]);
    const weights = this.#form === "blocks" && type.blocks
      ? toBlocks(type, joined(await this.#read(names, (name) => this.#file.readRaw(name)), Uint8Array))
      : { kind: "float32" as const, values: await this.#floats(names) };
    if (!hasBias) return { inputs, outputs, weights };
    return { inputs, outputs, weights, bias: await this.#floats(parts.map((part) => `${part.name}.bias`)) };
  }

  /** The tensors one after another. */
  async #floats(names: readonly string[]): Promise<Float32Array> {
    return joined(await this.#read(names, (name) => this.#file.readFloat32(name)), Float32Array);
  }

  async #read<T>(names: readonly string[], read: (name: string) => Promise<T>): Promise<T[]> {
    const all = [];
    for (const name of names) all.push(await read(name));
    return all;
  }

  #typeOf(part: Part): TensorType {
    return this.#file.tensors.get(`${part.name}.weight`)!.type;
  }
}

/** The arrays one after another; a single one as it is. */
function joined<T extends Uint8Array | Float32Array>(parts: readonly T[], make: new (length: number) => T): T {
  if (parts.length === 1) return parts[0];
  const all = new make(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
