/** Plain attention over everything, with entries hidden by a mask: what real removal has to equal. */
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { layerShape, sourceOf } from "../../core/shape.ts";
import type { Dense } from "../../model/dense/dense.ts";
import type { DenseEngine } from "../../model/dense/interface.ts";
import { project } from "../../model/dense/project.ts";
import type { ModelConfig } from "../../model/config.ts";
import type { Model } from "../../model/model.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { engineOf } from "./host.ts";

/** Kept context positions of each layer and KV head; everything after the context is visible. */
export type KeptSets = readonly (readonly ArrayLike<number>[])[];

/**
 * Logits of the last `rows` of `ids`, `[rows, vocabulary]`. Tokens of the context (the first `contextLength`) see every
 * token before them; later tokens see the kept context entries and each other. `kept` absent: nothing is hidden.
 * `next`: for later tokens each head's kept entries stand at positions that end at `next` − 1, without gaps, and they
 * themselves at `next`, `next` + 1, …; absent: everything stands where it was.
 */
export async function oracleLogits(
  of: Dense | DenseEngine,
  ids: readonly number[],
  rows: number,
  contextLength = ids.length,
  kept?: KeptSets,
  next?: number,
): Promise<Float32Array> {
  const dense = engineOf(of), { config } = of;
  let hidden = dense.embed(ids);
  const made: Float32Array[] = [];
  for (let layer = 0; layer < config.layers; layer++) {
    const qkv = await dense.qkv(layer, hidden, ids.length);
    const taps = config.convolutions?.[layer], source = sourceOf(config, layer);
    made.push(qkv);
    const output = taps
      ? convolve(qkv, taps, config, ids.length)
      : attend(config, layer, [qkv, made[source]], ids.length, { contextLength, kept: kept?.[source], next });
    hidden = await dense.finish(layer, hidden, output, ids.length, ids);
  }
  return await dense.logits(hidden.slice((ids.length - rows) * config.width), rows);
}

/**
 * Logits of the last of `asked` behind `text`, as masking gives them: the layers `globals` see what `cache` kept, the
 * others all that is within their reach.
 */
export async function maskedLogits(
  { dense, frame, tokenizer }: Pick<Model, "dense" | "frame" | "tokenizer">,
  cache: RaggedCache,
  text: string,
  asked: readonly number[],
  globals: readonly number[],
): Promise<Float32Array> {
  const read = contextIds(frame, tokenizer, text), { layers } = cache.shape;
  const kept = Array.from({ length: layers }, (_, layer) => {
    const isGlobal = globals.includes(layer), { kvHeads } = layerShape(cache.shape, layer);
    return Array.from({ length: kvHeads }, (_, head) => isGlobal ? cache.positions(layer, head) : [...read.keys()]);
  });
  return await oracleLogits(dense, [...read, ...asked], 1, read.length, kept);
}

/**
 * Each channel's last inputs weighed by its taps, times what lets them through: `qkv` holds those first, then the inputs
 * of even and of odd blocks.
 */
function convolve(
  qkv: Float32Array,
  taps: Float32Array,
  { width, kvHeads }: ModelConfig,
  length: number,
): Float32Array {
  const output = new Float32Array(length * width), count = taps.length / width, block = width / 2 / kvHeads;
  for (let t = 0; t < length; t++) {
    for (let c = 0; c < width; c++) {
      const head = Math.floor(c / block), half = head % 2 * width / 2, place = (head >> 1) * block + c % block;
      let sum = 0;
      for (let j = 0; j < count; j++) {
        const from = t - count + 1 + j;
        if (from >= 0) sum += taps[c * count + j] * qkv[from * 2 * width + width + half + place];
      }
      output[t * width + c] = sum * qkv[t * 2 * width + c];
    }
  }
  return output;
}

function attend(
  config: ModelConfig,
  layer: number,
  [qkv, sourceQkv]: readonly [own: Float32Array, source: Float32Array],
  length: number,
  { contextLength, kept, next }: { contextLength: number; kept?: readonly ArrayLike<number>[]; next?: number },
): Float32Array {
  const { heads, kvHeads, headDim } = layerShape(config, layer), source = sourceOf(config, layer);
  const { queries } = project(config, layer, qkv, length, 0);
  const { keys, values } = project(config, source, sourceQkv, length, 0);
  const moved = (t: number, position: number) => {
    const of = (layer: number, all: Float32Array) => {
      const row = all.length / length;
      return project(config, layer, all.subarray(t * row, (t + 1) * row), 1, position);
    };
    return { queries: of(layer, qkv).queries, keys: of(source, sourceQkv).keys };
  };
  const output = new Float32Array(length * heads * headDim);
  for (let h = 0; h < heads; h++) {
    const g = Math.floor(h / (heads / kvHeads));
    const visible = visibility(contextLength, kept?.[g]);
    const places = next === undefined ? undefined : placesOf(contextLength, length, kept?.[g], next);
    for (let t = 0; t < length; t++) {
      const q = (t * heads + h) * headDim;
      const later = places !== undefined && t >= contextLength;
      const query = later ? moved(t, places[t]).queries.subarray(h * headDim) : queries.subarray(q, q + headDim);
      const seen: number[] = [];
      const oldest = config.windows[layer] > 0 ? t - config.windows[layer] : -1;
      for (let i = oldest + 1; i <= t; i++) {
        if (i >= 0 && (t < contextLength || i >= contextLength || visible[i])) seen.push(i);
      }
      const logits = seen.map((i) => {
        const key = later ? moved(i, places[i]).keys.subarray(g * headDim) : keys.subarray((i * kvHeads + g) * headDim);
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += query[d] * key[d];
        return dot / Math.sqrt(headDim);
      });
      const nothing = config.nulls?.[layer][h] ?? -Infinity;
      const top = logits.reduce((a, b) => Math.max(a, b), nothing);
      const weights = logits.map((logit) => Math.exp(logit - top));
      const total = weights.reduce((a, b) => a + b, Math.exp(nothing - top));
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

/** Position of each token as later ones see it: kept ones end at `next` − 1, the rest of the context is nowhere. */
function placesOf(
  contextLength: number,
  length: number,
  kept: ArrayLike<number> | undefined,
  next: number,
): Int32Array {
  const list = kept ? Array.from(kept) : Array.from({ length: contextLength }, (_, i) => i);
  const places = Int32Array.from({ length }, (_, t) => t < contextLength ? -1 : next + t - contextLength);
  list.forEach((token, i) => places[token] = next - list.length + i);
  return places;
}
