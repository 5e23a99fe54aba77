/** One question over the kept entries. */
import { type Health, healthOf } from "../../core/cache/health.ts";
import { CacheLimit, type LimitFigures, type PredictedScores } from "../../core/cache/limit.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { inputError, option } from "../../core/errors.ts";
import type { StepRule } from "../../core/rules/rule.ts";
import { DEFAULTS } from "../defaults.ts";
import { TokensAhead } from "./ahead.ts";
import type { Model } from "../model.ts";
import { controlPositions, questionIds } from "../text/prompt.ts";
import { Reply, type ReplyOptions } from "./reply.ts";
import { createSampler, type SamplerOptions } from "./sampler.ts";
import { checkStops } from "./stops.ts";

/** What `ask` can be told. */
export interface AskOptions extends SamplerOptions, ReplyOptions {
  /** Most tokens to generate, thinking included. Default 256, 2048 for a model that was told to think. */
  readonly maxTokens?: number;
  /** The reply starts with this text; it is part of the answer. */
  readonly answerPrefix?: string;
  /** Ends the answer early; what there is comes back with finish `interrupted`. */
  readonly signal?: AbortSignal;
}

/**
 * Why an answer ended: `stop` the model ended it, or said a text that does, `length` the token limit, `context` the
 * trained context is full, `interrupted` the caller's signal, `loop` it said one phrase over and over (`loops.ts`).
 */
export type Finish = "stop" | "length" | "context" | "interrupted" | "loop";

/** What `ask` gives: the reply, and what it took. */
export interface Answer {
  readonly question: string;
  /** The whole reply, with the answer prefix, without what the model thought first. */
  readonly answer: string;
  /** What the model thought before it answered, where its chat template has marks for that; else empty. */
  readonly thinking: string;
  readonly finish: Finish;
  /** Generated ids, end token included when there was one. */
  readonly ids: readonly number[];
  readonly questionTokens: number;
  /** Control tokens among `ids` that ended nothing: they are no text. */
  readonly leftOut: number;
  /** Milliseconds for the question's tokens, and for each generated token on average (0 when none was decoded). */
  readonly ms: { readonly question: number; readonly decodePerToken: number };
  /** The cache when the answer ended, question and answer in it. */
  readonly health: Health;
  /** What the cap did, where there is one. */
  readonly maxCache?: CapFigures;
}

/** What a cap did during one answer. Bytes are those of the answer's own copy of the context's cache. */
export interface CapFigures extends LimitFigures {
  /** The most live bytes. */
  readonly peakBytes: number;
  readonly allocatedBytes: number;
}

/** `true`: a kept key stays at the position it was made for. `rerotate`: kept keys close up, `RaggedCache.realign`. */
export const POSITIONS = ["true", "rerotate"] as const;
/** Where kept keys stand: one of {@link POSITIONS}. */
export type Positions = typeof POSITIONS[number];

/** What all questions to one context have in common. */
export interface DecodePlan {
  readonly positions: Positions;
  /** Goes on beyond the trained context. */
  readonly beyondTrained: boolean;
  /** The cap: entries per head on average, and the rule that evicts. */
  readonly maxCache?: { readonly tokens: number; readonly rule: StepRule; readonly predicted?: PredictedScores };
  /** Positions of the chat template's control tokens in the context. */
  readonly markers: readonly number[];
  /** The last token of a text that is gone on with: it comes before every question, since what follows it is asked. */
  readonly lead?: readonly number[];
}

/** The plan with the gate's scores of what is in the cache, for a rule that goes by them. */
export function withPredictions(
  plan: DecodePlan,
  gate: Pick<PredictedScores, "score">,
  known: readonly Float32Array[],
): DecodePlan {
  const predicted: PredictedScores = { known, score: gate.score.bind(gate) };
  return { ...plan, maxCache: plan.maxCache && { ...plan.maxCache, predicted } };
}

/**
 * Answers `question` from what `context` holds; afterwards it holds the same. An empty question goes on from the text
 * itself, read with the frame `none`.
 * PalisadeErrors (input): `context.too-long`, `question.empty`, `answer-prefix.thinking`, `stop.empty`.
 */
export async function answer(
  model: Model,
  context: RaggedCache,
  question: string,
  options: AskOptions,
  plan: DecodePlan,
): Promise<Answer> {
  const { tokenizer, dense, config } = model;
  const prefix = options.answerPrefix ?? "";
  refuseUnanswerable(model, question, prefix);
  checkStops(options.stop ?? []);
  const maxTokens = options.maxTokens ?? defaultMaxTokens(model);
  if (!Number.isInteger(maxTokens) || maxTokens < 1) {
    throw new RangeError(`ask() wants maxTokens ≥ 1, not ${maxTokens}`);
  }
  const sampler = createSampler(options);
  const asked = [...plan.lead ?? [], ...questionIds(model.frame, tokenizer, question, prefix)];
  const end = lastPosition(plan, config.contextLength);
  if (context.position + asked.length > end) {
    throw inputError(
      "context.too-long",
      `Context and question have ${context.position + asked.length} tokens, but ${config.name} was trained on ${end}`,
      option("question"),
    );
  }
  using opened = await openQuestionCache(model, context, asked, plan);
  const { cache, limit } = opened;
  const reply = new Reply(model, prefix, options);
  const ids: number[] = [];
  const tokens = new TokensAhead(dense, cache, sampler, { signal: options.signal, limit });
  const start = performance.now();
  let decodeStart = start, finish: Finish = "length";
  try {
    let id = await tokens.first(asked);
    decodeStart = performance.now();
    while (ids.push(id) <= maxTokens) {
      if (tokenizer.endIds.has(id) && !reply.goesOnBehind(id)) {
        finish = "stop";
        break;
      }
      const ending = reply.add(id);
      if (ending) {
        finish = ending;
        break;
      }
      if (ids.length === maxTokens) break;
      if (tokens.position >= end) {
        finish = "context";
        break;
      }
      id = await tokens.next(id, Math.min(maxTokens - ids.length, end - tokens.position));
    }
  } catch (error) {
    if (!options.signal?.aborted) {
      await tokens.settle();
      throw error;
    }
    finish = "interrupted";
  }
  const ended = performance.now();
  await tokens.end();
  reply.end();
  const steps = Math.max(0, ids.length - 1);
  return {
    question,
    answer: reply.answer,
    thinking: reply.thinking,
    finish,
    ids,
    questionTokens: asked.length,
    leftOut: ids.filter((id) => tokenizer.isSilent(id) && !tokenizer.endIds.has(id)).length,
    ms: {
      question: decodeStart - start,
      decodePerToken: steps === 0 ? 0 : (ended - decodeStart) / steps,
    },
    health: healthOf(cache, config.contextLength),
    ...(limit && { maxCache: capFigures(cache, limit) }),
  };
}

function refuseUnanswerable({ frame }: Model, question: string, prefix: string): void {
  if (question === "" && frame.kind !== "none") {
    const message = 'There is no question. To go on from the text itself, read it with the frame "none"';
    throw inputError("question.empty", message, option("question"));
  }
  if (prefix !== "" && frame.thinking?.asked) {
    const message = "A reply can't begin with thinking and with a given text: choose one of the two";
    throw inputError("answer-prefix.thinking", message, option("answerPrefix"));
  }
}

/** A thought is longer than an answer. */
function defaultMaxTokens({ frame }: Model): number {
  return frame.thinking?.asked ? DEFAULTS.thinkingTokens : DEFAULTS.maxTokens;
}

/** The position no token may have. Under a cap that closes its gaps, `CacheLimit` keeps every position below it. */
function lastPosition(plan: DecodePlan, trained: number): number {
  return plan.beyondTrained || (plan.maxCache && plan.positions === "rerotate") ? Infinity : trained;
}

/** The cache that one question works on. */
interface QuestionCache extends Disposable {
  readonly cache: RaggedCache;
  readonly limit?: CacheLimit;
}

/**
 * Without a cap that is the context's own cache, trimmed afterwards, which costs nothing. What a cap evicts can't be
 * trimmed back, so there it is a copy: every question starts from the same context, whatever was asked before.
 */
async function openQuestionCache(
  model: Model,
  context: RaggedCache,
  asked: readonly number[],
  plan: DecodePlan,
): Promise<QuestionCache> {
  const { maxCache, positions } = plan;
  if (!maxCache) {
    const mark = context.mark();
    return { cache: context, [Symbol.dispose]: () => context.trim(mark) };
  }
  const { contextLength, ropes } = model.config;
  const ahead = controlPositions(asked, model.tokenizer).map((at) => context.seen + at);
  const cache = await context.fork();
  try {
    const limit = new CacheLimit(cache, {
      ...maxCache,
      markers: new Set([...plan.markers, ...ahead]),
      ...(positions === "rerotate" && { realign: ropes, ...(!plan.beyondTrained && { longest: contextLength }) }),
    });
    return { cache, limit, [Symbol.dispose]: () => cache[Symbol.dispose]() };
  } catch (error) {
    cache[Symbol.dispose]();
    throw error;
  }
}

function capFigures(cache: RaggedCache, limit: CacheLimit): CapFigures {
  const { peak, allocated } = cache.bytes();
  return { ...limit.figures(), peakBytes: peak, allocatedBytes: allocated };
}
