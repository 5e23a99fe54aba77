/** Gate scores from hidden states: one small product per token, layer and KV head. */
import { scoreByGate } from "../../core/backend/gate.ts";
import type { Backend } from "../../core/backend/interface.ts";
import type { Tensor } from "../../core/backend/tensor.ts";
import type { LinearGate } from "../../core/measure/gate_scores.ts";
import type { ModelConfig } from "../config.ts";
import { addTerms, keyTerms, type LayerKeys, termsOf } from "./key_terms.ts";

/** A linear gate over the attention layer's input after its norm. */
export interface GateWeights {
  /** `[layers, kvHeads, width]`. */
  readonly weights: Float32Array;
  /** `[layers, kvHeads]`. */
  readonly bias: Float32Array;
  /** The one that looks at keys, too, where there is one. */
  readonly keyed?: KeyedWeights;
}

/** A gate that takes a layer's keys into account, too (`key_terms.ts`). */
export interface KeyedWeights {
  /** `[layers, kvHeads, width]`. */
  readonly weights: Float32Array;
  /** `[layers, kvHeads]`. */
  readonly bias: Float32Array;
  /** `[layers, kvHeads, terms]`. */
  readonly terms: Float32Array;
}

/**
 * ln importance of every token's entry as the gate predicts it: w · norm(h) + b with RMS norm
 * norm(h) = h / √(mean h² + ε) ⊙ gains. The gains are folded into the weights once.
 */
export class GateScorer {
  readonly #backend: Pick<Backend, "gateScores" | "tensors">;
  readonly #layers: readonly LinearGate[];
  /** `[layers, kvHeads, terms]`. */
  readonly #terms?: Float32Array;

  /**
   * `gains`: the attention norm's weights of every layer, `[layers, width]`. Of a gate that looks at keys give its
   * `keyed`: {@link addTerms} is to follow then.
   * @throws RangeError when a length does not fit the model.
   */
  constructor(
    backend: Pick<Backend, "gateScores" | "tensors">,
    { layers, kvHeads, headDim, width, normEpsilon: epsilon }: ModelConfig,
    gate: GateWeights | KeyedWeights,
    gains: Float32Array,
  ) {
    const terms = "terms" in gate ? gate.terms : undefined, { weights, bias } = gate;
    const heads = layers * kvHeads, most = heads * termsOf({ kvHeads, headDim });
    for (
      const [name, array, want] of [
        ["weights", weights, heads * width],
        ["bias", bias, heads],
        ["gains", gains, layers * width],
        ["terms", terms ?? { length: most }, most],
      ] as const
    ) {
      if (array.length !== want) throw new RangeError(`Gate ${name}: ${array.length}, want ${want}`);
    }
    this.#backend = backend;
    this.#terms = terms;
    const folded = weights.map((weight, i) => weight * gains[Math.floor(i / (kvHeads * width)) * width + i % width]);
    this.#layers = Array.from({ length: layers }, (_, layer) => ({
      weights: folded.subarray(layer * kvHeads * width, (layer + 1) * kvHeads * width),
      bias: bias.subarray(layer * kvHeads, (layer + 1) * kvHeads),
      epsilon,
    }));
  }

  /** Scores of `count` tokens from `hidden`, `[count, width]`: `[count, kvHeads]`, natural logarithms. */
  score(layer: number, hidden: Tensor, count: number): Promise<Float32Array> {
    return scoreByGate(this.#backend, this.#layers[layer], hidden, count);
  }

  /** Whether {@link addTerms} has something to add. */
  get keyed(): boolean {
    return this.#terms !== undefined;
  }

  /** Adds what the keys of a whole layer say to `scores`, `[kvHeads, tokens]`. */
  async addTerms(layer: number, scores: Float32Array, keys: LayerKeys): Promise<void> {
    if (!this.#terms) return;
    const each = this.#terms.length / this.#layers.length, { kvHeads } = keys.rows.shape;
    const tokens = scores.length / kvHeads, terms = await keyTerms(keys, tokens);
    addTerms(scores, this.#terms.subarray(layer * each, (layer + 1) * each), terms, tokens);
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
