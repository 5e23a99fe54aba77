/** One attention row at a time, in doubles: the slow, obvious form every kernel is checked against. */
import { exp } from "./exp.ts";

/** Where one query lies: `length` floats of `vector` from `offset`. */
export interface Query {
  readonly vector: Float32Array;
  readonly offset: number;
}

/**
 * Softmax of one query over the keys `first … visible − 1`, written to `row[0 … visible)`, 0 before `first`; two passes,
 * the maximum subtracted. `keys`: `[rows, headDim]`; `bias`: what is added to the logits of the first rows; `nothing`: a
 * logit that takes its share and has no row. Returns the maximum logit and Σ exp(logit − maximum), `nothing` among them.
 */
export function softmaxRow(
  query: Query,
  keys: Float32Array,
  headDim: number,
  visible: number,
  row: Float64Array,
  first = 0,
  bias?: Float32Array,
  nothing?: number,
): { maximum: number; sum: number } {
  const { vector, offset } = query;
  const scale = 1 / Math.sqrt(headDim);
  let maximum = nothing ?? -Infinity;
  row.fill(0, 0, first);
  for (let i = first; i < visible; i++) {
    let dot = 0;
    for (let j = 0, k = i * headDim; j < headDim; j++, k++) dot += vector[offset + j] * keys[k];
    row[i] = dot * scale + (bias && i < bias.length ? bias[i] : 0);
    if (row[i] > maximum) maximum = row[i];
  }
  let sum = nothing === undefined ? 0 : exp(nothing - maximum);
  for (let i = first; i < visible; i++) sum += row[i] = exp(row[i] - maximum);
  for (let i = first; i < visible; i++) row[i] /= sum;
  return { maximum, sum };
}
