/** Scores of query heads as scores of the KV heads that they share. */
import type { AttentionShape } from "../shape.ts";

/**
 * Scores of each query head, `[L]`, as those of its KV head, `[kvHeads, L]`: their mean over the group, or the largest.
 * `scoresOf` is also told where the rows of its KV head begin.
 */
export function groupScores(
  { heads, kvHeads }: AttentionShape,
  length: number,
  scoresOf: (head: number, firstRow: number) => Float64Array,
  reduce: "mean" | "max" = "mean",
): Float32Array {
  const scores = new Float32Array(kvHeads * length), group = heads / kvHeads;
  for (let first = 0, head = 0; head < heads; first += length) {
    let all = scoresOf(head++, first);
    while (head % group > 0) {
      const more = scoresOf(head++, first);
      all = all.map((x, i) => reduce === "max" ? Math.max(x, more[i]) : x + more[i]);
    }
    scores.set(reduce === "max" ? all : all.map((x) => x / group), first);
  }
  return scores;
}

/** Dot products of `vector`, `[size]`, with `count` rows of as many numbers from row `first` on. */
export function rowDots(
  rows: ArrayLike<number>,
  first: number,
  count: number,
  vector: ArrayLike<number>,
): Float64Array {
  const size = vector.length;
  return Float64Array.from({ length: count }, (_, i) => {
    let dot = 0;
    for (let d = 0; d < size; d++) dot += vector[d] * rows[(first + i) * size + d];
    return dot;
  });
}
