/** Softmax columns over all causal queries of a layer: sums for H2O, maxima for KVzip. */
import { softmaxRow } from "./attention.ts";
import type { AttentionShape } from "../shape.ts";

export interface ColumnInput {
  readonly shape: AttentionShape;
  /** `[heads, length, headDim]`, after RoPE. */
  readonly queries: Float32Array;
  /** One array per KV head, `[length, headDim]`, after RoPE. */
  readonly keys: readonly Float32Array[];
  readonly length: number;
}

/** Both `[heads, length]`: query t sees keys 0 … t. O(heads · length² · headDim), one row at a time. */
export function columnReductions({ shape, queries, keys, length }: ColumnInput): {
  columnSum: Float32Array;
  columnMax: Float32Array;
} {
  const { heads, kvHeads, headDim } = shape;
  const sums = new Float64Array(heads * length), columnMax = new Float32Array(heads * length);
  const row = new Float64Array(length);
  for (let head = 0; head < heads; head++) {
    const at = head * length, kvHead = Math.floor(head / (heads / kvHeads)), nothing = shape.nullLogits?.[head];
    for (let t = 0; t < length; t++) {
      const query = { vector: queries, offset: (at + t) * headDim };
      softmaxRow(query, keys[kvHead], headDim, t + 1, row, 0, undefined, nothing);
      for (let i = 0; i <= t; i++) {
        sums[at + i] += row[i];
        // Not `>` alone: a NaN must come through, not vanish.
        if (!(row[i] <= columnMax[at + i])) columnMax[at + i] = row[i];
      }
    }
  }
  return { columnSum: Float32Array.from(sums), columnMax };
}
