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
  readonly #folded: Float32Array;
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
    this.#folded = gate.weights.map((weight, i) =>
      weight * gains[Math.floor(i / (kvHeads * width)) * width + i % width]
    );
  }

  /** Scores of `count` tokens from `hidden`, `[count, width]`: `[count, kvHeads]`, natural logarithms. */
  score(layer: number, hidden: Float32Array, count: number): Float32Array {
    const { kvHeads, width, normEpsilon } = this.#config;
    const scores = new Float32Array(count * kvHeads);
    for (let t = 0; t < count; t++) {
      const row = hidden.subarray(t * width, (t + 1) * width);
      let squares = 0;
      for (let i = 0; i < width; i++) squares += row[i] * row[i];
      const scale = 1 / Math.sqrt(squares / width + normEpsilon);
      for (let g = 0; g < kvHeads; g++) {
        const head = layer * kvHeads + g, at = head * width;
        let dot = 0;
        for (let i = 0; i < width; i++) dot += row[i] * this.#folded[at + i];
        scores[t * kvHeads + g] = dot * scale + this.#bias[head];
      }
    }
    return scores;
  }
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
