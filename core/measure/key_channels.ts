/**
 * Which channels of a head's keys matter: ThinK (arXiv 2407.21018), by its published code. A channel's score is the Frobenius
 * norm of what it adds to the logits of the last queries, ‖q_j k_jᵀ‖ = ‖q_j‖ ‖k_j‖, squared and meaned:
 *
 *     c_j = mean over queries and group of q_j² · mean over the kept entries of k_j²
 *
 * Queries and keys are those after RoPE. Pairs that RoPE turns together may be split, so keys can't be turned afterwards.
 */

/** How many of `headDim` channels a share leaves: the published code drops ⌊headDim · (1 − share)⌋. */
export function channelCount(headDim: number, share: number): number {
  return Math.max(1, headDim - Math.floor(headDim * (1 - share) + 1e-9));
}

/** mean over the rows, `[rows, headDim]`, of each channel's square; zeros where there are none. */
export function channelSquares(rows: Float32Array, headDim: number): Float64Array {
  const sums = new Float64Array(headDim), count = rows.length / headDim;
  for (let at = 0; at < rows.length;) for (let j = 0; j < headDim; j++, at++) sums[j] += rows[at] * rows[at];
  return count === 0 ? sums : sums.map((sum) => sum / count);
}

/** The `count` channels of largest product of the two means, ascending; of equal ones the lower. */
export function keptChannels(querySquares: Float64Array, keySquares: Float64Array, count: number): Int32Array {
  const scores = querySquares.map((square, j) => square * keySquares[j]);
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  return Int32Array.from(order.slice(0, count)).sort();
}
