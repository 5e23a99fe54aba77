/**
 * The main job: read a context once, evict, and answer any number of questions from what was kept.
 *
 * ```ts
 * await using model = await loadModel(path, runtime);
 * using context = await openContext(model, text, { keep: "20%" });
 * const { answer } = await context.ask("What is the magic number?");
 * ```
 */
import { breathe } from "../runtime/breathe.ts";
import { inputError, option, PalisadeError, resourceError, say } from "../core/errors.ts";
import type { Policy } from "../core/policy/policy.ts";
import { type StageOptions, type Stages, stagesOf, withStages } from "../core/policy/stages.ts";
import { type Context, contextOf, type ContextState, laidToRest, lasting } from "./context.ts";
import { type DecodePlan, withPredictions } from "./decode/answer.ts";
import { type MaxCache, resolveMaxCache } from "./decode/max_cache.ts";
import { firstGate, type FirstGateFigures, type FirstGateOptions, wantsFirstGate } from "./gate/first.ts";
import { learn, type Learning } from "./gate/learned.ts";
import type { Model } from "./model.ts";
import { type DefaultOptions, defaultPolicy, defaultRefit } from "./default_policy.ts";
import { DEFAULTS } from "./defaults.ts";
import { checkRoom, type Expected } from "./needed_memory.ts";
import { contextIds, controlPositions, withWords } from "./text/prompt.ts";
import { leastKept } from "./read/least_kept.ts";
import { checkRowsOf, exceedsTrained, type PlanOptions, planReading, refuseRivals } from "./read/plan.ts";
import { knownGate, scoreFiles, type SourceOptions } from "./read/policy_inputs.ts";
import { filesOnce } from "./policy_files/files_once.ts";
import { checkForesees } from "./foresight/foresee.ts";
import { checkKeyChannels } from "./read/key_channels.ts";
import { storedAs } from "./read/stored_as.ts";
import { checkCacheType } from "../core/cache/entry_type.ts";
import { type Keep, parseKeep } from "../core/select/budget.ts";
import { entriesWithin, parseBytes } from "../core/select/byte_budget.ts";
import { crossLayerSelection } from "../core/select/cross_layer.ts";
import { WIDE } from "../core/select/wide.ts";
import { globalLayers } from "../core/shape.ts";
import type { ModelConfig } from "./config.ts";
import { checkMerge } from "./read/merge.ts";
import { cannotGoOn } from "./read/append.ts";
import { checkEffort, chooseBest, type Effort, type EffortFigures } from "./read/effort.ts";
import { checkRefit, REFERENCE_TOKENS } from "./read/refit.ts";
import { read } from "./read/read.ts";
import type { Reading, ReadOptions, ReadResult, ScoreFiles } from "./read/reading.ts";
import { factsOf, keepOf } from "./snapshot/facts.ts";
import type { Secret } from "./snapshot/seal/key.ts";
import type { ByteSource } from "./snapshot/bytes.ts";
import type { Search, SnapshotCache, Wanted } from "./snapshot/cache.ts";
import { fixedBudget, namedSnapshot, reuse } from "./snapshot/reuse.ts";
import { recordOf } from "./snapshot/tokens.ts";

export {
  type Answer,
  type AskOptions,
  type CapFigures,
  type Finish,
  POSITIONS,
  type Positions,
} from "./decode/answer.ts";
export type { Context } from "./context.ts";
export type { MaxCache } from "./decode/max_cache.ts";

/** How a context is read, and what is kept of it. */
export interface ContextOptions
  extends Omit<PlanOptions, "policy" | "maxCache">, SourceOptions, StageOptions, Pick<FirstGateOptions, "onFirstGate"> {
  /**
   * A policy, or its text, files included. Default: `gate(combine=risk)` where the model has a gate, or one is fitted first
   * (`learn`, `model/gate/first.ts`), else mostly `self-gate` (`model/default_policy.ts`); with `riskWorst`
   * `defensive-risk`.
   */
  readonly policy?: Policy | string;
  /**
   * In place of `keep`: bytes that what stays may take, `2MB`, or a share of the whole context as float16, `1/16`, in the
   * layers that look at everything; scales, and the biases of a refit, are counted.
   */
  readonly bytes?: string;
  /**
   * `best`: the text is repeated by the model, and what stays is stored, and refitted, as answers most for its `bytes`,
   * by default those of the default budget in float16 (`model/read/effort.ts`). Takes about twice as long to read, and
   * longer where it refits; `policy`, `keep`, risks, `cacheType` and stages are chosen then, and refused beside it. Default
   * `fast`: as the other options say.
   */
  readonly effort?: Effort;
  /** Caps the cache from the end of reading on, questions and answers included. */
  readonly maxCache?: MaxCache;
  /**
   * Words around text and question, in place of the model's: a name of `FRAMES`, or a text with `{text}` and
   * `{question}` in it. `none`: the text alone, which `ask("")` goes on from.
   */
  readonly frame?: string;
  /** Keys the identity of snapshots: one tenant's are never another's. Long and random, or nothing. */
  readonly salt?: string;
  /**
   * A snapshot of this text, or of its beginning where the rest can be read behind it, to go on from; refused unless it
   * is, made with the same options. The source is the caller's to close.
   */
  readonly snapshot?: ByteSource;
  /** Where to look for such a snapshot first; without one the text is read. Nothing is put there but by `keep`. */
  readonly snapshots?: SnapshotCache;
  /** What `snapshot`, or those of `snapshots`, are sealed or cloaked by; without it such ones are refused, or passed over. */
  readonly secret?: Secret;
  /**
   * Keeps the rows cloaked while nobody asks (KV-Cloak), by a key that only this context has. Each question, and each
   * save, then takes longer: `bench/results/secrets.md`. Default false.
   */
  readonly cloak?: boolean;
  readonly onLayer?: (done: number, layers: number) => void;
  readonly signal?: AbortSignal;
}

/**
 * Reads `text` into the model and evicts.
 * PalisadeErrors (input): `context.empty`, `context.short`, `context.too-long`, `frame.*`, `keep.*`, `policy.*`,
 * `max-cache.*`, `step-policy.unknown`, `gate.*`, `risk.*`, `refit.*`, `merge.*`, `key-channels.*`, `explain.early`, `cache-type.*`, `bytes.*`, `effort.*`;
 * (usage): `risk.exclusive`, `bytes.exclusive`, `threshold.exclusive`, `effort.exclusive`;
 * (resources): `memory.short`, `memory.module` before anything is read, `memory`.
 */
export async function openContext(loaded: Model, text: string, options: ContextOptions = {}): Promise<Context> {
  return await lasting(loaded, () => openOnce(loaded, text, options));
}

async function openOnce(loaded: Model, text: string, given: ContextOptions): Promise<Context> {
  let options = given;
  if (typeof text !== "string") throw new TypeError(`openContext() wants a text, not ${typeof text}`);
  if (text.trim() === "") throw inputError("context.empty", "The context has no text in it", option("context"));
  const reread = options.frame === undefined ? loaded : reworded(loaded, options.frame);
  const model = filesOnce(reread), { frame } = model;
  await breathe(options.signal);
  const ids = contextIds(frame, model.tokenizer, text);
  const lead = frame.kind === "none" ? leadOf(ids) : undefined;
  const best = checkEffort(options) === "best" ? bestFor(model, ids, options) : undefined;
  if (best) options = { ...options, bytes: best.bytes };
  const named = best?.policy ?? await policyNamed(model, options);
  const unguided = !named && !options.gate && !keepsWhole(options, ids.length, model.config);
  const gateToCome = unguided && await wantsFirstGate(model, ids.length, options);
  const chosen = named ?? await defaultFor(model, ids, { ...options, gateToCome });
  if (!named) options = { ...options, refit: options.refit ?? defaultRefit(chosen, model, ids, options) };
  const policy = withStages(chosen, stagesOf(options));
  checkMerge(policy.stages?.merge, model.backend);
  checkKeyChannels(policy.stages ?? {}, model.backend);
  const { refit, rows } = policy.stages ?? {};
  if (refit && options.refit === undefined) options = { ...options, refit };
  checkRefit(options.refit ?? DEFAULTS.refit, model.backend);
  for (const type of [rows, options.cacheType]) {
    if (type) checkRowsOf(model.backend, checkCacheType(type), policy);
  }
  checkForesees(policy.needs, model.backend);
  if (options.bytes !== undefined) {
    refuseRivals(policy, ["bytes"]);
    options = { ...options, keep: keepFitting(options, options.bytes, ids.length, model.config, policy.stages) };
  }
  const plan = { ...planDecoding(model, ids, options), ...(lead && { lead }) }, { maxCache } = plan;
  const cap = maxCache && { tokens: maxCache.tokens, predict: maxCache.rule.predicted ?? false };
  const reading = planReading(model, ids, { ...options, policy, maxCache: cap });
  checkRoom(model.name, model.needed(expectedOf(reading, ids.length, model.config)), model.room, "read the context");
  // Minutes on a large model, so that everything is refused before.
  const first = gateToCome ? await refuseOutOfMemory(() => firstGate(model, options)) : undefined;
  if (first) options = { ...options, gate: first.gate };
  const facts = once(() => factsOf(model, reading, plan, options));
  const replaced = model.tokenizer.countReplaced(text);
  const planned = { model, ids, reading, plan, facts, replaced, effort: best?.figures, firstGate: first?.fitted };
  const context = await refuseOutOfMemory(() => readPlanned(planned, options));
  return options.cloak ? await laidToRest(context) : context;
}

/** Whether everything is to stay, so that nothing has to be told apart. */
function keepsWhole(options: ContextOptions, tokens: number, config: ModelConfig): boolean {
  const { keep, bytes, risk, riskWorst, maxCache } = options;
  const limits = [bytes, risk, riskWorst, maxCache];
  if (keep === undefined) return limits.every((limit) => limit === undefined) && leastKept(tokens, config) === tokens;
  const parsed = typeof keep === "string" ? parseKeep(keep) : keep;
  return "fraction" in parsed ? parsed.fraction >= 1 : "tokens" in parsed && parsed.tokens >= tokens;
}

/** The entries that fit what was asked for. @throws PalisadeError usage `bytes.exclusive`, input `bytes.*`. */
function keepFitting(
  options: ContextOptions,
  bytes: string,
  tokens: number,
  config: ModelConfig,
  { rows, ...stages }: Stages = {},
): Keep {
  const rival = (["keep", "risk", "riskWorst"] as const).find((name) => options[name] !== undefined);
  if (rival) {
    const message = say`${option("bytes")} says what stays, and so does ${option(rival)}: choose one of the two`;
    throw new PalisadeError("usage", "bytes.exclusive", message, { where: option("bytes") });
  }
  const type = rows ?? checkCacheType(options.cacheType ?? DEFAULTS.cacheType);
  const { refit = DEFAULTS.refit } = options;
  const stored = storedAs({ ...stages, refit: refit === "none" ? undefined : refit }, type, config);
  return { tokens: entriesWithin(parseBytes(bytes), tokens, config, stored) };
}

/** What a reading takes at the least: of one that finds out by itself what stays, nothing stays for certain. */
function expectedOf(reading: Reading, tokens: number, config: ModelConfig): Expected {
  const { way, budget, cacheType, policy } = reading;
  const searched = way === "risk" || way === "threshold", streamed = way === "streaming" || way === "rolling";
  const kept = searched ? 0 : Math.min(1, budget.perHead / tokens);
  const refit = way === "layers" && kept < 1 && reading.refit;
  if (!refit) return { tokens, cacheType, streamed, kept };
  const layers = crossLayerSelection(policy, budget) ? globalLayers(config).length : 1;
  const waiting = { tokens: REFERENCE_TOKENS, layers, candidates: refit === "pursuit" ? WIDE : 1 };
  return { tokens, cacheType, kept, refit: waiting };
}

/** A context before it is read. */
interface PlannedContext {
  readonly model: Model;
  readonly ids: readonly number[];
  readonly reading: Reading;
  readonly plan: DecodePlan;
  readonly facts: ContextState["facts"];
  readonly replaced: number;
  readonly effort?: EffortFigures;
  readonly firstGate?: FirstGateFigures;
}

/** The same promise at every call. */
function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined;
  return () => made ??= make();
}

/** From a snapshot where there is one, else anew. */
async function readPlanned(planned: PlannedContext, options: ContextOptions): Promise<Context> {
  const { model } = planned, { snapshot, snapshots } = options;
  if (!snapshot && !snapshots) return opened(planned, await readAnew(planned, options));
  const start = performance.now(), wanted = await wantedOf(planned, options);
  const search: Search = snapshot
    ? { found: await namedSnapshot(snapshot, model, wanted) }
    : await snapshots!.find(model, wanted);
  if ("missed" in search) return opened(planned, { ...await readAnew(planned, options), snapshot: search });
  try {
    const files = await scoreFiles(model, planned.reading, planned.ids.length, options);
    const { maxCache, onLayer, signal } = options, outputWeights = outputWeightsOf(model);
    const told = { ...planned, files, maxCache, onLayer, signal, outputWeights, wanted, start };
    return opened(planned, await reuse(search.found, told));
  } catch (error) {
    // One of the cache's that is damaged costs nothing but a reading; one that was named must be right.
    if (snapshot || !(error instanceof PalisadeError && error.code.startsWith("snapshot."))) throw error;
    return opened(planned, { ...await readAnew(planned, options), snapshot: { missed: error.message } });
  }
}

function opened({ model, firstGate }: PlannedContext, state: ContextState): Context {
  return contextOf(model, firstGate ? { ...state, firstGate } : state);
}

async function wantedOf(
  { model, ids, reading, plan, facts }: PlannedContext,
  options: ContextOptions,
): Promise<Wanted> {
  return {
    ...{ facts: await facts(), ids, salt: options.salt ?? "" },
    predicted: plan.maxCache?.rule.predicted ?? false,
    certificates: options.explain ?? false,
    ...(learns(reading.policy, options) && { grown: (await model.learned())?.info.calibration.grown ?? [] }),
    cannotGoOn: cannotGoOn(reading, model.config),
    again: model.config.windows.some((window) => window > 0) ? "never" : reading.budget.window,
    fixed: fixedBudget(reading, keepOf(reading, options)),
    ...{ secret: options.secret, signal: options.signal },
  };
}

/** A gate is fitted, and begins with what earlier texts left. */
function learns({ needs }: Policy, { gate, learned = true }: ContextOptions): boolean {
  return needs.selfGate !== undefined && learned && gate === undefined;
}

async function readAnew(planned: PlannedContext, options: ContextOptions): Promise<ContextState> {
  const { model, ids, reading, facts, replaced, effort } = planned;
  const { files, result } = await carryOut(model, ids, reading, options);
  const { cache, budget = reading.budget, predicted } = result;
  const plan = planned.plan.maxCache?.rule.predicted
    ? withPredictions(planned.plan, files.gate!, predicted!)
    : planned.plan;
  if (plan.positions === "rerotate") await cache.realign(model.config.ropes);
  const selfGate = await selfGateOf(model, result, options);
  return {
    ...{ cache, policy: reading.policy, budget, frame: model.frame, plan, replaced, predicted, facts, effort },
    tokens: ids.length,
    reused: 0,
    activationBytes: result.activationBytes,
    ms: { ...result.ms, restore: 0 },
    keepCapped: reading.keepCapped ?? false,
    leastKept: reading.least !== undefined,
    frameTokens: reading.frameTokens ?? 0,
    risk: riskOf(reading, result, files),
    certificates: result.certificates,
    refit: result.refit,
    merge: result.merge,
    selfGate,
    ...(selfGate?.stored && { left: selfGate.as }),
    keyChannels: result.keyChannels,
    read: recordOf(ids, options.salt ?? ""),
    label: "",
    cost: result.ms,
  };
}

/** What a gate was fitted on, and whether it was kept for texts to come, which is not done unless asked. */
async function selfGateOf(
  model: Model,
  { fitted }: ReadResult,
  { learn: wanted = false, ...options }: ContextOptions,
): Promise<Context["selfGate"]> {
  if (!fitted) return undefined;
  const { gate, ...figures } = fitted, grown = (await knownGate(model, options))?.info.calibration.grown;
  const why = !gate ? "all of the text was repeated" : wanted ? undefined : "nobody asked for it";
  const kept: Learning = gate && wanted
    ? await learn(model, { ...figures, gate, grown })
    : { stored: false, why: why! };
  return { ...figures, ...kept };
}

function reworded(model: Model, frame: string): Model {
  return { ...model, frame: withWords(model.frame, frame) };
}

/** Takes the last token off a text that is gone on with: what comes after it is what will be asked. */
function leadOf(ids: number[]): number[] {
  if (ids.length > 1) return ids.splice(-1);
  throw inputError("context.short", "One token is too little to go on from: want two or more", option("context"));
}

/** The policy asked for; undefined when the model and the context decide. */
async function policyNamed(model: Model, { policy, riskWorst }: ContextOptions): Promise<Policy | undefined> {
  if (typeof policy === "object") return policy;
  const name = policy ?? (riskWorst === undefined ? undefined : "defensive-risk");
  return name === undefined ? undefined : await model.policy(name);
}

function bestFor(model: Model, ids: readonly number[], options: ContextOptions) {
  return chooseBest(model, ids, { ...options, rolling: exceedsTrained(model.config, ids.length, options) });
}

function defaultFor(
  model: Model,
  ids: readonly number[],
  options: ContextOptions & Pick<DefaultOptions, "gateToCome">,
): Promise<Policy> {
  return defaultPolicy(model, ids, { ...options, rolling: exceedsTrained(model.config, ids.length, options) });
}

function planDecoding(model: Model, ids: readonly number[], options: ContextOptions): DecodePlan {
  const markers = controlPositions(ids, model.tokenizer);
  return {
    positions: options.positions ?? DEFAULTS.positions,
    beyondTrained: options.beyondTrained ?? false,
    maxCache: options.maxCache && resolveMaxCache(options.maxCache, model, markers.length),
    markers,
  };
}

/** Opens the files that the scores come from, and reads. */
async function carryOut(model: Model, ids: readonly number[], reading: Reading, options: ContextOptions) {
  const files = await scoreFiles(model, reading, ids.length, options);
  const { onLayer, signal } = options, outputWeights = outputWeightsOf(model);
  return { files, result: await read(model, ids, reading, { ...files, outputWeights, onLayer, signal }) };
}

function outputWeightsOf({ file }: Model): ReadOptions["outputWeights"] {
  return (layer) => file.readFloat32(`blk.${layer}.attn_output.weight`);
}

function riskOf(reading: Reading, { figures }: ReadResult, { worstCase }: ScoreFiles): Context["risk"] {
  if (reading.way === "risk") {
    const { limit, maxCacheBytes } = reading;
    return { kind: "mean", limit, maxCacheBytes, ...figures };
  }
  if (reading.policy.threshold !== undefined) return undefined;
  if (reading.way === "threshold") return { kind: "worst", limit: reading.limit, ...(worstCase && { worstCase }) };
  return undefined;
}

async function refuseOutOfMemory<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof PalisadeError || !(error instanceof RangeError)) throw error;
    if (!/allocation|array buffer|array length|out of memory/i.test(error.message)) throw error;
    throw resourceError("memory", `Not enough memory to read the context: ${error.message}`, option("context"), error);
  }
}
