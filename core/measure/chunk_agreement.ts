/**
 * How well single frequency chunks foresee which keys a query scores highest: *contextual agreement* (FASA, arXiv
 * 2602.03152, equation 5). A chunk is the two channels that RoPE turns together.
 *
 *     CA = |TopK(q·k) ∩ TopK(q_c·k_c)| / K, meaned over queries
 */

/** The channels of each chunk, `[headDim / 2][2]`; what isn't turned is paired by neighbours. An odd last one is alone. */
export function chunkChannels(
  headDim: number,
  { pairs, rotated }: { readonly pairs: "interleaved" | "half"; readonly rotated: number },
): number[][] {
  const half = rotated / 2;
  return Array.from({ length: Math.ceil(headDim / 2) }, (_, i) => {
    return pairs === "half" && i < half ? [i, i + half] : [2 * i, 2 * i + 1].filter((channel) => channel < headDim);
  });
}

/** Queries of one head and the keys they see. */
export interface AgreementInput {
  /** `[count, headDim]`, after RoPE. */
  readonly queries: Float32Array;
  /** `[rows, headDim]`, after RoPE. */
  readonly keys: Float32Array;
  readonly headDim: number;
  /** Keys that each query sees, from the first on, `[count]`, each ≥ `top`. */
  readonly visible: readonly number[];
}

/** Mean agreement of each of `chunks` about the `top` highest keys, 0 … 1. O(queries · keys · headDim). */
export function contextualAgreement(input: AgreementInput, chunks: readonly number[][], top: number): Float64Array {
  const { queries, keys, headDim, visible } = input, sums = new Float64Array(chunks.length);
  for (const [q, seen] of visible.entries()) {
    const parts = chunks.map(() => new Float32Array(seen)), whole = new Float32Array(seen);
    for (let i = 0; i < seen; i++) {
      chunks.forEach((channels, c) => {
        let dot = 0;
        for (const j of channels) dot += queries[q * headDim + j] * keys[i * headDim + j];
        parts[c][i] = dot;
        whole[i] += dot;
      });
    }
    const wanted = highest(whole, top);
    parts.forEach((part, c) => sums[c] += common(wanted, highest(part, top)) / top);
  }
  return sums.map((sum) => sum / visible.length);
}

/** 1 for the `count` highest; of equal ones the earlier. */
function highest(scores: Float32Array, count: number): Uint8Array {
  const threshold = scores.slice().sort()[scores.length - count], chosen = new Uint8Array(scores.length);
  let left = count;
  scores.forEach((score, i) => {
    if (score > threshold) left -= chosen[i] = 1;
  });
  for (let i = 0; i < scores.length && left > 0; i++) if (scores[i] === threshold) left -= chosen[i] = 1;
  return chosen;
}

function common(a: Uint8Array, b: Uint8Array): number {
  return a.reduce((sum, chosen, i) => sum + (chosen & b[i]), 0);
}

/** Channels of the chunks that agree most, a `share` of them and at least one, ascending; of equal ones the lower chunk. */
export function dominantChannels(agreement: ArrayLike<number>, chunks: readonly number[][], share: number): Int32Array {
  const order = Array.from(chunks.keys()).sort((a, b) => agreement[b] - agreement[a] || a - b);
  const count = Math.max(1, Math.round(share * chunks.length));
  return Int32Array.from(order.slice(0, count).flatMap((c) => chunks[c])).sort();
}
