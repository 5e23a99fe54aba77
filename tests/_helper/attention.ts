/** Attention of a dump in doubles, with `Math.exp`: rows, outputs with and without evicted entries. */
import type { AttentionShape } from "../../core/shape.ts";
import type { DumpCase } from "./dumps.ts";

/** Softmax rows of the last `window` queries over what each sees: `[heads][window][visible]`. */
export function attentionRows({ shape, length, layers }: DumpCase, layer: number, window: number): number[][][] {
  const { heads, kvHeads, headDim } = shape;
  const { queries, keys, queryRows } = layers[layer];
  return Array.from({ length: heads }, (_, h) => {
    const g = Math.floor(h / (heads / kvHeads));
    return Array.from({ length: window }, (_, t) => {
      const q = (h * queryRows + queryRows - window + t) * headDim;
      const logits = Array.from({ length: length - window + t + 1 }, (_, i) => {
        let dot = 0;
        for (let j = 0; j < headDim; j++) dot += queries[q + j] * keys[(g * length + i) * headDim + j];
        return dot * (1 / Math.sqrt(headDim)); // as the product: huge logits show the last bit
      });
      const top = Math.max(...logits);
      const weights = logits.map((logit) => Math.exp(logit - top));
      const total = weights.reduce((a, b) => a + b, 0);
      return weights.map((weight) => weight / total);
    });
  });
}

/** o and o': the row's output over all it sees, and the softmax over what is kept of it (0 when nothing is). */
export function outputs(
  { shape: { headDim }, length, layers }: DumpCase,
  layer: number,
  kvHead: number,
  row: readonly number[],
  kept: ReadonlySet<number>,
): [number[], number[]] {
  const { values } = layers[layer];
  const mix = (weights: readonly number[]) =>
    Array.from({ length: headDim }, (_, j) => {
      return weights.reduce((sum, a, i) => sum + (a === 0 ? 0 : a * values[(kvHead * length + i) * headDim + j]), 0);
    });
  const left = row.map((a, i) => kept.has(i) ? a : 0);
  const mass = left.reduce((a, b) => a + b, 0);
  return [mix(row), mix(left.map((a) => mass === 0 ? 0 : a / mass))];
}

/** x·Wo_h of one query head. `wo`: `[width, heads · headDim]`. */
export function multiply(wo: Float32Array, x: readonly number[], head: number, shape: AttentionShape): number[] {
  const inner = shape.heads * shape.headDim;
  return Array.from({ length: wo.length / inner }, (_, out) => {
    return x.reduce((sum, value, j) => sum + value * wo[out * inner + head * shape.headDim + j], 0);
  });
}
