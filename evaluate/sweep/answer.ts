/**
 * An answer from an evicted cache, set beside the full cache's own.
 *
 * The full cache answers greedily first. Every other cache then reads the question and that answer in one pass
 * (teacher-forced): its next-token distributions along the way give the divergence, and as long as its own best token
 * is the full cache's, the pass IS its own greedy answer. From the first differing token on it decodes for itself.
 */
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { extend } from "../../model/decode/extend.ts";
import type { Model } from "../../model/model.ts";
import type { Finish } from "../../model/session.ts";
import { Distribution } from "../results/distribution.ts";

export interface FullAnswer {
  /** Generated ids, end token included when there was one; at least one. */
  readonly ids: readonly number[];
  readonly text: string;
  readonly finish: Finish;
  /** The next-token distribution each of `ids` was taken from. */
  readonly distributions: readonly Distribution[];
  readonly ms: { readonly question: number; readonly decode: number };
}

export interface ComparedAnswer {
  readonly ids: readonly number[];
  readonly text: string;
  readonly finish: Finish;
  /** Index of the first token that is not the full cache's; null when the answers are the same. */
  readonly firstDifference: number | null;
  /** Kullback–Leibler divergence from the full cache's next-token distribution, nats, over the full answer's tokens. */
  readonly kl: { readonly mean: number; readonly max: number };
  /** `question` is the pass over question and full answer, `decode` what came after the first difference. */
  readonly ms: { readonly question: number; readonly decode: number };
}

export interface AnswerOptions {
  readonly maxNewTokens: number;
  /** Positions there are; the answer ends there with finish `context`. */
  readonly contextLength: number;
  readonly signal?: AbortSignal;
}

type Engine = Pick<Model, "dense" | "tokenizer" | "config">;

/** The full cache's greedy answer to the tokens `asked`; the cache is as before afterwards. */
export async function answerFully(
  model: Engine,
  cache: RaggedCache,
  asked: readonly number[],
  options: AnswerOptions,
): Promise<FullAnswer> {
  const mark = cache.mark();
  try {
    const start = performance.now();
    const first = await extend(model.dense, cache, asked, options);
    const middle = performance.now();
    const { ids, finish, logits } = await decode(model, cache, first, options);
    const ms = { question: middle - start, decode: performance.now() - middle };
    return { ids, finish, text: textOf(model, ids), distributions: logits.map((row) => new Distribution(row)), ms };
  } finally {
    cache.trim(mark);
  }
}

/** The answer of an evicted `cache` to the same tokens; the cache is as before afterwards. */
export async function answerBeside(
  model: Engine,
  cache: RaggedCache,
  asked: readonly number[],
  full: FullAnswer,
  options: AnswerOptions,
): Promise<ComparedAnswer> {
  const { vocabulary } = model.config;
  const mark = cache.mark();
  try {
    const start = performance.now();
    const logits = await forcedLogits(model, cache, asked, full, options);
    const question = performance.now() - start;
    const rowOf = (i: number) => logits.subarray(i * vocabulary, (i + 1) * vocabulary);
    const divergences = full.distributions.map((distribution, i) => distribution.divergence(rowOf(i)));
    const at = full.ids.findIndex((id, i) => best(rowOf(i)) !== id);
    const middle = performance.now();
    const own = at < 0 ? full : await branch(model, cache, rowOf(at), at, mark, asked, full, options);
    return {
      ids: own.ids,
      text: own === full ? full.text : textOf(model, own.ids),
      finish: own.finish,
      firstDifference: at < 0 ? null : at,
      kl: { mean: divergences.reduce((a, b) => a + b, 0) / divergences.length, max: Math.max(...divergences) },
      ms: { question, decode: performance.now() - middle },
    };
  } finally {
    cache.trim(mark);
  }
}

/**
 * Logits along the full answer, `[ids, vocabulary]`. In one pass, but where single queries read a part: tokens that come
 * together read everything, so those of the answer come one by one there.
 */
async function forcedLogits(
  { dense, config: { vocabulary } }: Engine,
  cache: RaggedCache,
  asked: readonly number[],
  { ids }: FullAnswer,
  { signal }: AnswerOptions,
): Promise<Float32Array> {
  const forced = ids.slice(0, -1);
  if (!cache.foresees) return await extend(dense, cache, [...asked, ...forced], { signal, rows: ids.length });
  const logits = new Float32Array(ids.length * vocabulary);
  logits.set(await extend(dense, cache, asked, { signal }));
  for (const [i, id] of forced.entries()) {
    logits.set(await extend(dense, cache, [id], { signal }), (i + 1) * vocabulary);
  }
  return logits;
}

/**
 * Goes back to the first differing token and decodes on from there. A window layer has let go of what later tokens didn't
 * see, so there the way up to that token is gone again.
 */
async function branch(
  model: Engine,
  cache: RaggedCache,
  first: Float32Array,
  at: number,
  mark: ReturnType<RaggedCache["mark"]>,
  asked: readonly number[],
  full: FullAnswer,
  options: AnswerOptions,
): Promise<{ ids: number[]; finish: Finish }> {
  if (cache.globals.length === cache.shape.layers) {
    cache.trim({
      position: mark.position + asked.length + at,
      lengths: mark.lengths.map((heads) => heads.map((length) => length + asked.length + at)),
    });
  } else {
    cache.trim(mark);
    // For the caller, who trims back once more.
    cache.mark();
    await extend(model.dense, cache, [...asked, ...full.ids.slice(0, at)], { signal: options.signal });
  }
  const left = { ...options, maxNewTokens: options.maxNewTokens - at };
  const { ids, finish } = await decode(model, cache, first, left);
  return { ids: [...full.ids.slice(0, at), ...ids], finish };
}

/** Greedy decoding that begins with the logits `first`. */
async function decode(model: Engine, cache: RaggedCache, first: Float32Array, options: AnswerOptions) {
  const ids: number[] = [], logits: Float32Array[] = [];
  let row = first;
  let finish: Finish = "length";
  while (true) {
    const id = best(row);
    ids.push(id);
    logits.push(row);
    if (model.tokenizer.endIds.has(id)) finish = "stop";
    else if (ids.length < options.maxNewTokens) {
      if (cache.position < options.contextLength) {
        row = await extend(model.dense, cache, [id], { signal: options.signal });
        continue;
      }
      finish = "context";
    }
    return { ids, logits, finish };
  }
}

/** The first of the largest, as the sampler at temperature 0. */
function best(logits: Float32Array): number {
  let at = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[at]) at = i;
  return at;
}

function textOf({ tokenizer }: Engine, ids: readonly number[]): string {
  const stream = tokenizer.stream();
  let text = "";
  for (const id of ids) if (!tokenizer.endIds.has(id) && !tokenizer.isSilent(id)) text += stream.push(id);
  return text + stream.end();
}
