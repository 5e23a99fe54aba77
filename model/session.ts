/**
 * The main job: read a context once, evict, and answer any number of questions from what was kept.
 *
 * ```ts
 * await using model = await loadModel(path, runtime);
 * using context = await openContext(model, text, { keep: "20%" });
 * const { answer } = await context.ask("What is the magic number?");
 * ```
 */
import type { Foretold } from "../core/cache/limit.ts";
import type { RaggedCache } from "../core/cache/ragged.ts";
import type { LayerCertificate } from "../core/worst_case/certificate.ts";
import { type CacheType, checkCacheType } from "../core/cache/entry_type.ts";
import { type Keep, parseKeep, resolveBudget } from "../core/select/budget.ts";
import { inputError, PalisadeError, resourceError } from "../core/errors.ts";
import type { Budget, Policy } from "../core/policy/policy.ts";
import { resolvePolicy } from "../core/policy/registry.ts";
import { type Answer, answer, type AskOptions, type DecodePlan, type Positions } from "./decode/answer.ts";
import type { Gate } from "./gate/file.ts";
import type { GateScorer } from "./gate/scorer.ts";
import { type WorstCase, worstCaseOf } from "./gate/worst_case.ts";
import type { SoftTokens } from "./policy_files/soft_tokens.ts";
import { budgetUnderCap, type MaxCache, resolveMaxCache } from "./decode/max_cache.ts";
import type { Model } from "./model.ts";
import { defaultPolicy } from "./default_policy.ts";
import { contextIds, controlPositions } from "./text/prompt.ts";
import { readContext, type ReadResult } from "./read/layers.ts";
import { readAtRisk, type RiskFigures } from "./read/at_risk.ts";
import { readRolling, rolls } from "./read/rolling.ts";
import { readStreaming } from "./read/streaming.ts";
import { resolveRisk, type Risk, type RiskSettings } from "./read/risk_options.ts";
import { scoreSources } from "./read/policy_inputs.ts";

export type { Answer, AskOptions, CapFigures, Finish, Positions } from "./decode/answer.ts";
export type { MaxCache } from "./decode/max_cache.ts";

export interface ContextOptions extends RiskSettings {
  /**
   * A policy, or its name with parameters. Default: `gate(combine=risk)` where the model has a gate, else `kvzip`
   * (`model/default_policy.ts`); with `riskWorst` `defensive-risk`.
   */
  readonly policy?: Policy | string;
  /** What stays. Default `20%`. */
  readonly keep?: Keep | string;
  /** How keys and values are stored, from the moment they are made. Default `f32`. */
  readonly cacheType?: CacheType;
  /** Reads a context longer than the model was trained for instead of refusing it. */
  readonly beyondTrained?: boolean;
  /** Caps the cache from the end of reading on, questions and answers included. */
  readonly maxCache?: MaxCache;
  /** Where kept keys stand. Default `true`. */
  readonly positions?: Positions;
  /** For `gate`: instead of the gate that belongs to the model. */
  readonly gate?: Gate;
  /** For `judge-q`: instead of the file it names. */
  readonly softTokens?: SoftTokens;
  /** Certificates are wanted: `Context.certificates`. */
  readonly explain?: boolean;
  readonly onLayer?: (done: number, layers: number) => void;
  readonly signal?: AbortSignal;
}

/** A read and evicted context. */
export interface Context extends Disposable {
  readonly cache: RaggedCache;
  readonly policy: Policy;
  readonly budget: Budget;
  /** Context tokens, template included. */
  readonly tokens: number;
  /** Characters of the text that the model has no token for; it read U+FFFD in their place. */
  readonly replaced: number;
  readonly activationBytes: number;
  readonly ms: ReadResult["ms"];
  /** How it decodes: positions and cap. */
  readonly plan: DecodePlan;
  /** True when the cap left the context less than `keep` asked for. */
  readonly keepCapped: boolean;
  /** The limit that took the place of `keep`; with `risk`, what the search did. */
  readonly risk?: Risk & Partial<RiskFigures> & { readonly worstCase?: WorstCase };
  /** One per layer, when asked: the cache as it was when the context had been read. */
  readonly certificates?: readonly LayerCertificate[];
  /** Answers from the kept entries; afterwards the cache is as it was before the question. */
  ask(question: string, options?: AskOptions): Promise<Answer>;
}

/**
 * Reads `text` into the model and evicts.
 * PalisadeErrors (input): `context.empty`, `context.too-long`, `keep.*`, `policy.*`, `max-cache.*`,
 * `step-policy.unknown`, `gate.*`, `risk.*`, `explain.early`, `cache-type.*`; (usage): `risk.exclusive`;
 * (resources): `memory`.
 */
export async function openContext(model: Model, text: string, options: ContextOptions = {}): Promise<Context> {
  const named = policyNamed(options);
  const keep = typeof options.keep === "object" ? options.keep : parseKeep(options.keep ?? "20%");
  if (typeof text !== "string") throw new TypeError(`openContext() wants a text, not ${typeof text}`);
  if (text.trim() === "") throw inputError("context.empty", "The context has no text in it", "--context");
  const ids = contextIds(model.frame, model.tokenizer, text);
  const policy = named ?? await defaultPolicy(model, ids, { ...options, rolling: isRolling(model, ids, options) });
  const risk = resolveRisk(options, policy, rivals(options));
  const planned = planOf(model, ids, options);
  const asked = resolveBudget(policy, risk ? { fraction: 1 } : keep, ids.length, model.config);
  const capped = planned.maxCache ? budgetUnderCap(policy, asked, planned.maxCache.tokens) : asked;
  const foretell = planned.maxCache?.rule.foretold ?? false;
  const { activationBytes, ms, cache, certificates, budget = capped, ...result } = await refuseOutOfMemory(
    () => read(model, ids, { policy, budget: capped, risk, foretell }, options),
  );
  const { figures, worstCase, gate, foretold } = result;
  const plan = foretell ? withForetold(planned, { known: foretold!, score: gate!.score.bind(gate) }) : planned;
  if (plan.positions === "rerotate") await cache.realign(model.config.rope);
  return {
    cache,
    policy,
    budget,
    tokens: ids.length,
    replaced: model.tokenizer.countReplaced(text),
    activationBytes,
    ms,
    plan,
    keepCapped: capped !== asked,
    risk: risk && { ...risk, ...figures, ...(worstCase && { worstCase }) },
    certificates,
    ask: (question, ask = {}) => answer(model, cache, question, ask, plan),
    [Symbol.dispose]: () => cache[Symbol.dispose](),
  };
}

/** The policy asked for; undefined when the model and the context decide. */
function policyNamed({ policy, riskWorst }: ContextOptions): Policy | undefined {
  if (typeof policy === "object") return policy;
  const name = policy ?? (riskWorst === undefined ? undefined : "defensive-risk");
  return name === undefined ? undefined : resolvePolicy(name);
}

/** The context doesn't fit into the trained length and may not be read beyond it. */
function isRolling({ config }: Model, ids: readonly number[], { beyondTrained = false }: ContextOptions): boolean {
  return ids.length >= config.contextLength && !beyondTrained;
}

/** Options that say what stays, as the command line calls them. */
function rivals({ keep, maxCache }: ContextOptions): string[] {
  return [...(keep === undefined ? [] : ["--keep"]), ...(maxCache === undefined ? [] : ["--max-cache"])];
}

function planOf(model: Model, ids: readonly number[], options: ContextOptions): DecodePlan {
  const markers = controlPositions(ids, model.tokenizer);
  return {
    positions: options.positions ?? "true",
    beyondTrained: options.beyondTrained ?? false,
    maxCache: options.maxCache && resolveMaxCache(options.maxCache, model, markers.length),
    markers,
  };
}

function withForetold(plan: DecodePlan, foretold: Foretold): DecodePlan {
  return { ...plan, maxCache: plan.maxCache && { ...plan.maxCache, foretold } };
}

/** What {@link read} is to do. */
interface Reading {
  readonly policy: Policy;
  readonly budget: Budget;
  readonly risk?: Risk;
  /** The gate's scores are wanted whatever the policy. */
  readonly foretell: boolean;
}

/** How a budget was found, and with what. */
interface Read extends ReadResult {
  readonly budget?: Budget;
  readonly figures?: RiskFigures;
  readonly worstCase?: WorstCase;
  readonly gate?: GateScorer;
}

/** All tokens layer by layer; or, beyond the trained context with re-rotation, chunk by chunk with eviction on the way. */
async function read(
  model: Model,
  ids: readonly number[],
  { policy, budget, risk, foretell }: Reading,
  options: ContextOptions,
): Promise<Read> {
  const { dense, backend, file, config } = model;
  const { onLayer, signal } = options;
  const rolling = isRolling(model, ids, options);
  const cacheType = checkCacheType(options.cacheType ?? "f32");
  if (rolling) refuseTooLong(model, ids.length, options.positions === "rerotate" ? { policy, budget } : undefined);
  if (rolling || policy.streams) refuseHindsight(policy, risk, options);
  const needs = foretell ? { ...policy.needs, gate: true } : policy.needs;
  const sources = await scoreSources(model, { needs }, ids, options), { gate } = sources;
  if (policy.streams) {
    const onChunk = (done: number, all: number) => onLayer?.(Math.floor(done / all * config.layers), config.layers);
    const stream = { policy, budget, gate: gate!, realign: rolling, cacheType, onChunk, signal };
    return { ...await readStreaming(dense, backend, ids, stream), gate };
  }
  if (rolling) {
    const options = { policy, budget, gate, foretell, cacheType, onLayer, signal };
    return { ...await readRolling(dense, backend, ids, options), gate };
  }
  const outputWeights = (layer: number) => file.readFloat32(`blk.${layer}.attn_output.weight`);
  const whole = { ...sources, policy, cacheType, outputWeights, explain: options.explain, onLayer, signal };
  if (risk?.kind === "mean") {
    const { risk: figures, ...result } = await readAtRisk(dense, backend, ids, { ...whole, ...risk, risk: risk.limit });
    return { ...result, figures };
  }
  if (!risk) return { ...await readContext(dense, backend, ids, { ...whole, budget, foretell }), gate };
  const worstCase = policy.foretold &&
    worstCaseOf(options.gate ?? await model.gate(), risk.limit, { ...policy.foretold, budget });
  const threshold = worstCase?.threshold ?? risk.limit;
  const result = await readContext(dense, backend, ids, { ...whole, budget, threshold });
  return { ...result, budget: budgetKept(budget, result.cache.entries()), worstCase };
}

/** The budget that a threshold came to: per head and layer on average, rounded down. */
function budgetKept(whole: Budget, entries: number): Budget {
  const { length, model: { layers, kvHeads } } = whole;
  return {
    ...whole,
    fraction: entries / (length * layers * kvHeads),
    perHead: Math.floor(entries / (layers * kvHeads)),
    perLayer: Math.floor(entries / layers),
    total: entries,
  };
}

/** What is judged by the last queries can't be known by a reading that evicts before they come. */
function refuseHindsight(policy: Policy, risk: Risk | undefined, { explain }: ContextOptions): void {
  if (!risk && !explain) return;
  const [code, where] = risk
    ? ["risk.early", risk.kind === "mean" ? "--risk" : "--risk-worst"]
    : ["explain.early", "--explain"];
  const message = `${policy.name} evicts here before the end of the context is read, so no query has seen all of it`;
  throw inputError(code, message, where);
}

/** Leaves room for at least a question: a context that fills the trained length can't be asked anything. */
function refuseTooLong(model: Model, tokens: number, rolling?: { policy: Policy; budget: Budget }): void {
  const { name, contextLength: trained } = model.config;
  if (rolling && (rolling.policy.streams || rolls(rolling.policy)) && rolling.budget.perHead < trained) return;
  const way = !rolling
    ? "pass --beyond-trained to read it all the same"
    : rolling.policy.streams || rolls(rolling.policy)
    ? `keep fewer than ${trained} tokens per head instead of ${rolling.budget.perHead}`
    : rolling.policy.foretold
    ? `evict while reading, with gate(read=stream): ${rolling.policy.name} as it is scores all of it first`
    : `name a policy that scores a key when it is made, such as streaming-llm: ${rolling.policy.name} needs all of it`;
  throw inputError(
    "context.too-long",
    `The context has ${tokens} tokens, but ${name} was trained on ${trained}: shorten it to less than ` +
      `${trained} tokens, question and answer included, or ${way}`,
    "--context",
  );
}

async function refuseOutOfMemory<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof PalisadeError || !(error instanceof RangeError)) throw error;
    if (!/allocation|array buffer|array length|out of memory/i.test(error.message)) throw error;
    throw resourceError("memory", `Not enough memory to read the context: ${error.message}`, "--context", error);
  }
}
