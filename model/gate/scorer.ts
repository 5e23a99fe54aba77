/** Gate scores from hidden states: one small product per token, layer and KV head. */
import type { ModelConfig } from "../config.ts";

/** A linear gate over the attention layer's input after its norm. */
export interface GateWeights {
  /** `[layers, kvHeads, width]`. */
  readonly weights: Float32Array;
  /** `[layers, kvHeads]`. */
  readonly bias: Float32Array;
}

/**
 * ln importance of every token's entry as the gate foretells it: w · norm(h) + b with RMS norm
 * norm(h) = h / √(mean h² + ε) ⊙ gains. The gains are folded into the weights once.
 */
export class GateScorer {
  readonly #config: ModelConfig;
  /**
   * Weights times gains of each layer and KV head, `[width]`. Float64, as the rows are while they are scored: converting
   * once is cheaper than in every product.
   */
  readonly #folded: readonly Float64Array[];
  readonly #bias: Float32Array;

  /**
   * `gains`: the attention norm's weights of every layer, `[layers, width]`.
   * @throws RangeError when a length does not fit the model.
   */
  constructor(config: ModelConfig, gate: GateWeights, gains: Float32Array) {
    const { layers, kvHeads, width } = config;
    const wanted = { weights: layers * kvHeads * width, bias: layers * kvHeads, gains: layers * width };
    for (const [name, array] of Object.entries({ ...gate, gains })) {
      const want = wanted[name as keyof typeof wanted];
      if (want !== undefined && array.length !== want) {
        throw new RangeError(`Gate ${name}: ${array.length}, want ${want}`);
      }
    }
    this.#config = config;
    this.#bias = gate.bias;
    const folded = new Float64Array(gate.weights.length);
    for (let i = 0; i < folded.length; i++) {
      folded[i] = Math.fround(gate.weights[i] * gains[Math.floor(i / (kvHeads * width)) * width + i % width]);
    }
    this.#folded = rowsOf(folded, width);
  }

  /** Scores of `count` tokens from `hidden`, `[count, width]`: `[count, kvHeads]`, natural logarithms. */
  score(layer: number, hidden: Float32Array, count: number): Float32Array {
    const { kvHeads, width, normEpsilon } = this.#config;
    const scores = new Float32Array(count * kvHeads), four = new Float64Array(4 * width);
    const [a, b, c, d] = rowsOf(four, width), scales = new Float64Array(4), products = new Float64Array(4);
    for (let first = 0; first < count; first += 4) {
      // Rows beyond the last token keep what they held; nobody reads their scores.
      const here = Math.min(4, count - first);
      four.set(hidden.subarray(first * width, (first + here) * width));
      squares(a, b, c, d, scales);
      for (let t = 0; t < here; t++) scales[t] = 1 / Math.sqrt(scales[t] / width + normEpsilon);
      for (let g = 0; g < kvHeads; g++) {
        const head = layer * kvHeads + g;
        dots(a, b, c, d, this.#folded[head], products);
        for (let t = 0; t < here; t++) {
          scores[(first + t) * kvHeads + g] = products[t] * scales[t] + this.#bias[head];
        }
      }
    }
    return scores;
  }
}

/** Views of the rows of a matrix, `[rows, width]`. */
function rowsOf(matrix: Float64Array, width: number): Float64Array[] {
  return Array.from({ length: matrix.length / width }, (_, i) => matrix.subarray(i * width, (i + 1) * width));
}

/** Σ row² of four rows: four sums at once, so that no addition waits for the one before. */
function squares(a: Float64Array, b: Float64Array, c: Float64Array, d: Float64Array, sums: Float64Array): void {
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (let i = 0; i < a.length; i++) {
    s0 += a[i] * a[i];
    s1 += b[i] * b[i];
    s2 += c[i] * c[i];
    s3 += d[i] * d[i];
  }
  sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

/** Σ row · weights of four rows; each weight is read once. */
function dots(
  a: Float64Array,
  b: Float64Array,
  c: Float64Array,
  d: Float64Array,
  weights: Float64Array,
  sums: Float64Array,
): void {
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (let i = 0; i < weights.length; i++) {
    const weight = weights[i];
    s0 += a[i] * weight;
    s1 += b[i] * weight;
    s2 += c[i] * weight;
    s3 += d[i] * weight;
  }
  sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}
/** The attention norms' weights of all layers, `[layers, width]`, from a model file. */
export async function readGains(
  file: { readFloat32(name: string): Promise<Float32Array> },
  { layers, width }: ModelConfig,
): Promise<Float32Array> {
  const gains = new Float32Array(layers * width);
  for (let layer = 0; layer < layers; layer++) {
    gains.set(await file.readFloat32(`blk.${layer}.attn_norm.weight`), layer * width);
  }
  return gains;
}
