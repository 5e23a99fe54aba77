/** What a policy needs beyond the layers themselves: prompts that repeat the context, a gate. */
import type { Policy } from "../core/policy.ts";
import type { Gate } from "./gate/file.ts";
import { GateScorer, readGains } from "./gate/scorer.ts";
import type { Model } from "./model.ts";
import type { ScoreSources } from "./read.ts";
import { repeatPrompts } from "./reconstruct.ts";

export interface SourceOptions {
  /** Instead of the gate that belongs to the model. */
  readonly gate?: Gate;
  readonly beyondTrained?: boolean;
}

/**
 * The sources of a policy's scores for one context.
 * @throws PalisadeError `context.too-long`, `gate.*` and what the files throw.
 */
export async function scoreSources(
  model: Pick<Model, "file" | "config" | "tokenizer" | "frame" | "gate">,
  { needs }: Pick<Policy, "needs">,
  ids: readonly number[],
  options: SourceOptions = {},
): Promise<ScoreSources> {
  return {
    ...(needs.reconstruction && { prompts: repeatPrompts(model, ids, needs.reconstruction, options.beyondTrained) }),
    ...(needs.gate && { gate: await gateScorer(model, options.gate) }),
  };
}

/** A scorer of `gate`, or of the gate that belongs to the model. */
export async function gateScorer(model: Pick<Model, "file" | "config" | "gate">, gate?: Gate): Promise<GateScorer> {
  return new GateScorer(model.config, gate ?? await model.gate(), await readGains(model.file, model.config));
}
