/** What a linear gate over a layer's input predicts of each token: one small product per KV head. */

/** The gate of one layer. Shapes: `weights` `[heads, width]`, `bias` `[heads]`. */
export interface LinearGate {
  /** The norm's gains are within them. */
  readonly weights: Float32Array;
  readonly bias: Float32Array;
  /** The ε of the RMS norm, > 0. */
  readonly epsilon: number;
}

/**
 * weights[g] · x / √(mean x² + ε) + bias[g] for every row x of `hidden`, `[count, width]`: `[count, heads]`. Sums in
 * float64.
 * @throws RangeError when a length does not fit.
 */
export function gateScores(gate: LinearGate, hidden: Float32Array, count: number): Float32Array {
  const { weights, bias, epsilon } = gate, width = gateWidth(gate, hidden, count), heads = bias.length;
  const scores = new Float32Array(count * heads);
  for (let t = 0; t < count; t++) {
    const row = hidden.subarray(t * width, (t + 1) * width);
    const scale = 1 / Math.sqrt(dot(row, row, 0) / width + epsilon);
    for (let g = 0; g < heads; g++) scores[t * heads + g] = dot(row, weights, g * width) * scale + bias[g];
  }
  return scores;
}

/** The width that gate and hidden states agree on. */
export function gateWidth({ weights, bias }: LinearGate, hidden: { readonly length: number }, count: number): number {
  const width = weights.length / bias.length;
  if (!Number.isInteger(width) || width < 1 || hidden.length !== count * width) {
    throw new RangeError(
      `Cannot gate ${count} rows of ${hidden.length} floats by ${bias.length} heads of ${weights.length} weights`,
    );
  }
  return width;
}

function dot(row: Float32Array, weights: Float32Array, at: number): number {
  let sum = 0;
  for (let i = 0; i < row.length; i++) sum += row[i] * weights[at + i];
  return sum;
}
