/** What a gate's file predicts from the hidden states of a dump, which are behind the norm that gates are fitted behind. */
import type { ModelShape } from "../../core/shape.ts";
import type { GateWeights } from "../gate/scorer.ts";
import { dumpError } from "./tensors.ts";

/**
 * w · x + b for every token and KV head, `[kvHeads, length]`, from `hidden`, `[length, width]`.
 * @throws PalisadeError `dump.gate` for a gate of another model.
 */
export function gateFromHidden(
  { weights, bias }: GateWeights,
  { layer, layers, kvHeads }: Pick<ModelShape, "layers" | "kvHeads"> & { readonly layer: number },
  hidden: Float32Array,
  length: number,
): Float32Array {
  const width = hidden.length / length;
  if (bias.length !== layers * kvHeads || weights.length !== bias.length * width) {
    const wanted = `${layers} layers, ${kvHeads} KV heads and width ${width}`;
    throw dumpError(
      "gate",
      `The gate has ${weights.length} weights of ${bias.length} heads: the dump has ${wanted}`,
      "gate",
    );
  }
  const scores = new Float32Array(kvHeads * length);
  for (let head = 0; head < kvHeads; head++) {
    const at = layer * kvHeads + head;
    for (let t = 0; t < length; t++) {
      let sum = 0;
      for (let i = 0; i < width; i++) sum += hidden[t * width + i] * weights[at * width + i];
      scores[head * length + t] = sum + bias[at];
    }
  }
  return scores;
}
