/**
 * The main job: read a context once, evict, and answer any number of questions from what was kept.
 *
 * ```ts
 * await using model = await loadModel(path, runtime);
 * using context = await openContext(model, text, { policy: "layer-defensive", keep: "20%" });
 * const { answer } = await context.ask("What is the magic number?");
 * ```
 */
import type { RaggedCache } from "../cache/ragged.ts";
import { type Keep, parseKeep, resolveBudget } from "../core/budget.ts";
import { inputError, PalisadeError, resourceError } from "../core/errors.ts";
import type { Budget, Policy } from "../core/policy.ts";
import { resolvePolicy } from "../core/registry.ts";
import { extend } from "./extend.ts";
import type { Model } from "./model.ts";
import { contextIds, questionIds } from "./prompt.ts";
import { readContext, type ReadResult } from "./read.ts";
import { createSampler, type SamplerOptions } from "./sampler.ts";

export interface ContextOptions {
  /** A policy, or its name with parameters. Default `layer-defensive`. */
  readonly policy?: Policy | string;
  /** What stays. Default `20%`. */
  readonly keep?: Keep | string;
  /** Reads a context longer than the model was trained for instead of refusing it. */
  readonly beyondTrained?: boolean;
  readonly onLayer?: (done: number, layers: number) => void;
  readonly signal?: AbortSignal;
}

export interface AskOptions extends SamplerOptions {
  /** Most tokens to generate. Default 256. */
  readonly maxTokens?: number;
  /** The reply starts with this text; it is part of the answer. */
  readonly answerPrefix?: string;
  /** Called with each piece of the answer as it is decoded, the prefix first. */
  readonly onText?: (text: string) => void;
  /** Ends the answer early; what there is comes back with finish `interrupted`. */
  readonly signal?: AbortSignal;
}

/**
 * Why an answer ended: `stop` the model ended it, `length` the token limit, `context` the trained context is full,
 * `interrupted` the caller's signal.
 */
export type Finish = "stop" | "length" | "context" | "interrupted";

export interface Answer {
  readonly question: string;
  /** The whole reply, with the answer prefix. */
  readonly answer: string;
  readonly finish: Finish;
  /** Generated ids, end token included when there was one. */
  readonly ids: readonly number[];
  readonly questionTokens: number;
  /** Milliseconds for the question's tokens, and for each generated token on average (0 when none was decoded). */
  readonly ms: { readonly question: number; readonly decodePerToken: number };
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
  /** Answers from the kept entries; afterwards the cache is as it was before the question. */
  ask(question: string, options?: AskOptions): Promise<Answer>;
}

/**
 * Reads `text` into the model and evicts.
 * PalisadeErrors (input): `context.empty`, `context.too-long`, `keep.*`, `policy.*`; (resources): `memory`.
 */
export async function openContext(model: Model, text: string, options: ContextOptions = {}): Promise<Context> {
  const policy = typeof options.policy === "object"
    ? options.policy
    : resolvePolicy(options.policy ?? "layer-defensive");
  const keep = typeof options.keep === "object" ? options.keep : parseKeep(options.keep ?? "20%");
  if (text.trim() === "") throw inputError("context.empty", "The context has no text in it", "--context");
  const ids = contextIds(model.frame, model.tokenizer, text);
  refuseTooLong(model, ids.length, options.beyondTrained ?? false);
  const budget = resolveBudget(policy, keep, ids.length, model.config);
  const read = await refuseOutOfMemory(() =>
    readContext(model.dense, model.backend, ids, {
      policy,
      budget,
      outputWeights: (layer) => model.file.readFloat32(`blk.${layer}.attn_output.weight`),
      onLayer: options.onLayer,
      signal: options.signal,
    })
  );
  const { cache, activationBytes, ms } = read;
  return {
    cache,
    policy,
    budget,
    tokens: ids.length,
    replaced: model.tokenizer.countReplaced(text),
    activationBytes,
    ms,
    ask: (question, ask = {}) => answer(model, cache, question, ask, options.beyondTrained ?? false),
    [Symbol.dispose]: () => cache[Symbol.dispose](),
  };
}

/** Leaves room for at least a question: a context that fills the trained length can't be asked anything. */
function refuseTooLong(model: Model, tokens: number, allowed: boolean): void {
  const trained = model.config.contextLength;
  if (allowed || tokens < trained) return;
  throw inputError(
    "context.too-long",
    `The context has ${tokens} tokens, but ${model.config.name} was trained on ${trained}: shorten it to less than ` +
      `${trained} tokens, question and answer included, or pass --beyond-trained to read it all the same`,
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

/** One question over the kept entries, trimmed away again at the end. */
async function answer(
  model: Model,
  cache: RaggedCache,
  question: string,
  options: AskOptions,
  beyondTrained: boolean,
): Promise<Answer> {
  const { tokenizer, dense, config } = model;
  const prefix = options.answerPrefix ?? "";
  const maxTokens = options.maxTokens ?? 256;
  const sampler = createSampler(options);
  const asked = questionIds(model.frame, tokenizer, question, prefix);
  const limit = beyondTrained ? Infinity : config.contextLength;
  if (cache.position + asked.length > limit) {
    throw inputError(
      "context.too-long",
      `Context and question have ${cache.position + asked.length} tokens, but ${config.name} was trained on ${limit}`,
      "--question",
    );
  }
  const mark = cache.mark();
  const text = tokenizer.stream();
  const ids: number[] = [];
  let reply = "";
  const emit = (piece: string) => {
    reply += piece;
    if (piece !== "") options.onText?.(piece);
  };
  const start = performance.now();
  let decodeStart = start, finish: Finish = "length";
  try {
    emit(prefix);
    let logits = await extend(dense, cache, asked, { signal: options.signal });
    decodeStart = performance.now();
    while (ids.length < maxTokens) {
      const id = sampler.next(logits);
      ids.push(id);
      if (tokenizer.endIds.has(id)) {
        finish = "stop";
        break;
      }
      emit(text.push(id));
      if (ids.length === maxTokens) break;
      if (cache.position >= limit) {
        finish = "context";
        break;
      }
      logits = await extend(dense, cache, [id], { signal: options.signal });
    }
  } catch (error) {
    if (!options.signal?.aborted) throw error;
    finish = "interrupted";
  } finally {
    cache.trim(mark);
  }
  emit(text.end());
  const steps = Math.max(0, ids.length - 1);
  return {
    question,
    answer: reply,
    finish,
    ids,
    questionTokens: asked.length,
    ms: {
      question: decodeStart - start,
      decodePerToken: steps === 0 ? 0 : (performance.now() - decodeStart) / steps,
    },
  };
}
