/**
 * What attention would lose if one entry alone went. Without entry j the softmax of query i is spread over the others, so
 * its output moves by p_ij / (1 − p_ij) · (o_i − v_j): exact for one entry, not for several (DropKV, OpenReview
 * MqfNzH3TVH). Sums are taken in doubles; one row of attention is held at a time.
 */
import { softmaxRow } from "./attention.ts";
import type { WindowInput } from "./observe.ts";
import { firstSeen } from "../shape.ts";

/** Keeps the weight of an entry that has all attention finite, as the published code does. */
const EPSILON = 1e-6;

/** As a window's, and the values, one array per KV head, `[length, headDim]`. */
export interface DropInput extends WindowInput {
  readonly values: readonly Float32Array[];
}

/**
 * Σ over the window's queries of (p / (1 − p + 1e−6))² · ‖v − o‖², meaned over the group: `[kvHeads, N]`, prefix columns
 * only. O(heads · window · length · headDim).
 */
export function dropErrors({ shape, queries, window, keys, values, length }: DropInput): Float32Array {
  const { heads, kvHeads, headDim } = shape, prefix = length - window, group = heads / kvHeads;
  const row = new Float64Array(length), sums = new Float64Array(kvHeads * prefix);
  for (let head = 0; head < heads; head++) {
    const kvHead = Math.floor(head / group), norms = squares(values[kvHead], headDim, prefix);
    const into = sums.subarray(kvHead * prefix, (kvHead + 1) * prefix);
    for (let t = 0; t < window; t++) {
      const query = { vector: queries, offset: (t * heads + head) * headDim }, visible = length - window + t + 1;
      const first = firstSeen(shape, visible);
      softmaxRow(query, keys[kvHead], headDim, visible, row, first, undefined, shape.nullLogits?.[head]);
      addErrors(into, row.subarray(0, visible), { values: values[kvHead], norms, headDim });
    }
  }
  return Float32Array.from(sums, (sum) => sum / group);
}

/** Adds one query's errors to `into`, `[N]`; `probabilities`: of the rows that it sees. */
function addErrors(
  into: Float64Array,
  probabilities: Float64Array,
  { values, norms, headDim }: { values: Float32Array; norms: Float64Array; headDim: number },
): void {
  const output = new Float64Array(headDim);
  probabilities.forEach((p, i) => {
    for (let j = 0; j < headDim; j++) output[j] += p * values[i * headDim + j];
  });
  const norm = output.reduce((sum, x) => sum + x * x, 0);
  for (let i = 0; i < into.length; i++) {
    let product = 0;
    for (let j = 0; j < headDim; j++) product += output[j] * values[i * headDim + j];
    const weight = probabilities[i] / (1 - probabilities[i] + EPSILON);
    // Rounding may make the square of a distance slightly negative.
    into[i] += weight * weight * Math.max(0, norms[i] - 2 * product + norm);
  }
}

/** ‖v‖² of the first `count` rows. */
function squares(values: Float32Array, headDim: number, count: number): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => {
    let sum = 0;
    for (let j = i * headDim; j < (i + 1) * headDim; j++) sum += values[j] * values[j];
    return sum;
  });
}
