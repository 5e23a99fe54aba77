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
  /** Float64, as the row is while it is scored: converting once is cheaper than in every product. */
  readonly #folded: Float64Array;
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
    this.#folded = Float64Array.from(
      gate.weights,
      (weight, i) => Math.fround(weight * gains[Math.floor(i / (kvHeads * width)) * width + i % width]),
    );
  }

  /** Scores of `count` tokens from `hidden`, `[count, width]`: `[count, kvHeads]`, natural logarithms. */
  score(layer: number, hidden: Float32Array, count: number): Float32Array {
    const { kvHeads, width, normEpsilon } = this.#config;
    const scores = new Float32Array(count * kvHeads), row = new Float64Array(width);
    for (let t = 0; t < count; t++) {
      for (let i = 0, from = t * width; i < width; i++) row[i] = hidden[from + i];
      const scale = 1 / Math.sqrt(dot(row, row, 0) / width + normEpsilon);
      for (let g = 0; g < kvHeads; g++) {
        const head = layer * kvHeads + g;
        scores[t * kvHeads + g] = dot(row, this.#folded, head * width) * scale + this.#bias[head];
      }
    }
    return scores;
  }
}

/** Σ a[i] · b[start + i]; four sums at a time, so that one addition need not wait for the other. */
function dot(a: Float64Array, b: Float64Array, start: number): number {
  const { length } = a;
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0, i = 0;
  for (; i + 3 < length; i += 4) {
    const at = start + i;
    s0 += a[i] * b[at];
    s1 += a[i + 1] * b[at + 1];
    s2 += a[i + 2] * b[at + 2];
    s3 += a[i + 3] * b[at + 3];
  }
  for (; i < length; i++) s0 += a[i] * b[start + i];
  return s0 + s1 + (s2 + s3);
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
