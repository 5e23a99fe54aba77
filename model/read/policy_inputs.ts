/** What a policy needs beyond the layers themselves: prompts that repeat the context, a gate. */
import { inputError } from "../../core/errors.ts";
import { NO_FILE } from "../../core/policies/judge_q.ts";
import type { Policy, SoftTokensNeed } from "../../core/policy/policy.ts";
import type { Gate } from "../gate/file.ts";
import { GateScorer, readGains } from "../gate/scorer.ts";
import type { SoftTokens } from "../policy_files/soft_tokens.ts";
import { checkProbeRoom } from "./soft_tokens.ts";
import type { Model } from "../model.ts";
import type { ScoreSources } from "./layers.ts";
import { repeatPrompts } from "./reconstruct.ts";

export interface SourceOptions {
  /** Instead of the gate that belongs to the model. */
  readonly gate?: Gate;
  /** Instead of reading the file that `judge-q` names. */
  readonly softTokens?: SoftTokens;
  readonly beyondTrained?: boolean;
}

/**
 * The sources of a policy's scores for one context.
 * @throws PalisadeError `context.too-long`, `gate.*`, `soft-tokens.*` and what the files throw.
 */
export async function scoreSources(
  model: Pick<Model, "file" | "config" | "backend" | "tokenizer" | "frame" | "gate" | "softTokens">,
  { needs }: Pick<Policy, "needs">,
  ids: readonly number[],
  options: SourceOptions = {},
): Promise<ScoreSources> {
  return {
    ...(needs.reconstruction && { prompts: repeatPrompts(model, ids, needs.reconstruction, options.beyondTrained) }),
    ...(needs.softTokens && { softTokens: await softEmbeddings(model, needs.softTokens, ids.length, options) }),
    ...(needs.gate && { gate: await gateScorer(model, options.gate) }),
  };
}

/** A gate's scorer is made once for a model's file. */
const scorers = new WeakMap<Gate, { readonly file: Model["file"]; readonly scorer: GateScorer }>();

/** A scorer of `gate`, or of the gate that belongs to the model. */
export async function gateScorer(
  { file, config, backend, gate: own }: Pick<Model, "file" | "config" | "backend" | "gate">,
  gate?: Gate,
): Promise<GateScorer> {
  const chosen = gate ?? await own(), known = scorers.get(chosen);
  if (known?.file === file) return known.scorer;
  const scorer = new GateScorer(backend, config, chosen, await readGains(file, config));
  scorers.set(chosen, { file, scorer });
  return scorer;
}

/** Embeddings of the soft tokens, with room for them behind a context of `length` tokens. */
async function softEmbeddings(
  { config, softTokens }: Pick<Model, "config" | "softTokens">,
  { file }: SoftTokensNeed,
  length: number,
  { softTokens: given, beyondTrained }: SourceOptions,
): Promise<Float32Array> {
  if (!given && file === NO_FILE) {
    const message = "judge-q has no soft tokens: name a file of them, --policy judge-q(file=FILE)";
    throw inputError("soft-tokens.none", message, "--policy");
  }
  const { embeddings } = given ?? await softTokens(file);
  if (!beyondTrained) checkProbeRoom(config, length, embeddings.length / config.width);
  return embeddings;
}
