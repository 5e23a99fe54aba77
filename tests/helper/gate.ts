/** Gates for models that have none: random weights, the same every time. */
import { randomSource } from "../../core/random.ts";
import { type Gate, GATE_FORMAT, type GateInfo } from "../../model/gate/file.ts";
import type { ModelConfig } from "../../model/config.ts";

/** What a gate file says of a model's gate; the numbers are made up. */
export function gateInfo(
  { name, architecture, layers, kvHeads, width }: ModelConfig,
  sha256 = "0".repeat(64),
): GateInfo {
  return {
    format: GATE_FORMAT,
    model: { name, sha256, architecture, layers, kvHeads, width },
    calibration: { texts: ["built in"], seed: 1, tokens: 100, textTokens: 10, floor: 1e-5, skipped: 4 },
    ridge: new Array(layers).fill(0.001),
    correlation: Array.from({ length: layers }, () => new Array(kvHeads).fill(0.5)),
    conformal: { textTokens: 10, window: 32, scores: [1, 2, 3] },
  };
}

/** A gate that foretells at random. */
export function randomGate(config: ModelConfig, seed = 5): Gate {
  const { layers, kvHeads, width } = config;
  const next = randomSource(seed);
  const floats = (length: number) => Float32Array.from({ length }, () => next() * 2 - 1);
  return {
    name: "random gate",
    info: gateInfo(config),
    weights: floats(layers * kvHeads * width),
    bias: floats(layers * kvHeads),
  };
}
