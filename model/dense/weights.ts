/**
 * Reads the tensors of a llama or qwen2 GGUF as the weights of the segments. That all are there with the right shapes
 * was checked when the configuration was made (`configOf`).
 */
import type { ModelConfig } from "../config.ts";
import type { GgufFile } from "../gguf/reader.ts";
import type { BlockWeights } from "./blocks.ts";
import { hasBlocks, toBlocks } from "./gguf_blocks.ts";
import type { FinishWeights, HeadWeights, Linear, QkvWeights } from "./segments.ts";

/** How weights are held: all in float32, or in the file's blocks where they are quantised. */
export type WeightForm = "float32" | "blocks";

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
      qkv: await this.#linear(parts, width, qkvBias),
    };
  }

  /** The rest of a layer. */
  async finish(layer: number): Promise<FinishWeights> {
    const { width, heads, headDim, feedForward } = this.#config;
    const name = (part: string) => `blk.${layer}.${part}`;
    return {
      output: await this.#linear([{ name: name("attn_output"), outputs: width }], heads * headDim),
      norm: await this.#file.readFloat32(name("ffn_norm.weight")),
      gateUp: await this.#linear(
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

  /** Several layers over the same input as one, their outputs side by side. */
  async #linear(
    parts: readonly { readonly name: string; readonly outputs: number }[],
    inputs: number,
    hasBias = false,
  ): Promise<Linear> {
    const outputs = parts.reduce((sum, part) => sum + part.outputs, 0);
    const types = new Set(parts.map((part) => this.#file.tensors.get(`${part.name}.weight`)!.type.name));
    const inBlocks = this.#form === "blocks" && types.size === 1 && hasBlocks([...types][0]);
    const names = parts.map((part) => `${part.name}.weight`);
    const weights = inBlocks
      ? await this.#blocks(names, outputs, inputs, [...types][0])
      : { kind: "float32" as const, values: await this.#floats(names, outputs * inputs) };
    if (!hasBias) return { inputs, outputs, weights };
    const bias = await this.#floats(parts.map((part) => `${part.name}.bias`), outputs);
    return { inputs, outputs, weights, bias };
  }

  /** The tensors one after another, `[length]`. */
  async #floats(names: readonly string[], length: number): Promise<Float32Array> {
    if (names.length === 1) return await this.#file.readFloat32(names[0]);
    const all = new Float32Array(length);
    let at = 0;
    for (const name of names) {
      const values = await this.#file.readFloat32(name);
      all.set(values, at);
      at += values.length;
    }
    return all;
  }

  async #blocks(names: readonly string[], rows: number, columns: number, type: string): Promise<BlockWeights> {
    const parts = [];
    for (const name of names) parts.push(await this.#file.readRaw(name));
    const raw = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      raw.set(part, at);
      at += part.length;
    }
    return toBlocks(type, raw, rows, columns);
  }
}
