/** How a context is read: chosen, or refused, before anything runs. */
import { type CacheType, checkCacheType } from "../../core/cache/entry_type.ts";
import { inputError, option } from "../../core/errors.ts";
import type { OptionName } from "../../core/options.ts";
import type { Budget, Policy } from "../../core/policy/policy.ts";
import { type Keep, parseKeep, resolveBudget } from "../../core/select/budget.ts";
import type { ModelConfig } from "../config.ts";
import type { Positions } from "../decode/answer.ts";
import { DEFAULTS } from "../defaults.ts";
import { budgetUnderCap } from "../decode/max_cache.ts";
import { checkWindows } from "../decode/windows.ts";
import type { ChatFrame } from "../text/prompt.ts";
import type { TextTokenizer } from "../text/tokenizer.ts";
import type { Reading } from "./reading.ts";
import { repeatPrompts } from "./reconstruct.ts";
import { resolveRisk, type Risk, type RiskSettings } from "./risk_options.ts";
import { rolls } from "./rolling.ts";
import { contextTooLong } from "./room.ts";

/** What of a model the plan goes by. */
export interface PlannedModel {
  readonly config: ModelConfig;
  readonly tokenizer: TextTokenizer;
  readonly frame: ChatFrame;
}

export interface PlanOptions extends RiskSettings {
  readonly policy: Policy;
  /** What stays. Default `DEFAULTS.keep`, 20%. */
  readonly keep?: Keep | string;
  /** How keys and values are stored. Default `f32`. */
  readonly cacheType?: CacheType;
  /** Reads a context longer than the model was trained for instead of refusing it. */
  readonly beyondTrained?: boolean;
  /** Where kept keys stand. Default `true`. */
  readonly positions?: Positions;
  /** Certificates are wanted. */
  readonly explain?: boolean;
  /** The cap from the end of reading on; `predict`: its rule goes by the gate's scores of what was kept. */
  readonly maxCache?: { readonly tokens: number; readonly predict: boolean };
}

/**
 * The way to read the context `ids`.
 * @throws PalisadeError (usage) `risk.exclusive`; (input) `risk.*`, `keep.*`, `max-cache.policy`, `cache-type.*`,
 * `context.too-long`, `context.window`, `explain.early`.
 */
export function planReading(model: PlannedModel, ids: readonly number[], options: PlanOptions): Reading {
  const { policy, maxCache, explain, positions } = options;
  checkWindows(model.config, ids.length, option("context"));
  const risk = resolveRisk(options, policy, rivals(options));
  const { budget, keepCapped } = plannedBudget(model.config, ids.length, risk, options);
  const cacheType = checkCacheType(options.cacheType ?? DEFAULTS.cacheType);
  const exceeds = exceedsTrained(model.config, ids.length, options);
  if (exceeds && !closesUp(model.config, budget, options)) {
    throw contextTooLong(model.config, ids.length, policy, budget, positions === "rerotate");
  }
  if (exceeds || policy.evicts === "early") refuseHindsight(policy, risk, options);
  const planned = { policy, budget, keepCapped, cacheType }, predict = maxCache?.predict ?? false;
  if (policy.evicts === "early") return { way: "streaming", ...planned, realign: exceeds };
  if (exceeds) return { way: "rolling", ...planned, predict };
  const { reconstruction } = policy.needs;
  const prompts = reconstruction && repeatPrompts(model, ids, reconstruction, options.beyondTrained);
  const whole = { ...planned, explain, ...(prompts && { prompts }) };
  if (!risk) return { way: "layers", ...whole, predict };
  if (risk.kind === "worst") return { way: "threshold", ...whole, limit: risk.limit };
  return { way: "risk", ...whole, limit: risk.limit, maxCacheBytes: risk.maxCacheBytes };
}

/** The context fills the trained length, and may not go beyond it. */
export function exceedsTrained(
  { contextLength }: Pick<ModelConfig, "contextLength">,
  tokens: number,
  { beyondTrained = false }: Pick<PlanOptions, "beyondTrained">,
): boolean {
  return tokens >= contextLength && !beyondTrained;
}

/** What `keep` asks for, or what a cap leaves of it; everything where a risk takes its place. */
function plannedBudget(config: ModelConfig, tokens: number, risk: Risk | undefined, options: PlanOptions) {
  const { policy, keep = DEFAULTS.keep, maxCache } = options;
  const wanted = typeof keep === "object" ? keep : parseKeep(keep);
  const asked = resolveBudget(policy, risk ? { fraction: 1 } : wanted, tokens, config);
  const budget = maxCache ? budgetUnderCap(policy, asked, maxCache.tokens) : asked;
  return { budget, keepCapped: budget !== asked };
}

/** Options given that also say what stays. */
function rivals(options: PlanOptions): OptionName[] {
  return (["keep", "maxCache"] as const).filter((name) => options[name] !== undefined);
}

/** No position reaches the trained length, because the policy evicts on the way and gaps close up. */
function closesUp({ contextLength }: ModelConfig, { perHead }: Budget, { policy, positions }: PlanOptions): boolean {
  return positions === "rerotate" && (policy.evicts === "early" || rolls(policy)) && perHead < contextLength;
}

/** What is judged by the last queries can't be known by a reading that evicts before they come. */
function refuseHindsight(policy: Policy, risk: Risk | undefined, { explain }: PlanOptions): void {
  if (!risk && !explain) return;
  const name = !risk ? "explain" : risk.kind === "mean" ? "risk" : "riskWorst";
  const message = `${policy.name} evicts here before the end of the context is read, so no query has seen all of it`;
  throw inputError(risk ? "risk.early" : "explain.early", message, option(name));
}
