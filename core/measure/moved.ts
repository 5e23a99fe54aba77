/**
 * Moved queries: the context's own queries, as if asked again from behind its end. RoPE lets a query be moved: turned by
 * n positions more, the query of position p is that of position p + n. So every query is moved by the context's length,
 * and then sees ALL keys. A head that looks for what followed a token earlier finds it, which the causal reading hid
 * from it. What such queries look at most stands for what a repetition would (KVzip's), without a second reading.
 */
import { type KeyRotation, rotateRows } from "./rotation.ts";
import { softmaxRow } from "./attention.ts";
import type { AttentionShape } from "../shape.ts";

/** Whether the query of token `t` is one of every `every`; the last token's always is. */
export function isMoved(t: number, length: number, every: number): boolean {
  return (length - 1 - t) % every === 0;
}

/** The largest of each KV head's group, `[kvHeads, length]`, of maxima per query head, `[heads, length]`. */
export function largestOfGroup(columnMax: Float32Array, { heads, kvHeads }: AttentionShape): Float32Array {
  const length = columnMax.length / heads, group = heads / kvHeads;
  const largest = new Float32Array(kvHeads * length);
  for (let head = 0; head < heads; head++) {
    const to = Math.floor(head / group) * length;
    for (let i = 0; i < length; i++) {
      const value = columnMax[head * length + i];
      // Not `>` alone: a NaN must come through, not vanish.
      if (value > largest[to + i] || Number.isNaN(value)) largest[to + i] = value;
    }
  }
  return largest;
}

export interface MovedInput {
  readonly shape: AttentionShape;
  /** `[heads, length, headDim]`, after RoPE. */
  readonly queries: Float32Array;
  /** One array per KV head, `[length, headDim]`, after RoPE. */
  readonly keys: readonly Float32Array[];
  readonly length: number;
  readonly rotation: KeyRotation;
}

/**
 * Largest attention of the moved queries on each entry, over every `every`-th query and the group, `[kvHeads, length]`;
 * one row at a time, in doubles.
 */
export function movedMaxima(input: MovedInput, every: number): Float32Array {
  const { shape, keys, length, rotation } = input, { heads, kvHeads, headDim } = shape;
  const columnMax = new Float32Array(heads * length), row = new Float64Array(length);
  for (let head = 0; head < heads; head++) {
    const queries = input.queries.slice(head * length * headDim, (head + 1) * length * headDim);
    rotateRows(queries, headDim, new Int32Array(length).fill(length), rotation);
    for (let t = 0; t < length; t++) {
      if (!isMoved(t, length, every)) continue;
      softmaxRow(
        { vector: queries, offset: t * headDim },
        keys[Math.floor(head / (heads / kvHeads))],
        headDim,
        length,
        row,
        0,
        undefined,
        shape.nullLogits?.[head],
      );
      for (let i = 0; i < length; i++) {
        if (!(row[i] <= columnMax[head * length + i])) columnMax[head * length + i] = row[i];
      }
    }
  }
  return largestOfGroup(columnMax, shape);
}
