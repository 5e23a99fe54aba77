/** Gates for models that have none: random weights, the same every time. */
import { RaggedCache } from "../../core/cache/ragged.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { randomSource } from "../../core/measure/random.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { type Gate, GATE_FORMAT, type GateInfo } from "../../model/gate/file.ts";
import { worstCaseOf } from "../../model/gate/worst_case.ts";
import type { ModelConfig } from "../../model/config.ts";
import { termsOf } from "../../model/gate/key_terms.ts";
import type { Model } from "../../model/model.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { readContext } from "../../model/read/layers.ts";
import { gateScorer, policyInputs } from "../../model/read/policy_inputs.ts";

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

/** A gate that predicts at random. */
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

/** A random gate whose keyed form is nothing like the other. */
export function keyedGate(config: ModelConfig): Gate {
  const { weights, bias } = randomGate(config, 7), next = randomSource(11);
  const terms = Float32Array.from({ length: bias.length * termsOf(config) }, () => next() * 2 - 1);
  return { ...randomGate(config), keyed: { weights, bias, terms } };
}

/** One layer: ln importance as a gate predicts it, and importance as the model repeats the text, `[kvHeads, length]`. */
export interface PredictedLayer {
  readonly predicted: Float32Array;
  readonly measured: Float32Array;
}

/** Both for every layer of a text, nothing evicted; what hidden states alone predict. */
export async function predictedAndMeasured(
  model: Model,
  ids: readonly number[],
  gate: Gate,
): Promise<PredictedLayer[]> {
  const needs = { gate: true, reconstruction: { chunk: ids.length, postfix: 0 } }, seen: PredictedLayer[] = [];
  using cache = new RaggedCache(model.backend, model.config);
  using reader = await LayerReader.open(model, cache, ids, {
    needs,
    window: 0,
    ...await policyInputs(model, { needs: { ...needs, gate: undefined } }, ids),
    gate: await gateScorer(model, gate),
  });
  for (let layer = 0; layer < model.config.layers; layer++) {
    const { gate: predicted, reconstruction } = await reader.layer(layer);
    seen.push({ predicted: predicted!, measured: reconstruction! });
  }
  return seen;
}

/**
 * Reads texts with `gate` under `--risk-worst limit`. `lost`: texts in which something of measured importance `limit` or
 * more was evicted; `evicted`: share of all entries.
 */
export async function losses(
  model: Model,
  gate: Gate,
  texts: readonly (readonly number[])[],
  { limit, coverage }: { limit: number; coverage: number },
): Promise<{ lost: number; evicted: number }> {
  const policy = resolvePolicy("gate"), scorer = await gateScorer(model, gate);
  let lost = 0, evicted = 0, all = 0;
  for (const ids of texts) {
    const budget = resolveBudget(policy, { fraction: 1 }, ids.length, model.config);
    const { threshold } = worstCaseOf(gate, limit, { coverage, budget });
    const outputWeights = () => Promise.reject(new Error("not needed"));
    const { cache } = await readContext(model, ids, {
      policy,
      budget,
      threshold,
      gate: scorer,
      outputWeights,
    });
    using _ = cache;
    const seen = await predictedAndMeasured(model, ids, gate);
    let important = 0;
    seen.forEach(({ measured }, layer) => {
      for (let head = 0; head < model.config.kvHeads; head++) {
        const kept = new Set(cache.positions(layer, head)), gone = ids.map((_, i) => i).filter((i) => !kept.has(i));
        all += ids.length;
        evicted += gone.length;
        important += gone.filter((i) => measured[head * ids.length + i] >= limit).length;
      }
    });
    if (important > 0) lost++;
  }
  return { lost, evicted: evicted / all };
}
