/** Gate scores from hidden states: one small product per token, layer and KV head. */
import { scoreByGate } from "../../core/backend/gate.ts";
import type { Backend } from "../../core/backend/interface.ts";
import type { Tensor } from "../../core/backend/tensor.ts";
import type { LinearGate } from "../../core/measure/gate_scores.ts";
import type { ModelConfig } from "../config.ts";

/** A linear gate over the attention layer's input after its norm. */
export interface GateWeights {
  /** `[layers, kvHeads, width]`. */
  readonly weights: Float32Array;
  /** `[layers, kvHeads]`. */
  readonly bias: Float32Array;
}

/**
 * ln importance of every token's entry as the gate predicts it: w · norm(h) + b with RMS norm
 * norm(h) = h / √(mean h² + ε) ⊙ gains. The gains are folded into the weights once.
 */
export class GateScorer {
  readonly #backend: Pick<Backend, "gateScores" | "tensors">;
  readonly #layers: readonly LinearGate[];

  /**
   * `gains`: the attention norm's weights of every layer, `[layers, width]`.
   * @throws RangeError when a length does not fit the model.
   */
  constructor(
    backend: Pick<Backend, "gateScores" | "tensors">,
    { layers, kvHeads, width, normEpsilon: epsilon }: ModelConfig,
    gate: GateWeights,
    gains: Float32Array,
  ) {
    const wanted = { weights: layers * kvHeads * width, bias: layers * kvHeads, gains: layers * width };
    for (const [name, array] of Object.entries({ ...gate, gains })) {
      const want = wanted[name as keyof typeof wanted];
      if (want !== undefined && array.length !== want) {
        throw new RangeError(`Gate ${name}: ${array.length}, want ${want}`);
      }
    }
    this.#backend = backend;
    const folded = gate.weights.map((weight, i) =>
      weight * gains[Math.floor(i / (kvHeads * width)) * width + i % width]
    );
    this.#layers = Array.from({ length: layers }, (_, layer) => ({
      weights: folded.subarray(layer * kvHeads * width, (layer + 1) * kvHeads * width),
      bias: gate.bias.subarray(layer * kvHeads, (layer + 1) * kvHeads),
      epsilon,
    }));
  }

  /** Scores of `count` tokens from `hidden`, `[count, width]`: `[count, kvHeads]`, natural logarithms. */
  score(layer: number, hidden: Tensor, count: number): Promise<Float32Array> {
    return scoreByGate(this.#backend, this.#layers[layer], hidden, count);
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
