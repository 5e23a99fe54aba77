/** Picks the next token from logits: greedy, or a seeded draw with temperature, top-k and top-p. */
import { inputError, option, PalisadeError, say } from "../../core/errors.ts";
import { exp } from "../../core/measure/exp.ts";
import { randomSource } from "../../core/measure/random.ts";
import { DEFAULTS } from "../defaults.ts";
import type { Choice } from "../dense/dense.ts";

/** How the next token is drawn. */
export interface SamplerOptions {
  /** 0 (default) always takes the most likely token; above, logits are divided by it. Finite, ≥ 0. */
  readonly temperature?: number;
  /** Draws among the most likely tokens that together have this probability. 0 < topP ≤ 1, default 1: all. */
  readonly topP?: number;
  /** Draws among this many most likely tokens, before `topP` counts. Integer ≥ 1, default all. */
  readonly topK?: number;
  /** Of the random numbers. Integer ≥ 0, default 0: the same input gives the same answer. */
  readonly seed?: number;
}

export interface Sampler {
  /** Whether `next` gives the most likely token, whatever came before. */
  readonly greedy: boolean;
  /**
   * The next token's id from `logits`, `[vocabulary]`, left as they are; −∞ rules a token out. Equal logits rank by
   * the lower id. Throws PalisadeError input `model.logits` when there is a NaN or +∞ among them or nothing to pick.
   */
  next(logits: Float32Array): number;
}

/**
 * A sampler; the same options and logits give the same ids in every runtime.
 *
 * Throws PalisadeError usage `sampler.temperature`, `sampler.top-p`, `sampler.top-k` or `sampler.seed` for a value out of
 * range.
 */
export function createSampler(options: SamplerOptions = {}): Sampler {
  const { temperature = DEFAULTS.temperature, topP = DEFAULTS.topP, topK, seed = DEFAULTS.seed } = options;
  check("temperature", temperature, temperature >= 0 && temperature < Infinity, "a number ≥ 0");
  check("topP", topP, topP > 0 && topP <= 1, "a number above 0 and at most 1");
  check("topK", topK, topK === undefined || (Number.isSafeInteger(topK) && topK >= 1), "an integer ≥ 1");
  check("seed", seed, Number.isSafeInteger(seed) && seed >= 0, "an integer from 0 to 2^53 − 1");
  if (temperature === 0) return { greedy: true, next: mostLikely };
  const random = randomSource(seed);
  return {
    greedy: false,
    next(logits) {
      const weights = weightsOf(logits, temperature);
      if (topK !== undefined) keepTop(weights, topK);
      return draw(weights, topP === 1 ? undefined : nucleus(weights, topP), random());
    },
  };
}

function check(name: keyof typeof CODES, value: unknown, ok: boolean, wanted: string): void {
  if (ok) return;
  const message = say`${option(name)} must be ${wanted}, not ${String(value)}`;
  throw new PalisadeError("usage", `sampler.${CODES[name]}`, message, { where: option(name) });
}

/** Ends of the errors' codes. */
const CODES = { temperature: "temperature", topP: "top-p", topK: "top-k", seed: "seed" } as const;

/**
 * The token of a choice that was made elsewhere.
 * @throws PalisadeError `model.logits` as {@link Sampler.next}.
 */
export function chosen({ token, logit }: Choice): number {
  if (!(logit < Infinity)) throw unusable(`token ${token} has ${logit}`);
  if (logit === -Infinity) throw unusable("no token is possible");
  return token;
}

/** Lowest id of the largest logit. */
function mostLikely(logits: Float32Array): number {
  let best = -1, max = -Infinity;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id];
    if (!(logit < Infinity)) throw unusable(`token ${id} has ${logit}`);
    if (logit > max) {
      max = logit;
      best = id;
    }
  }
  if (best < 0) throw unusable("no token is possible");
  return best;
}

function unusable(problem: string): PalisadeError {
  return inputError(
    "model.logits",
    `Can't pick the next token: ${problem} among the model's logits; its weights may be damaged`,
    "logits",
  );
}

/** Softmax before its division: e^((logit − largest) / temperature). A plain loop: `Float64Array.from` iterates. */
function weightsOf(logits: Float32Array, temperature: number): Float64Array {
  const best = logits[mostLikely(logits)];
  const weights = new Float64Array(logits.length);
  for (let id = 0; id < logits.length; id++) weights[id] = exp((logits[id] - best) / temperature);
  return weights;
}

/** Sets all but the `count` largest weights to 0. */
function keepTop(weights: Float64Array, count: number): void {
  if (count >= weights.length) return;
  const least = weights.toSorted()[weights.length - count];
  let ties = count;
  for (const weight of weights) if (weight > least) ties--;
  for (let id = 0; id < weights.length; id++) {
    const weight = weights[id];
    if (weight < least || (weight === least && ties-- <= 0)) weights[id] = 0;
  }
}

/** Ids of the fewest most likely tokens whose weights reach `topP` of the sum, the most likely first. */
function nucleus(weights: Float64Array, topP: number): number[] {
  let sum = 0;
  for (const weight of weights) sum += weight;
  // Tokens below this share can't have 1 − topP together, so the rest reaches topP: only the rest is sorted.
  const least = Math.max(Number.MIN_VALUE, sum * (1 - topP) / weights.length / 2);
  const ids: number[] = [];
  for (let id = 0; id < weights.length; id++) if (weights[id] >= least) ids.push(id);
  ids.sort((a, b) => weights[b] - weights[a] || a - b);
  let mass = 0, count = 0;
  while (count < ids.length && mass < topP * sum) mass += weights[ids[count++]];
  return ids.slice(0, count);
}

/** The id at fraction `at` of the summed weights, of `ids` or of all. */
function draw(weights: Float64Array, ids: readonly number[] | undefined, at: number): number {
  const length = ids?.length ?? weights.length;
  const idOf = (i: number) => ids === undefined ? i : ids[i];
  let sum = 0;
  for (let i = 0; i < length; i++) sum += weights[idOf(i)];
  let left = at * sum, last = 0;
  for (let i = 0; i < length; i++) {
    const weight = weights[idOf(i)];
    if (weight === 0) continue;
    last = idOf(i);
    left -= weight;
    if (left < 0) return last;
  }
  // Rounding left a crumb: the last possible token.
  return last;
}
