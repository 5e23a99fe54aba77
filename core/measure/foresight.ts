/**
 * Which rows a query needs, foreseen from a few channels of query and key (FASA, arXiv 2602.03152): RoPE turns channels in
 * pairs, a logit is the sum over pairs, and a few of them agree with the whole about its highest rows.
 */
import type { Foresight } from "../backend/interface.ts";

/** One query of each query head of a KV head, and its keys. */
export interface ForesightInput {
  /** `[group, headDim]`. */
  readonly queries: Float32Array;
  /** `[length, headDim]`. */
  readonly keys: Float32Array;
  readonly length: number;
  readonly headDim: number;
}

/**
 * The rows to read, ascending: the first `sinks`, the last `recent`, and of the others the highest by
 * max over the group of (partial product − the head's largest), the earlier of equal ones; `entries` in all.
 */
export function chosenRows(input: ForesightInput, { channels, entries, sinks, recent }: Foresight): Int32Array {
  const { length } = input, ranks = ranksOf(input, channels);
  const always = (i: number) => i < sinks || i >= length - recent;
  const order = Array.from(ranks.keys());
  const rank = (i: number) => always(i) ? Infinity : Number.isNaN(ranks[i]) ? -Infinity : ranks[i];
  order.sort((a, b) => rank(b) > rank(a) ? 1 : rank(b) < rank(a) ? -1 : a - b);
  return Int32Array.from(order.slice(0, entries)).sort();
}

function ranksOf({ queries, keys, length, headDim }: ForesightInput, channels: Int32Array): Float64Array {
  const ranks = new Float64Array(length).fill(-Infinity);
  for (let at = 0; at < queries.length; at += headDim) {
    const scores = Float64Array.from({ length }, (_, i) => {
      let dot = 0;
      for (const j of channels) dot += queries[at + j] * keys[i * headDim + j];
      return dot;
    });
    const peak = scores.reduce((most, score) => Math.max(most, score), -Infinity);
    scores.forEach((score, i) => ranks[i] = Math.max(ranks[i], score - peak));
  }
  return ranks;
}
