/** What a policy needs beyond the layers themselves: prompts that repeat the context, a gate. */
import type { Needs, Policy } from "../../core/policy/policy.ts";
import type { Refit } from "../../core/refit/refit.ts";
import type { Gate } from "../gate/file.ts";
import { checkTarget, saysNoGate } from "../gate/find.ts";
import type { Chunks } from "../foresight/file.ts";
import { GateScorer, type GateWeights, type KeyedWeights, readGains } from "../gate/scorer.ts";
import type { Statistics } from "../statistics/file.ts";
import { isCalibrated } from "../statistics/needed.ts";
import type { SoftTokens } from "../policy_files/soft_tokens.ts";
import type { GateOptions, Model } from "../model.ts";
import { worstCaseOf } from "../gate/worst_case.ts";
import type { PolicyInputs } from "./layers.ts";
import type { Reading, ScoreFiles } from "./reading.ts";
import { repeatPrompts } from "./reconstruct.ts";
import { type Fitting, piecesOf } from "./replay.ts";
import { checkProbeRoom } from "./room.ts";

export interface SourceOptions {
  /** For `gate`: instead of the gate that belongs to the model. */
  readonly gate?: Gate;
  /** For `self-gate`: whether it begins with what is known of the model, from earlier texts or a gate. Default true. */
  readonly learned?: boolean;
  /**
   * For `self-gate`: the gate is wanted for texts to come, so it is fitted where every token is repeated, too. And a model
   * without a gate may have its first one fitted (`model/gate/first.ts`). Default false.
   */
  readonly learn?: boolean;
  /** For `judge-q`: instead of the file that it names, or of the model's own. */
  readonly softTokens?: SoftTokens;
  readonly beyondTrained?: boolean;
  readonly signal?: AbortSignal;
}

type FileModel = Pick<
  Model,
  "chunks" | "statistics" | "file" | "config" | "backend" | "gate" | "softTokens" | "learned"
>;

/**
 * What a planned reading of `tokens` tokens needs of files.
 * @throws PalisadeError `context.too-long`, `gate.*`, `soft-tokens.*`, `chunks.*`, `statistics.*`, `risk.*` for a gate without margins, and what the
 * files throw.
 */
export async function scoreFiles(
  model: FileModel,
  reading: Reading,
  tokens: number,
  options: SourceOptions = {},
): Promise<ScoreFiles> {
  const { policy: { needs, meaning }, budget } = reading;
  const predict = "predict" in reading && reading.predict;
  // What is compared with scores of tokens to come, or with margins, goes by hidden states alone.
  const keyed = !predict && (reading.way === "layers" || reading.way === "risk");
  const files = await neededFiles(model, predict ? { ...needs, gate: true } : needs, tokens, { ...options, keyed });
  if (reading.way !== "threshold" || meaning.kind !== "predicted") return files;
  const promise = { coverage: meaning.coverage, budget };
  return { ...files, worstCase: worstCaseOf(options.gate ?? await model.gate(options), reading.limit, promise) };
}

/**
 * What the scores of a policy, and a refit behind it, need beside the layers, for one context.
 * @throws PalisadeError `context.too-long`, `gate.*`, `soft-tokens.*` and what the files throw.
 */
export async function policyInputs(
  model: FileModel & Pick<Model, "tokenizer" | "frame">,
  { needs, refit }: Pick<Policy, "needs"> & { readonly refit?: Refit },
  ids: readonly number[],
  options: SourceOptions = {},
): Promise<PolicyInputs> {
  const pieces = piecesOf(model, ids, { needs, refit }, options.beyondTrained);
  return {
    ...(needs.reconstruction && { prompts: repeatPrompts(model, ids, needs.reconstruction, options.beyondTrained) }),
    ...(pieces && { pieces }),
    ...await neededFiles(model, needs, ids.length, { ...options, keyed: true }),
  };
}

async function neededFiles(
  model: FileModel,
  needs: Needs,
  tokens: number,
  options: SourceOptions & { readonly keyed: boolean },
): Promise<ScoreFiles> {
  return {
    ...(needs.softTokens && { softTokens: await softEmbeddings(model, needs, tokens, options) }),
    ...(needs.gate && { gate: await gateScorer(model, options.gate, { ...options, target: needs.gate }) }),
    ...(needs.foresight && { chunks: await chunksOf(model, needs) }),
    ...(isCalibrated(needs) && { statistics: await statisticsOf(model, needs) }),
    ...(needs.selfGate && { fitting: await fittingOf(model, options) }),
  };
}

/** Those of the file that the policy names, or the model's own. */
export async function chunksOf({ chunks }: Pick<Model, "chunks">, { file }: Needs): Promise<Chunks> {
  return await chunks(file?.kind === "chunks" ? file.name : undefined);
}

/** The same of soft tokens. */
export async function softTokensOf({ softTokens }: Pick<Model, "softTokens">, { file }: Needs): Promise<SoftTokens> {
  return await softTokens(file?.kind === "soft-tokens" ? file.name : undefined);
}

/** The same of statistics. */
export async function statisticsOf({ statistics }: Pick<Model, "statistics">, { file }: Needs): Promise<Statistics> {
  return await statistics(file?.kind === "statistics" ? file.name : undefined);
}

/** What a gate that is fitted while reading begins with. */
async function fittingOf(model: FileModel, options: SourceOptions): Promise<Fitting> {
  const known = await knownGate(model, options), gains = await readGains(model.file, model.config);
  return {
    gains,
    learn: options.learn,
    ...(known && { known: { ...known, tokens: known.info.calibration.tokens } }),
  };
}

/** The gate that one is begun with: what is given, what earlier texts left, or the one that belongs to the model. */
export async function knownGate(
  model: Pick<Model, "gate" | "learned">,
  { gate, learned = true, signal }: SourceOptions,
): Promise<Gate | undefined> {
  return gate ?? (learned ? await model.learned() ?? await gateIfAny(model, signal) : undefined);
}

/** The gate that belongs to the model, if there is one. */
export async function gateIfAny({ gate }: Pick<Model, "gate">, signal?: AbortSignal): Promise<Gate | undefined> {
  try {
    return await gate({ signal });
  } catch (error) {
    if (saysNoGate(error)) return undefined;
    throw error;
  }
}

/** A gate's scorer is made once for a model's file and backend. */
const scorers = new WeakMap<
  GateWeights | KeyedWeights,
  Pick<Model, "file" | "backend"> & { readonly scorer: GateScorer }
>();

/**
 * A scorer of `gate`, or of the gate that belongs to the model. `keyed`: of the one that looks at keys, where there is one;
 * a gate towards KVzip+ stays as published.
 * @throws PalisadeError `gate.*`.
 */
export async function gateScorer(
  { file, config, backend, gate: own }: Pick<Model, "file" | "config" | "backend" | "gate">,
  gate?: Gate,
  { target = true, signal, keyed = false }: GateOptions & { readonly keyed?: boolean } = {},
): Promise<GateScorer> {
  if (gate) checkTarget(gate, target);
  const whole = gate ?? await own({ target, signal }), chosen = keyed && target === true && whole.keyed || whole;
  const known = scorers.get(chosen);
  if (known?.file === file && known.backend === backend) return known.scorer;
  const scorer = new GateScorer(backend, config, chosen, await readGains(file, config));
  scorers.set(chosen, { file, backend, scorer });
  return scorer;
}

/** Embeddings of the soft tokens, with room for them behind a context of `length` tokens. */
async function softEmbeddings(
  model: Pick<Model, "config" | "softTokens">,
  needs: Needs,
  length: number,
  { softTokens: given, beyondTrained }: SourceOptions,
): Promise<Float32Array> {
  const { embeddings } = given ?? await softTokensOf(model, needs), { config } = model;
  if (!beyondTrained) checkProbeRoom(config, length, embeddings.length / config.width);
  return embeddings;
}
