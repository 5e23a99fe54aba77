/** Queries from hidden states: q = RoPE(x·Wqᵀ), for models that do nothing else to them. */
import { type KeyRotation, rotateRows } from "../../core/measure/rotation.ts";
import type { AttentionShape } from "../../core/shape.ts";

export interface HiddenStates {
  readonly shape: AttentionShape;
  /** `[length, width]`, the input of the attention block after its norm. */
  readonly hidden: Float32Array;
  /** `[heads · headDim, width]`. */
  readonly wq: Float32Array;
  readonly length: number;
  readonly rotation: KeyRotation;
}

/** The last `rows` queries, `[heads, rows, headDim]`, after RoPE. O(rows · heads · headDim · width). */
export function queriesFromHidden({ shape, hidden, wq, length, rotation }: HiddenStates, rows: number): Float32Array {
  const { heads, headDim } = shape, width = hidden.length / length;
  const queries = new Float32Array(heads * rows * headDim);
  for (let head = 0; head < heads; head++) {
    for (let t = 0; t < rows; t++) {
      const x = (length - rows + t) * width;
      for (let j = 0; j < headDim; j++) {
        let sum = 0;
        for (let i = 0, w = (head * headDim + j) * width; i < width; i++, w++) sum += hidden[x + i] * wq[w];
        queries[(head * rows + t) * headDim + j] = sum;
      }
    }
  }
  const moves = Int32Array.from({ length: heads * rows }, (_, i) => length - rows + i % rows);
  rotateRows(queries, headDim, moves, rotation);
  return queries;
}

/** Share of the largest number by which stored queries may differ: they may be float16, or of eight bits. */
const TOLERANCE = 0.1;

/** Whether the last queries of both, `[heads, rows, headDim]` each, are the same up to how they were stored. */
export function sameQueries(computed: Float32Array, stored: Float32Array, { heads, headDim }: AttentionShape): boolean {
  const rows = [computed, stored].map((all) => all.length / (heads * headDim)), compared = Math.min(...rows, 4);
  let largest = 0, difference = 0;
  for (let head = 0; head < heads; head++) {
    for (let i = 0; i < compared * headDim; i++) {
      const [a, b] = [computed, stored].map((all, k) => all[((head + 1) * rows[k] - compared) * headDim + i]);
      largest = Math.max(largest, Math.abs(b));
      difference = Math.max(difference, Math.abs(a - b));
    }
  }
  return difference <= TOLERANCE * largest;
}
