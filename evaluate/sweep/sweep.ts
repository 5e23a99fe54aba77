/**
 * The cells of one sample: generate it, read it once, answer it from every evicted cache. This is the unit to schedule
 * from outside: it needs a loaded model and a {@link CellGroup}, knows which cells are done by their ids, and yields lines.
 */
import { resolveBudget } from "../../core/select/budget.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import { inputError, option, PalisadeError, say } from "../../core/errors.ts";
import type { GateTarget, Policy } from "../../core/policy/policy.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import type { Gate } from "../../model/gate/file.ts";
import type { Model } from "../../model/model.ts";
import { fileHash } from "../../model/policy_files/policy_files.ts";
import { isCalibrated } from "../../model/statistics/needed.ts";
import { FRAMES, frameText, LINE } from "../../model/text/frames.ts";
import { contextIds, questionIds } from "../../model/text/prompt.ts";
import { openContext } from "../../model/session.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { answerBeside, answerFully, type ComparedAnswer, type FullAnswer } from "./answer.ts";
import { REFERENCE_TOKENS } from "../../model/read/refit.ts";
import {
  forkCache,
  forkMerged,
  prefillOnce,
  pursuedOf,
  readingsOf,
  refitFork,
  type SharedPrefill,
  sharesPrefill,
  thinFork,
} from "./shared_prefill.ts";
import type { Haystack } from "../tasks/haystack.ts";
import { scoreAnswer } from "../tasks/metrics.ts";
import { refuseRepeated } from "./lists.ts";
import { type AskedCase, type CellGroup, fittedCase } from "./plan.ts";
import { cellId, type CellInputs, hashOf, type Protocol, RESULT_FORMAT, type ResultLine } from "../results/results.ts";
import { shadingOf } from "../report/shading.ts";
import { sampleSeed } from "../tasks/draw.ts";
import type { Prompt, Sample } from "../tasks/interface.ts";

/** A loaded model and what its cells' ids need to know of it. */
export interface Subject {
  readonly model: Model;
  readonly runtime: Runtime;
  /** SHA-256 of the model file. */
  readonly sha256: string;
  readonly palisade: string;
}

export interface GroupOptions {
  readonly seed: number;
  readonly protocol: Protocol;
  readonly haystack: Haystack;
  /** Cells that need not be computed. */
  readonly isDone: (id: string) => boolean;
  /** Samples of each task whose lines hold the tokens and how many heads keep each. Default 1, contexts up to 8192. */
  readonly shaded?: number;
  readonly beyondTrained?: boolean;
  /** How the caches store keys and values, the full one too. Default `f32`. */
  readonly cacheType?: CacheType;
  readonly onStep?: (label: string, done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** Longest context whose tokens are put into a line. */
const MOST_SHADED = 8192;

/** One case of the group with its id. */
interface Cell extends AskedCase {
  readonly inputs: CellInputs;
  readonly id: string;
}

/** A sample as its model sees it. */
export interface MeasuredSample {
  readonly sample: Sample;
  /** Text to be read and compressed. */
  readonly context: string;
  /** Token ids of context and question. */
  readonly ids: readonly number[];
  readonly asked: readonly number[];
}

/**
 * Makes a group's sample and counts its tokens; nothing is read.
 * @throws PalisadeError (input) `context.too-long`, `length.*`, `haystack.*`, with the sample's place in its file.
 */
export function measureSample(
  { model }: Pick<Subject, "model">,
  group: CellGroup,
  options: Pick<GroupOptions, "seed" | "haystack" | "protocol" | "beyondTrained">,
): MeasuredSample {
  const { beyondTrained = false } = options, { contextLength } = model.config;
  // Not made at all: it may be longer than memory.
  if (group.length !== null && group.length > 2 * contextLength) refuseTooLong(model, group.length, beyondTrained);
  const sample = makeSample(model, group, options);
  const prompt = promptFor(sample, options.protocol);
  const ids = contextIds(model.frame, model.tokenizer, prompt.context);
  const asked = questionIds(model.frame, model.tokenizer, prompt.question, prompt.answerPrefix);
  refuseTooLong(model, ids.length + asked.length + sample.maxNewTokens, beyondTrained, sample.where);
  return { sample, context: prompt.context, ids, asked };
}

/**
 * Computes the group's missing cells and yields each as soon as it is there: those of one reading after another, each in the
 * order given, then those that read for themselves. A cell that
 * can't be computed doesn't cost the others: they come first, then the refusal.
 * @throws PalisadeError as {@link measureSample}; `keep.*`, `context.*`, `policy.*` and the like for single cells.
 */
export async function* runGroup(
  subject: Subject,
  group: CellGroup,
  cases: readonly AskedCase[],
  options: GroupOptions,
): AsyncGenerator<ResultLine> {
  const { model } = subject;
  const { sample, context, ids, asked } = measureSample(subject, group, options);
  const refused = new Refusals();
  const cells: Cell[] = [];
  for (const each of cases) {
    const cell = await refused.unless(each, async () => {
      const fitted = fittedCase(each, ids.length, model.config, options.cacheType ?? DEFAULTS.cacheType);
      return cellOf(subject, group, sample, ids.length, await named(subject, fitted), options);
    });
    if (cell) cells.push(cell);
  }
  refuseRepeated(cells, { key: ({ id }) => id, name: ({ asked: { policy } }) => policy, where: "policies" });
  const missing = cells.filter(({ id }) => !options.isDone(id));
  if (missing.length === 0) return refused.end();

  const answering = {
    maxNewTokens: sample.maxNewTokens,
    contextLength: options.beyondTrained ? Infinity : model.config.contextLength,
    signal: options.signal,
  };
  // Where layers look at others' rows each case reads for itself.
  const shares = (policy: Policy) => !model.config.sources && sharesPrefill(policy);
  const [first = [], ...others] = readingsOf(missing.filter(({ policy }) => shares(policy)));
  const read = (some: readonly Cell[]) => prefillAllowed(model, ids, some, refused, options);
  using whole = await read(first);
  const full = await answerFully(model, whole.prefill.cache, asked, answering);
  const one = async ({ cell, prefill, evict }: Eviction) => {
    const evicted = await evict(), { cache } = evicted, own = cache !== whole.prefill.cache;
    try {
      const answer = own ? await answerBeside(model, cache, asked, full, answering) : sameAnswer(full);
      const tokens = { context: ids.length, question: asked.length, answer: answer.ids.length, full: full.ids.length };
      const shading = shade(group, model, ids, cache, options);
      return lineOf(subject, cell, group, sample, { evicted, prefill, full, answer, tokens, shading });
    } finally {
      if (own) cache[Symbol.dispose]();
    }
  };
  let answered = 0;
  for await (const eviction of evictionsOf(whole, others, read)) {
    options.onStep?.("answering, cell", answered++, missing.length);
    const line = await refused.unless(eviction.cell, () => one(eviction));
    if (line) yield line;
  }
  for (const cell of missing.filter(({ policy }) => !shares(policy))) {
    options.onStep?.("answering, cell", answered++, missing.length);
    const evict = () => readAlone(model, context, cell, options);
    const line = await refused.unless(cell, () => one({ cell, prefill: whole.prefill, evict }));
    if (line) yield line;
  }
  refused.end();
}

/** A cell, the reading that it goes by, and how its evicted cache is made. */
interface Eviction {
  readonly cell: Cell;
  readonly prefill: SharedPrefill;
  readonly evict: () => Promise<Evicted>;
}

/** The cells of `whole`, then those of each of `others`, which is read when its turn has come and gone afterwards. */
async function* evictionsOf(
  whole: AllowedPrefill,
  others: readonly (readonly Cell[])[],
  read: (cells: readonly Cell[]) => Promise<AllowedPrefill>,
): AsyncGenerator<Eviction> {
  const each = ({ shared, prefill }: AllowedPrefill) =>
    shared.map((cell, at) => ({ cell, prefill, evict: () => fork(prefill, at) }));
  yield* each(whole);
  for (const cells of others) {
    using reading = await read(cells);
    yield* each(reading);
  }
}

/** Reads once for those of the cells, which can share it, that can be computed; for the full answer, when there is none. */
async function prefillAllowed(
  model: Model,
  ids: readonly number[],
  cells: readonly Cell[],
  refused: Refusals,
  options: GroupOptions,
): Promise<AllowedPrefill> {
  const read = (cells: readonly Cell[]) =>
    prefillOnce(model, ids, cells, {
      ...(cells.some(({ policy }) => policy.stages?.refit) && { referenceTokens: REFERENCE_TOKENS }),
      beyondTrained: options.beyondTrained,
      cacheType: options.cacheType,
      signal: options.signal,
      onLayer: (done, layers) => options.onStep?.("reading, layer", done, layers),
    });
  try {
    return allowed(cells, await read(cells));
  } catch (error) {
    if (!isRefusal(error) || cells.length === 0) throw error;
  }
  // One of them spoils the reading for all: each by itself says which.
  const shared: Cell[] = [];
  for (const cell of cells) {
    const alone = await refused.unless(cell, () => read([cell]));
    alone?.[Symbol.dispose]();
    if (alone) shared.push(cell);
  }
  return allowed(shared, await read(shared));
}

/** Cells that can be computed, and the reading that they share. */
interface AllowedPrefill extends Disposable {
  readonly shared: readonly Cell[];
  readonly prefill: SharedPrefill;
}

function allowed(shared: readonly Cell[], prefill: SharedPrefill): AllowedPrefill {
  return { shared, prefill, [Symbol.dispose]: () => prefill[Symbol.dispose]() };
}

function isRefusal(error: unknown): error is PalisadeError {
  return error instanceof PalisadeError && error.kind === "input";
}

/** Cells of a group that can't be computed. */
class Refusals {
  readonly #all: { readonly asked: AskedCase["asked"]; readonly error: PalisadeError }[] = [];

  /** The result of `work`; undefined, and noted, when it was refused. */
  async unless<T>({ asked }: AskedCase, work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      if (!isRefusal(error)) throw error;
      this.#all.push({ asked, error });
      return undefined;
    }
  }

  /** Throws what there was; the first reason stands for all, every cell is named. */
  end(): void {
    const [first] = this.#all;
    if (!first) return;
    const cells = this.#all.map(({ asked: { policy, keep } }) => `${policy} at ${keep}`).join(", ");
    throw first.error.again({ more: ` (${cells})` });
  }
}

/** Nothing was evicted: the answer is the full cache's. */
function sameAnswer({ ids, text, finish, ms }: FullAnswer): ComparedAnswer {
  return { ids, text, finish, ms, firstDifference: null, kl: { mean: 0, max: 0 } };
}

/**
 * The sample of a group, the same for the same seed, haystack, tokenizer and chat frame.
 * @throws PalisadeError `length.too-small`, `haystack.*`.
 */
export function makeSample(
  model: Pick<Model, "frame" | "tokenizer">,
  { task, length, sample: index }: CellGroup,
  { seed, haystack }: Pick<GroupOptions, "seed" | "haystack">,
): Sample {
  const promptTokens = ({ context, question, answerPrefix }: Prompt) =>
    contextIds(model.frame, model.tokenizer, context).length +
    questionIds(model.frame, model.tokenizer, question, answerPrefix).length;
  return task.generate({
    length: length ?? 0,
    seed: sampleSeed(seed, task.name, length ?? 0, index),
    index,
    haystack,
    promptTokens,
    textTokens: (text) => model.tokenizer.encode(text).length,
  });
}

/** `query-aware` puts the question into the text that is compressed, as kvpress's evaluation does. */
function promptFor(sample: Sample, protocol: Protocol): Omit<Prompt, "question"> & { readonly question?: string } {
  if (protocol === "context-first") return sample;
  return { context: `${sample.context}\n${sample.question}`, answerPrefix: sample.answerPrefix };
}

function refuseTooLong(model: Pick<Model, "config">, tokens: number, allowed: boolean, where?: string): void {
  const { contextLength, name } = model.config;
  if (allowed || tokens <= contextLength) return;
  const what = where ? `The case in ${where}` : "A sample";
  const advice = where ? "shorten it" : say`ask for a shorter ${option("length")}`;
  const problem = `${what} takes ${tokens} tokens, answer included, but ${name} was trained on ${contextLength}`;
  const message = say`${problem}: ${advice}, or pass ${option("beyondTrained")}`;
  throw inputError("context.too-long", message, where ?? option("length"));
}

function cellOf(
  { model, runtime, sha256, palisade }: Subject,
  { task, length, sample: index }: CellGroup,
  sample: Sample,
  contextTokens: number,
  each: AskedCase,
  { seed, protocol, haystack, cacheType = DEFAULTS.cacheType }: GroupOptions,
): Cell {
  const { model: _, ...budget } = resolveBudget(each.policy, each.keep, contextTokens, model.config);
  const { context, question, answerPrefix, answers, metric, maxNewTokens } = sample;
  const inputs: CellInputs = {
    format: RESULT_FORMAT,
    model: { name: model.config.name, sha256 },
    frame: frameHash(model.frame, runtime),
    sampleHash: hashOf({ context, question, answerPrefix, answers, metric, source: task.source }, runtime),
    task: task.name,
    length,
    sample: index,
    seed,
    haystack: task.sized ? { name: haystack.name, sha256: haystack.sha256 } : null,
    protocol,
    ...(cacheType !== "f32" && { cacheType }),
    maxNewTokens,
    policy: { name: each.policy.name, parameters: each.policy.parameters },
    keep: each.keep,
    ...(each.bytes && { bytesAsked: each.asked.keep }),
    budget,
    engines: { palisade, backend: model.backend.detail, dense: model.dense.detail },
  };
  return { ...each, inputs, id: cellId(inputs, runtime) };
}

/** What is written around the texts; what ends an answer is no part of it, nor is the line feed that joined them first. */
function frameHash({ prefix, suffix, words }: Model["frame"], runtime: Runtime): string {
  const text = frameText(words);
  return hashOf({ prefix, suffix, ...(text !== FRAMES[LINE] && { words: text }) }, runtime);
}

/** A policy that works with a gate has its hash among its parameters: another gate makes another cell. */
async function named(subject: Subject, each: AskedCase): Promise<AskedCase> {
  const { needs } = each.policy, { model, runtime } = subject;
  if (needs.gate) return withParameter(each, "gate", await gateHash(subject, needs.gate));
  // A file that is named is known by itself.
  if (needs.file) return each;
  if (needs.foresight) return withParameter(each, "chunksOf", fileHash("chunks", await model.chunks(), runtime));
  if (needs.softTokens) {
    return withParameter(each, "softTokensOf", fileHash("soft-tokens", await model.softTokens(), runtime));
  }
  if (!isCalibrated(needs)) return each;
  return withParameter(each, "statisticsOf", fileHash("statistics", await model.statistics(), runtime));
}

function withParameter(each: AskedCase, name: string, value: string): AskedCase {
  return { ...each, policy: { ...each.policy, parameters: { ...each.policy.parameters, [name]: value } } };
}

const gateHashes = new WeakMap<Gate, string>();

async function gateHash({ model, runtime }: Subject, target: GateTarget): Promise<string> {
  const gate = await model.gate({ target }), known = gateHashes.get(gate);
  if (known) return known;
  const hash = fileHash("gate", gate, runtime);
  gateHashes.set(gate, hash);
  return hash;
}

/** An evicted cache and what it took to make it. */
interface Evicted {
  readonly cache: RaggedCache;
  readonly evictMs: number;
  readonly forkMs: number;
  readonly prefillMs?: number;
}

/** The full cache itself when everything stays, a copy of what stays otherwise. */
async function fork(prefill: SharedPrefill, at: number): Promise<Evicted> {
  const each = prefill.cases[at], { kept, evictMs, policy: { stages } } = each;
  const { rows = prefill.cache.type } = stages ?? {};
  if (kept === undefined && rows === prefill.cache.type && !stages?.keyChannels) {
    return { cache: prefill.cache, evictMs, forkMs: 0 };
  }
  const start = performance.now();
  const pursued = each.choices && await pursuedOf(prefill, each, { refit: "pursuit" });
  const chosen = performance.now();
  const cache = each.steps
    ? await forkMerged(prefill, each, rows)
    : await forkCache(prefill.cache, pursued ?? kept ?? everything(prefill.cache), rows);
  // A merge is a part of evicting.
  const forkMs = each.steps ? 0 : performance.now() - chosen;
  try {
    if (stages?.refit && kept) await refitFork(cache, prefill, { refit: stages.refit });
    if (stages?.keyChannels) await thinFork(cache, prefill, each);
  } catch (error) {
    cache[Symbol.dispose]();
    throw error;
  }
  return { cache, evictMs: evictMs + performance.now() - start - forkMs, forkMs };
}

function everything(cache: RaggedCache): Int32Array[][] {
  const { globals, shape: { kvHeads } } = cache;
  return globals.map((layer) => Array.from({ length: kvHeads }, (_, head) => cache.positions(layer, head)));
}

async function readAlone(model: Model, text: string, cell: Cell, options: GroupOptions): Promise<Evicted> {
  const { policy, keep } = cell;
  const { beyondTrained, cacheType, signal } = options;
  const { cache, ms } = await openContext(model, text, {
    ...{ policy, beyondTrained, cacheType, signal },
    ...(policy.threshold === undefined && { keep }),
    // A cell is the same on every machine, whatever was read there before.
    learned: false,
  });
  return { cache, evictMs: ms.evict, forkMs: 0, prefillMs: ms.prefill };
}

function headCounts(cache: RaggedCache): number[][] {
  const { globals, shape: { kvHeads } } = cache;
  return globals.map((layer) => Array.from({ length: kvHeads }, (_, head) => cache.length(layer, head)));
}

function shade(group: CellGroup, model: Model, ids: readonly number[], cache: RaggedCache, options: GroupOptions) {
  if (group.sample >= (options.shaded ?? 1) || ids.length > MOST_SHADED) return undefined;
  return shadingOf(cache, model.tokenizer, ids);
}

function lineOf(
  { runtime, model }: Subject,
  { id, inputs, asked }: Cell,
  { task: { source, file } }: CellGroup,
  sample: Sample,
  { evicted, prefill, full, answer, tokens, shading }: {
    evicted: Evicted;
    prefill: SharedPrefill;
    full: FullAnswer;
    answer: ComparedAnswer;
    tokens: ResultLine["tokens"];
    shading: ResultLine["shading"];
  },
): ResultLine {
  const score = (text: string) => scoreAnswer(sample.metric, text, sample.answers);
  return {
    id,
    ...inputs,
    asked,
    question: sample.question,
    answerPrefix: sample.answerPrefix,
    expected: sample.answers,
    metric: sample.metric,
    answer: answer.text,
    finish: answer.finish,
    score: score(answer.text),
    full: { answer: full.text, score: score(full.text) },
    firstDifference: answer.firstDifference,
    kl: answer.kl,
    tokens,
    kept: headCounts(evicted.cache),
    bytes: { live: evicted.cache.bytes().live, full: prefill.cache.bytes().live },
    ms: {
      prefill: evicted.prefillMs ?? prefill.ms.prefill,
      observe: prefill.ms.observe,
      evict: evicted.evictMs,
      fork: evicted.forkMs,
      ...answer.ms,
    },
    ...(shading && { shading }),
    modelName: model.name,
    ...(source !== undefined && file !== undefined && { source: { file, sha256: source } }),
    runtime: `${runtime.name} ${runtime.version}`,
    at: new Date().toISOString(),
  };
}
