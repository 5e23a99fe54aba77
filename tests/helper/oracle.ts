/** Plain attention over everything, with entries hidden by a mask: what real removal has to equal. */
import type { DenseEngine } from "../../model/dense/interface.ts";
import { project } from "../../model/attend.ts";
import type { ModelConfig } from "../../model/config.ts";

/** Kept context positions of each layer and KV head; everything after the context is visible. */
export type KeptSets = readonly (readonly ArrayLike<number>[])[];

/**
 * Logits of the last `rows` of `ids`, `[rows, vocabulary]`. Tokens of the context (the first `contextLength`) see every
 * token before them; later tokens see the kept context entries and each other. `kept` absent: nothing is hidden.
 */
export async function oracleLogits(
  dense: DenseEngine,
  ids: readonly number[],
  rows: number,
  contextLength = ids.length,
  kept?: KeptSets,
): Promise<Float32Array> {
  const { config } = dense;
  let hidden = dense.embed(ids);
  for (let layer = 0; layer < config.layers; layer++) {
    const qkv = await dense.qkv(layer, hidden, ids.length);
    const output = attend(config, qkv, ids.length, contextLength, kept?.[layer]);
    hidden = await dense.finish(layer, hidden, output, ids.length);
  }
  return await dense.logits(hidden.slice((ids.length - rows) * config.width), rows);
}

function attend(
  config: ModelConfig,
  qkv: Float32Array,
  length: number,
  contextLength: number,
  kept: readonly ArrayLike<number>[] | undefined,
): Float32Array {
  const { heads, kvHeads, headDim } = config;
  const { queries, keys, values } = project(config, qkv, length, 0);
  const output = new Float32Array(length * heads * headDim);
  for (let h = 0; h < heads; h++) {
    const g = Math.floor(h / (heads / kvHeads));
    const visible = visibility(contextLength, kept?.[g]);
    for (let t = 0; t < length; t++) {
      const q = (t * heads + h) * headDim;
      const seen: number[] = [];
      for (let i = 0; i <= t; i++) if (t < contextLength || i >= contextLength || visible[i]) seen.push(i);
      const logits = seen.map((i) => {
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += queries[q + d] * keys[(i * kvHeads + g) * headDim + d];
        return dot / Math.sqrt(headDim);
      });
      const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
      const weights = logits.map((logit) => Math.exp(logit - top));
      const total = weights.reduce((a, b) => a + b, 0);
      for (let d = 0; d < headDim; d++) {
        let sum = 0;
        for (let j = 0; j < seen.length; j++) sum += weights[j] * values[(seen[j] * kvHeads + g) * headDim + d];
        output[q + d] = sum / total;
      }
    }
  }
  return output;
}

function visibility(length: number, kept: ArrayLike<number> | undefined): Uint8Array {
  const visible = new Uint8Array(length).fill(kept ? 0 : 1);
  for (const position of Array.from(kept ?? [])) visible[position] = 1;
  return visible;
}
