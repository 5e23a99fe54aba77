/** How a context is read: chosen, or refused, before anything runs. */
import type { Backend } from "../../core/backend/interface.ts";
import { type CacheType, checkCacheType, partsOf } from "../../core/cache/entry_type.ts";
import { inputError, option, PalisadeError, say } from "../../core/errors.ts";
import type { OptionName } from "../../core/options.ts";
import type { Budget, Policy } from "../../core/policy/policy.ts";
import type { Refit } from "../../core/refit/refit.ts";
import { crossLayerSelection } from "../../core/select/cross_layer.ts";
import { checkPursuit } from "../../core/select/wide.ts";
import { type Keep, parseKeep, resolveBudget } from "../../core/select/budget.ts";
import type { ModelConfig } from "../config.ts";
import type { Positions } from "../decode/answer.ts";
import { DEFAULTS } from "../defaults.ts";
import { budgetUnderCap } from "../decode/max_cache.ts";
import { type ChatFrame, frameTokens } from "../text/prompt.ts";
import type { TextTokenizer } from "../text/tokenizer.ts";
import { withFrameKept } from "./frame_kept.ts";
import { hasFewHeads, leastKept, leastShare } from "./least_kept.ts";
import type { Reading } from "./reading.ts";
import { repeatPrompts } from "./reconstruct.ts";
import { piecesOf } from "./replay.ts";
import { resolveRisk, type Risk, type RiskSettings } from "./risk_options.ts";
import { rolls } from "./rolling.ts";
import { contextTooLong } from "./room.ts";
import { checkSharedRows } from "./shared_rows.ts";

/** What of a model the plan goes by. */
export interface PlannedModel {
  readonly config: ModelConfig;
  readonly tokenizer: TextTokenizer;
  readonly frame: ChatFrame;
}

export interface PlanOptions extends RiskSettings {
  readonly policy: Policy;
  /** What stays. Default `DEFAULTS.keep`, 20%, but no fewer entries per head than {@link leastKept}. */
  readonly keep?: Keep | string;
  /** How keys and values are stored. Default `f32`. */
  readonly cacheType?: CacheType;
  /** Reads a context longer than the model was trained for instead of refusing it. */
  readonly beyondTrained?: boolean;
  /** Where kept keys stand. Default `true`. */
  readonly positions?: Positions;
  /** Certificates are wanted. */
  readonly explain?: boolean;
  /** What is refitted of what stays. Default `none`. */
  readonly refit?: Refit;
  /** The cap from the end of reading on; `predict`: its rule goes by the gate's scores of what was kept. */
  readonly maxCache?: { readonly tokens: number; readonly predict: boolean };
}

/**
 * The way to read the context `ids`.
 * @throws PalisadeError (usage) `risk.exclusive`, `threshold.exclusive`; (input) `risk.*`, `keep.*`, `max-cache.policy`, `cache-type.*`,
 * `context.too-long`, `explain.early`, `refit.*`, `merge.*`, `key-channels.*`, `shared-rows.*`.
 */
export function planReading(model: PlannedModel, ids: readonly number[], options: PlanOptions): Reading {
  const { maxCache, explain, positions } = options;
  refuseRivals(options.policy, RIVALS.filter((name) => options[name] !== undefined));
  const risk = resolveRisk(options, options.policy, rivals(options));
  const exceeds = exceedsTrained(model.config, ids.length, options);
  const { policy, budget, ...counted } = plannedBudget(model, ids, { risk, exceeds }, options);
  const cacheType = checkCacheType(options.cacheType ?? DEFAULTS.cacheType);
  if (exceeds && !closesUp(model.config, budget, options)) {
    throw contextTooLong(model.config, ids.length, policy, budget, positions === "rerotate");
  }
  if (policy.stages?.rows && (exceeds || policy.evicts === "early" || risk?.kind === "mean")) throw rereads();
  if (exceeds || policy.evicts === "early") refuseHindsight(policy, risk, options);
  const { merge, keyChannels } = policy.stages ?? {};
  checkSharedRows(model.config, policy, refits(options));
  if (refits(options) && risk?.kind === "mean") throw searched("refit");
  if (merge && risk?.kind === "mean") throw searched("merge");
  if (keyChannels && risk?.kind === "mean") throw searched("keyChannels");
  if (keyChannels && positions === "rerotate") throw turned();
  if (policy.needs.foresight && (keyChannels || positions === "rerotate")) throw wholeKeys();
  if (policy.needs.foresight && (merge || refits(options))) throw nothingGone();
  if (merge && refits(options)) throw twice();
  if (options.refit === "pursuit") checkPursuit(risk?.kind === "worst" ? { ...policy, threshold: risk.limit } : policy);
  if (merge && explain && crossesLayers(policy, budget)) throw unproved();
  const planned = { policy, budget, ...counted, cacheType }, predict = maxCache?.predict ?? false;
  if (policy.evicts === "early") return { way: "streaming", ...planned, realign: exceeds };
  if (exceeds) return { way: "rolling", ...planned, predict };
  const { needs, needs: { reconstruction } } = policy, { refit } = options;
  const prompts = reconstruction && repeatPrompts(model, ids, reconstruction, options.beyondTrained);
  const pieces = piecesOf(model, ids, { needs, refit }, options.beyondTrained);
  const repeated = { ...(prompts && { prompts }), ...(pieces && { pieces }) };
  const whole = { ...planned, explain, ...repeated, ...(refits(options) && { refit: options.refit }) };
  const { threshold } = policy;
  if (threshold !== undefined) return { way: "threshold", ...whole, limit: threshold };
  if (!risk) return { way: "layers", ...whole, predict };
  if (risk.kind === "worst") return { way: "threshold", ...whole, limit: risk.limit };
  return { way: "risk", ...whole, limit: risk.limit, maxCacheBytes: risk.maxCacheBytes };
}

const RIVALS = ["keep", "maxCache", "risk", "riskWorst"] as const satisfies readonly OptionName[];

/**
 * Refuses options that say what stays beside a policy whose threshold says it.
 * @throws PalisadeError usage `threshold.exclusive`.
 */
export function refuseRivals({ name, threshold }: Policy, [rival]: readonly OptionName[]): void {
  if (threshold === undefined || rival === undefined) return;
  const advice = `leave it out, or set another threshold: ${name}(threshold=${threshold - 1})`;
  const message = say`${name} keeps what scores ${threshold} or more, so ${
    option(rival)
  } can't say what stays: ${advice}`;
  throw new PalisadeError("usage", "threshold.exclusive", message, { where: option(rival) });
}

/** The context fills the trained length, and may not go beyond it. */
export function exceedsTrained(
  { contextLength }: Pick<ModelConfig, "contextLength">,
  tokens: number,
  { beyondTrained = false }: Pick<PlanOptions, "beyondTrained">,
): boolean {
  return tokens >= contextLength && !beyondTrained;
}

interface Circumstances {
  readonly risk?: Risk;
  readonly exceeds: boolean;
}

/**
 * What `keep` asks for, or what a cap leaves of it; everything where a risk takes its place. The frame's tokens are
 * protected where the budget has room for them.
 */
function plannedBudget(model: PlannedModel, ids: readonly number[], at: Circumstances, options: PlanOptions) {
  const { policy: given, maxCache } = options, { config } = model, { length } = ids;
  const { keep, least } = wantedKeep(length, config, at, options);
  const frame = frameTokens(model, ids), asked = resolveBudget(given, keep, length, config);
  const capped = maxCache ? budgetUnderCap(given, asked, maxCache.tokens) : asked;
  const policy = withFrameKept(given, frame, capped);
  const resolved = resolveBudget(policy, keep, length, config);
  const budget = maxCache ? budgetUnderCap(policy, resolved, maxCache.tokens) : resolved;
  return { policy, budget, keepCapped: budget !== resolved, least, frameTokens: frame };
}

/**
 * What is to stay. `least`: the same, where the smallest default decided. Where positions must close up below the trained
 * length, it leaves them half of that.
 */
function wantedKeep(tokens: number, config: ModelConfig, { risk, exceeds }: Circumstances, options: PlanOptions) {
  if (risk || options.policy.threshold !== undefined) return { keep: { fraction: 1 } };
  const { policy, keep } = options;
  if (keep !== undefined) return { keep: typeof keep === "object" ? keep : parseKeep(keep) };
  const share = parseKeep(DEFAULTS.keep), { contextLength } = config, wanted = leastKept(tokens, config);
  const most = exceeds ? Math.ceil(contextLength / 2) : Infinity, perHead = Math.min(wanted, most);
  if (resolveBudget(policy, share, tokens, config).perHead >= perHead) return { keep: share };
  // A share where one decides, since that grows with a text that grows.
  const grows = hasFewHeads(config) && wanted > DEFAULTS.leastKept && wanted <= most;
  const least = grows ? { fraction: leastShare(config) } : { tokens: perHead };
  return { keep: least, least };
}

/** Options given that also say what stays. */
function rivals(options: PlanOptions): OptionName[] {
  return (["keep", "maxCache"] as const).filter((name) => options[name] !== undefined);
}

/** No position reaches the trained length, because the policy evicts on the way and gaps close up. */
function closesUp({ contextLength }: ModelConfig, { perHead }: Budget, { policy, positions }: PlanOptions): boolean {
  return positions === "rerotate" && (policy.evicts === "early" || rolls(policy)) && perHead < contextLength;
}

function refits({ refit = DEFAULTS.refit }: PlanOptions): boolean {
  return refit !== "none";
}

/** A search has let go of the queries that stages go by. */
function searched(name: StageName) {
  const advice = say`take ${option("keep")} with ${option(name)}`;
  const message = say`${option("risk")} searches its budget with layers put aside: ${advice}`;
  return inputError(`${STAGES[name]}.risk`, message, option(name));
}

type StageName = "refit" | "merge" | "keyChannels";
/** What codes call them. */
const STAGES: Readonly<Record<StageName, string>> = { refit: "refit", merge: "merge", keyChannels: "key-channels" };

/** RoPE turns channels in pairs, which may be split. */
function turned() {
  const advice = say`leave out ${option("keyChannels")} or ${option("positions")} rerotate`;
  return inputError(
    "key-channels.positions",
    say`Keys that have lost channels can't be turned: ${advice}`,
    option("keyChannels"),
  );
}

/** Rows of another type are made of what stays of a layer once all of it has been read. */
function rereads() {
  const message =
    say`rows= stores what stays of a layer once all of it is read, and here tokens go while it is being read: take ${
      option("cacheType")
    }`;
  return inputError("rows.early", message, option("policy"));
}

/**
 * Refuses rows that a backend doesn't have, or a policy can't do with.
 * @throws PalisadeError input `cache-type.backend`, `key-channels.type`, `fasa.type`.
 */
export function checkRowsOf(
  backend: Pick<Backend, "packs" | "name">,
  type: CacheType,
  { needs, stages = {} }: Pick<Policy, "needs" | "stages">,
): void {
  const { keys, values } = partsOf(type);
  if (keys === values && keys !== "int4") return;
  if (needs.foresight) {
    const message = `fasa chooses among rows of keys and values of one type, and not int4: ${type} is not; take int8`;
    throw inputError("fasa.type", message, option("cacheType"));
  }
  if (stages.keyChannels !== undefined) {
    const message = say`${option("keyChannels")} needs keys and values of one type, and not int4: ${type} is not`;
    throw inputError("key-channels.type", message, option("keyChannels"));
  }
  if (backend.packs) return;
  const message = say`The ${backend.name} backend has no rows of type ${type}: take ${option("backend")} wasm`;
  throw inputError("cache-type.backend", message, option("cacheType"));
}

/** Queries read by channels of keys as they were made. */
function wholeKeys() {
  const message = say`fasa chooses by whole keys at their own positions: leave out ${option("keyChannels")} and ${
    option("positions")
  } rerotate`;
  return inputError("fasa.keys", message, option("policy"));
}

/** Nothing is evicted that a stage could make up for. */
function nothingGone() {
  const message = say`fasa evicts nothing that could be made up for: leave out ${option("merge")} and ${
    option("refit")
  }`;
  return inputError("fasa.stages", message, option("policy"));
}

/** Each gives entries other values, and biases. */
function twice() {
  const message = say`${option("merge")} and ${option("refit")} both change what stays: choose one of the two`;
  return inputError("merge.refit", message, option("merge"));
}

function crossesLayers(policy: Policy, budget: Budget): boolean {
  return crossLayerSelection(policy, budget) !== undefined;
}

/** A certificate needs the final selection's keys as they were; where layers compete they have been merged before. */
function unproved() {
  const message = say`With ${option("merge")}, ${
    option("explain")
  } needs a policy whose layers don't share their budget`;
  return inputError("merge.explain", message, option("explain"));
}

/** What is judged by the last queries, or by queries from behind the end, can't be known by a reading that evicts before they come. */
function refuseHindsight(policy: Policy, risk: Risk | undefined, options: PlanOptions): void {
  const { explain } = options, { merge, keyChannels } = policy.stages ?? {};
  if (!risk && !explain && !refits(options) && !merge && !keyChannels) return;
  const stage = refits(options) ? "refit" : merge ? "merge" : "keyChannels";
  const name = risk ? (risk.kind === "mean" ? "risk" : "riskWorst") : explain ? "explain" : stage;
  const message = `${policy.name} evicts here before the end of the context is read, so no query has seen all of it`;
  const code = risk ? "risk" : explain ? "explain" : STAGES[stage];
  throw inputError(`${code}.early`, message, option(name));
}
