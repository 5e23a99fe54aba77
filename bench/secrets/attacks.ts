/**
 * The three attacks of "Shadow in the Cache" (arXiv 2508.09442, NDSS 2026; code SiO-2/kvcloak, attack/), against keys
 * and values as somebody has them who knows the model and not the secret.
 *
 * - Inversion solves Wk·x = k and Wv·x = v in the first layer, averages, divides by the norm's weight, and takes the
 *   nearest embedding. Keys and values narrower than the hidden state leave the solution open: then the shortest is taken.
 * - Collision goes token by token through the vocabulary, what the model finds likeliest first, computes what the first
 *   layer would hold, and takes the first that lies closer than three deviations below the mean; else the nearest.
 *   Collision+ knows from chosen texts how close a right one lies. Ours takes the nearest of all, which no such
 *   knowledge can better.
 * - Injection puts the rows into the model and asks it to repeat what it was told.
 */
import { RaggedCache } from "../../core/cache/ragged.ts";
import { rotateRows } from "../../core/measure/rotation.ts";
import { extend } from "../../model/decode/extend.ts";
import { createSampler } from "../../model/decode/sampler.ts";
import type { Model } from "../../model/model.ts";
import { questionIds } from "../../model/text/prompt.ts";
import type { Stolen, StolenHead } from "./stolen.ts";

/** What the attacker computes once for a model: all that the first layer does to a token. */
export interface FirstLayer {
  readonly width: number;
  readonly vocabulary: number;
  /** Embeddings `[vocabulary, width]`, and their lengths. */
  readonly embeddings: Float32Array;
  readonly lengths: Float32Array;
  readonly norm: Float32Array;
  /** `[kvHeads · headDim, width]` each. */
  readonly wk: Float32Array;
  readonly wv: Float32Array;
  /** Keys before rotation, and values, of every token: `[vocabulary, kvHeads · headDim]` each. */
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

export async function firstLayerOf({ file, config }: Model): Promise<FirstLayer> {
  const read = (name: string) => file.readFloat32(name), { width, vocabulary, kvHeads, headDim } = config;
  const embeddings = await read("token_embd.weight"), norm = await read("blk.0.attn_norm.weight");
  const [wk, wv] = [await read("blk.0.attn_k.weight"), await read("blk.0.attn_v.weight")], wide = kvHeads * headDim;
  const lengths = new Float32Array(vocabulary), normed = new Float32Array(width);
  const keys = new Float32Array(vocabulary * wide), values = new Float32Array(keys.length);
  for (let token = 0; token < vocabulary; token++) {
    const from = token * width, square = dotAt(embeddings, from, embeddings, from, width);
    lengths[token] = Math.sqrt(square);
    const scale = 1 / Math.sqrt(square / width + config.normEpsilon);
    for (let i = 0; i < width; i++) normed[i] = embeddings[from + i] * scale * norm[i];
    for (let row = 0; row < wide; row++) {
      keys[token * wide + row] = dotAt(wk, row * width, normed, 0, width);
      values[token * wide + row] = dotAt(wv, row * width, normed, 0, width);
    }
  }
  return { width, vocabulary, embeddings, lengths, norm, wk, wv, keys, values };
}

function dotAt(a: Float32Array, from: number, b: Float32Array, at: number, length: number): number {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += a[from + i] * b[at + i];
  return sum;
}

/** A row of the first layer at one position, unrotated, with where it lies in the layer's output. */
interface Seen {
  readonly first: number;
  readonly key: Float32Array;
  readonly value: Float32Array;
}

/** By position, what the heads of the first layer hold of it. */
function seenAt(heads: readonly StolenHead[], { config: { headDim, ropes } }: Model): Map<number, Seen[]> {
  const seen = new Map<number, Seen[]>();
  heads.forEach(({ positions, keys, values }, head) => {
    const unrotated = keys.slice();
    rotateRows(unrotated, headDim, positions.map((position) => -position), ropes[0]);
    positions.forEach((position, row) => {
      const part = (all: Float32Array) => all.subarray(row * headDim, (row + 1) * headDim);
      const one = { first: head * headDim, key: part(unrotated), value: part(values) };
      seen.set(position, [...seen.get(position) ?? [], one]);
    });
  });
  return seen;
}

/** Inversion: the token at each position that rows are there for. */
export function invert(model: Model, layer: FirstLayer, stolen: Stolen): Map<number, number> {
  const solvers = new Map<string, Solver>(), found = new Map<number, number>();
  for (const [position, seen] of seenAt(stolen[0], model)) {
    const kept = seen.map(({ first }) => first), name = kept.join();
    const solver = solvers.get(name) ?? new Solver(layer, kept, model.config.headDim);
    solvers.set(name, solver);
    found.set(position, nearestEmbedding(layer, solver.solve(seen)));
  }
  return found;
}

/** Shortest solutions for the rows of W that some heads have: x = Wᵀ·(W·Wᵀ)⁻¹·y. */
class Solver {
  readonly #layer: FirstLayer;
  readonly #rows: readonly number[];
  readonly #inverses: readonly [keys: Float64Array, values: Float64Array];

  constructor(layer: FirstLayer, firsts: readonly number[], headDim: number) {
    this.#layer = layer;
    this.#rows = firsts.flatMap((first) => Array.from({ length: headDim }, (_, i) => first + i));
    this.#inverses = [this.#inverse(layer.wk), this.#inverse(layer.wv)];
  }

  /** The mean of both solutions, before the norm's weight. */
  solve(seen: readonly Seen[]): Float32Array {
    const { width, norm, wk, wv } = this.#layer, mean = new Float64Array(width);
    for (const [w, inverse, side] of [[wk, this.#inverses[0], "key"], [wv, this.#inverses[1], "value"]] as const) {
      const y = seen.flatMap((one) => [...one[side]]), n = y.length;
      for (let i = 0; i < n; i++) {
        let factor = 0;
        for (let j = 0; j < n; j++) factor += inverse[i * n + j] * y[j];
        const from = this.#rows[i] * width;
        for (let k = 0; k < width; k++) mean[k] += factor * w[from + k] / 2;
      }
    }
    return Float32Array.from(mean, (x, i) => norm[i] === 0 ? 0 : x / norm[i]);
  }

  #inverse(w: Float32Array): Float64Array {
    const n = this.#rows.length, { width } = this.#layer, gram = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j <= i; j++) {
        gram[i * n + j] = gram[j * n + i] = dotAt(w, this.#rows[i] * width, w, this.#rows[j] * width, width);
      }
      // A little of a ridge: quantised weights may repeat themselves.
      gram[i * n + i] *= 1 + 1e-6;
    }
    return inverted(gram, n);
  }
}

/** Gauss and Jordan, with the largest pivot of each column. */
export function inverted(matrix: Float64Array, n: number): Float64Array {
  const a = matrix.slice(), inverse = new Float64Array(n * n);
  for (let i = 0; i < n; i++) inverse[i * n + i] = 1;
  for (let column = 0; column < n; column++) {
    let best = column;
    for (let row = column + 1; row < n; row++) {
      if (Math.abs(a[row * n + column]) > Math.abs(a[best * n + column])) best = row;
    }
    for (const m of [a, inverse]) swapRows(m, n, best, column);
    const pivot = a[column * n + column] || 1e-12;
    for (const m of [a, inverse]) for (let k = 0; k < n; k++) m[column * n + k] /= pivot;
    for (let row = 0; row < n; row++) {
      const factor = a[row * n + column];
      if (row === column || factor === 0) continue;
      for (const m of [a, inverse]) for (let k = 0; k < n; k++) m[row * n + k] -= factor * m[column * n + k];
    }
  }
  return inverse;
}

function swapRows(m: Float64Array, n: number, i: number, j: number): void {
  if (i === j) return;
  const row = m.slice(i * n, (i + 1) * n);
  m.copyWithin(i * n, j * n, (j + 1) * n);
  m.set(row, j * n);
}

function nearestEmbedding({ embeddings, lengths, width, vocabulary }: FirstLayer, x: Float32Array): number {
  let best = 0, highest = -Infinity;
  for (let token = 0; token < vocabulary; token++) {
    const cosine = dotAt(embeddings, token * width, x, 0, width) / (lengths[token] || 1);
    if (cosine > highest) [best, highest] = [token, cosine];
  }
  return best;
}

/** Collision: the same. `tokens`: how many there are. */
export async function collide(model: Model, layer: FirstLayer, stolen: Stolen, tokens: number) {
  const seen = seenAt(stolen[0], model), found = new Map<number, number>();
  using cache = new RaggedCache(model.backend, model.config);
  let likelihood: Float32Array | undefined;
  for (let position = 0; position < tokens; position++) {
    const here = seen.get(position);
    const token = here ? collision(layer, here, likelihood) : mostLikely(likelihood);
    if (here) found.set(position, token);
    likelihood = await extend(model.dense, cache, [token]);
  }
  return found;
}

/** Collision+: the same. */
export function collideNearest(model: Model, layer: FirstLayer, stolen: Stolen): Map<number, number> {
  return new Map(
    [...seenAt(stolen[0], model)].map(([position, seen]) => [position, nearest(distancesTo(layer, seen))]),
  );
}

function nearest(distances: Float64Array): number {
  return distances.reduce((best, x, token) => x < distances[best] ? token : best, 0);
}

function mostLikely(likelihood: Float32Array | undefined): number {
  return likelihood ? likelihood.reduce((best, x, i) => x > likelihood[best] ? i : best, 0) : 0;
}

/** The first token by likelihood that lies so near that chance can't be why; the nearest where none does. */
function collision(layer: FirstLayer, seen: readonly Seen[], likelihood: Float32Array | undefined): number {
  const distances = distancesTo(layer, seen), count = distances.length;
  const mean = distances.reduce((sum, x) => sum + x, 0) / count;
  const deviation = Math.sqrt(distances.reduce((sum, x) => sum + (x - mean) ** 2, 0) / count);
  const near = [...distances.keys()].filter((token) => distances[token] < mean - 3 * deviation);
  if (near.length > 0 && likelihood) {
    return near.reduce((best, token) => likelihood[token] > likelihood[best] ? token : best);
  }
  return nearest(distances);
}

/** ‖K − K*‖ + ‖V − V*‖ of every token. */
function distancesTo({ keys, values, vocabulary }: FirstLayer, seen: readonly Seen[]): Float64Array {
  const wide = keys.length / vocabulary, distances = new Float64Array(vocabulary);
  for (let token = 0; token < vocabulary; token++) {
    let [k, v] = [0, 0];
    for (const { first, key, value } of seen) {
      const from = token * wide + first;
      for (let i = 0; i < key.length; i++) {
        k += (keys[from + i] - key[i]) ** 2;
        v += (values[from + i] - value[i]) ** 2;
      }
    }
    distances[token] = Math.sqrt(k) + Math.sqrt(v);
  }
  return distances;
}

/** Injection: what the model says when it is asked to repeat, over the rows as they are. */
export async function inject(model: Model, stolen: Stolen, tokens: number, most: number): Promise<number[]> {
  using cache = new RaggedCache(model.backend, model.config);
  stolen.forEach((heads, layer) => cache.fill(layer, heads));
  cache.advance(tokens);
  const sampler = createSampler({ temperature: 0 }), said: number[] = [];
  const asked = questionIds(model.frame, model.tokenizer, "Repeat the previous content.", "");
  for (let next: ArrayLike<number> = asked; said.length < most;) {
    const id = sampler.next(await extend(model.dense, cache, next));
    if (model.tokenizer.endIds.has(id)) break;
    said.push(id);
    next = [id];
  }
  return said;
}

/** Share of the tokens from `first` on that were found where they are. */
export function shareFound(ids: readonly number[], found: ReadonlyMap<number, number>, first: number): number {
  return ids.reduce((sum, id, at) => sum + Number(at >= first && found.get(at) === id), 0) / (ids.length - first);
}

/** Recall of ROUGE-L: the longest common subsequence, as a share of the text. */
export function rougeRecall(text: readonly number[], said: readonly number[]): number {
  let row = new Uint32Array(said.length + 1);
  for (const id of text) {
    const next = new Uint32Array(said.length + 1);
    for (let j = 0; j < said.length; j++) next[j + 1] = id === said[j] ? row[j] + 1 : Math.max(row[j + 1], next[j]);
    row = next;
  }
  return row[said.length] / text.length;
}
