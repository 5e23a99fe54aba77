/**
 * What a layer's keys say of their entries' importance beside the hidden states that they are made of. A regression on
 * hidden states is linear in a key; how large a key is, and how unlike the others, is not:
 *
 *     energy of chunk c: |k_c|² / mean over the text of |k_c|²     likeness: k/|k| · mean over the text of k/|k|
 *
 * c: the frequency chunks that RoPE turns (`chunkChannels`), whose energies no position changes; likeness is, but for a
 * factor of the text's, the cosine that KeyDiff (arXiv 2504.15364) evicts by. With them a gate's predictions correlate
 * with KVzip's importance by 0.80 instead of 0.72 (bench/results/gates.md). They want the whole text: what evicts while
 * it reads goes by hidden states alone.
 */
import type { LayerRows } from "../../core/backend/interface.ts";
import { chunkChannels } from "../../core/measure/chunk_agreement.ts";
import type { ModelConfig } from "../config.ts";

/** Terms of one head's keys. */
export function termsOfHead(headDim: number): number {
  return Math.ceil(headDim / 2) + 1;
}

/** Terms of a token: those of all KV heads, one head after another. */
export function termsOf({ kvHeads, headDim }: Pick<ModelConfig, "kvHeads" | "headDim">): number {
  return kvHeads * termsOfHead(headDim);
}

/** The root of the mean square of the hidden state's columns behind a norm of these `gains`: what terms are set beside. */
export function termScale(gains: Float32Array): number {
  return Math.sqrt(gains.reduce((sum, gain) => sum + gain * gain, 0) / gains.length);
}

/** A layer's rows and how they are turned. */
export interface LayerKeys {
  readonly rows: Pick<LayerRows, "shape" | "copyRows">;
  readonly rope: ModelConfig["ropes"][number];
}

/** The terms of all tokens of a layer that is whole, `[terms, tokens]`; one head's rows are copied at a time. */
export async function keyTerms({ rows, rope }: LayerKeys, tokens: number): Promise<Float32Array> {
  const { kvHeads, headDim } = rows.shape, each = termsOfHead(headDim);
  const terms = new Float32Array(kvHeads * each * tokens), chunks = chunkChannels(headDim, rope);
  for (let head = 0; head < kvHeads; head++) {
    const { keys } = await rows.copyRows(head);
    if (keys.length !== tokens * headDim) throw new RangeError(`${keys.length / headDim} keys of ${tokens} tokens`);
    headTerms(keys, chunks, terms.subarray(head * each * tokens, (head + 1) * each * tokens));
  }
  return terms;
}

/** One head's, from `keys`, `[tokens, headDim]`, into `terms`, `[chunks + 1, tokens]`. */
export function headTerms(keys: Float32Array, chunks: readonly (readonly number[])[], terms: Float32Array): void {
  const tokens = terms.length / (chunks.length + 1), headDim = keys.length / tokens;
  const mean = new Float64Array(headDim), sizes = new Float64Array(tokens);
  for (let t = 0, at = 0; t < tokens; t++, at += headDim) {
    let squares = 0;
    for (let j = 0; j < headDim; j++) squares += keys[at + j] * keys[at + j];
    const size = sizes[t] = Math.sqrt(squares) || 1;
    for (let j = 0; j < headDim; j++) mean[j] += keys[at + j] / size / tokens;
  }
  chunks.forEach((channels, c) => {
    const energies = terms.subarray(c * tokens, (c + 1) * tokens);
    let sum = 0;
    for (let t = 0; t < tokens; t++) {
      let energy = 0;
      for (let i = 0; i < channels.length; i++) {
        const key = keys[t * headDim + channels[i]];
        energy += key * key;
      }
      sum += energies[t] = energy;
    }
    const scale = sum > 0 ? tokens / sum : 0;
    for (let t = 0; t < tokens; t++) energies[t] *= scale;
  });
  const likeness = terms.subarray(chunks.length * tokens);
  for (let t = 0, at = 0; t < tokens; t++, at += headDim) {
    let dot = 0;
    for (let j = 0; j < headDim; j++) dot += keys[at + j] * mean[j];
    likeness[t] = dot / sizes[t];
  }
}

/**
 * Terms as a regression on one text sees them: over the text with mean 0 and the deviation `scale`. Few rows hold few
 * terms, so they must not weigh more than they say.
 */
export class ScaledTerms {
  readonly #means: Float64Array;
  /** 0 for a term that is the same everywhere. */
  readonly #factors: Float64Array;

  /** `terms`, `[count, tokens]`. */
  constructor(terms: Float32Array, tokens: number, scale: number) {
    const count = terms.length / tokens;
    this.#means = new Float64Array(count);
    this.#factors = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const term = terms.subarray(i * tokens, (i + 1) * tokens), mean = term.reduce((sum, x) => sum + x, 0) / tokens;
      const square = term.reduce((sum, x) => sum + (x - mean) ** 2, 0) / tokens;
      this.#means[i] = mean;
      this.#factors[i] = square > 0 ? scale / Math.sqrt(square) : 0;
    }
  }

  readonly of = (term: number, index: number): number => (term - this.#means[index]) * this.#factors[index];

  /** Weights of terms and a constant for what is scaled, of those for the terms themselves. */
  enter(weights: ArrayLike<number>, constant: number): { readonly weights: Float64Array; readonly constant: number } {
    const scaled = this.#factors.map((factor, i) => factor > 0 ? weights[i] / factor : 0);
    return { weights: scaled, constant: constant + this.#means.reduce((sum, mean, i) => sum + weights[i] * mean, 0) };
  }

  /** The other way round. */
  leave(weights: ArrayLike<number>, constant: number): { readonly weights: Float64Array; readonly constant: number } {
    const plain = this.#factors.map((factor, i) => weights[i] * factor);
    return { weights: plain, constant: constant - this.#means.reduce((sum, mean, i) => sum + plain[i] * mean, 0) };
  }
}

/** Adds to `scores`, `[kvHeads, tokens]`, what `weights`, `[kvHeads, terms]`, make of `terms`, `[terms, tokens]`. */
export function addTerms(scores: Float32Array, weights: Float32Array, terms: Float32Array, tokens: number): void {
  const count = terms.length / tokens, sums = new Float64Array(tokens);
  for (let from = 0, w = 0; from < scores.length; from += tokens, w += count) {
    sums.fill(0);
    for (let i = 0; i < count; i++) {
      const weight = weights[w + i], term = terms.subarray(i * tokens, (i + 1) * tokens);
      if (weight !== 0) { for (let t = 0; t < tokens; t++) sums[t] += weight * term[t]; }
    }
    for (let t = 0; t < tokens; t++) scores[from + t] += sums[t];
  }
}
