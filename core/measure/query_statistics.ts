/**
 * What a layer's queries are like before RoPE, for keys as they are cached: mean and covariance, turned by the mean rotation
 * of the positions to come (Expected Attention, arXiv 2510.00636; kvpress 8bb29b9, `expected_attention_press.py`); or pair by
 * pair of RoPE, mean and mean length (TriAttention, arXiv 2604.04921; WeianMao/triattention 092e4dc, `pruning_utils.py`).
 * Sums are taken in doubles.
 */
import { checkRotation, type KeyRotation } from "./rotation.ts";
import type { AttentionShape } from "../shape.ts";
import { chunkChannels } from "./chunk_agreement.ts";
import { type CosSin, cosSin, cosSinsFrom } from "./cos_sin.ts";

type Floats = Float32Array | Float64Array;

/** Means over queries before RoPE. */
export interface QueryMeans {
  /** E[q], `[heads, headDim]`. */
  readonly mean: Floats;
  /** `[heads, headDim, headDim]`, divided by the count, not by the count less one. */
  readonly covariance?: Floats;
  /** E|q_f| of each pair, `[heads, pairs]`. */
  readonly lengths?: Floats;
}

export interface QueryStatisticsResult {
  /** The mean, turned, `[heads, headDim]`. */
  readonly queryMean: Float32Array;
  /** The covariance, turned on both sides, `[heads, headDim, headDim]`. */
  readonly queryCovariance: Float32Array;
}

export interface PairStatisticsResult {
  /** Dimensions that turn together, `[pairs][2]`; what RoPE doesn't turn is paired by neighbours, an odd one alone. */
  readonly pairs: readonly (readonly number[])[];
  /** The mean, turned, `[heads, headDim]`. */
  readonly pairMean: Float32Array;
  /** E|q_f| − |E[q_f]| of each pair, `[heads, pairs]`. */
  readonly pairRest: Float32Array;
}

/**
 * Running sums over the queries of one layer of a context of `length` tokens. O(heads · headDim²) a token; O(heads · headDim)
 * where `rotation` is given, whose pairs are measured then in place of the covariance.
 */
export class QueryStatistics {
  readonly #shape: AttentionShape;
  readonly #pairs?: number[][];
  /** First token that counts; the last token always does. */
  readonly #first: number;
  readonly #count: number;
  readonly #sum: Float64Array;
  /** Upper triangles of Σ q·qᵀ, `[heads, headDim, headDim]`; or Σ |q_f|, `[heads, pairs]`. */
  readonly #products: Float64Array;

  constructor(shape: AttentionShape, length: number, sinks: number, rotation?: Pick<KeyRotation, "pairs" | "rotated">) {
    const { heads, headDim } = shape;
    this.#shape = shape;
    this.#pairs = rotation && chunkChannels(headDim, rotation);
    this.#first = Math.min(sinks, length - 1);
    this.#count = length - this.#first;
    this.#sum = new Float64Array(heads * headDim);
    this.#products = new Float64Array(heads * (this.#pairs?.length ?? headDim ** 2));
  }

  /**
   * Takes the tokens from `first` on: `rows[t · stride …]` starts with the query of token `first + t` before RoPE,
   * `[heads, headDim]`. Every token of the context must come once.
   */
  add(rows: Float32Array, first: number, count: number, stride: number): void {
    const { heads, headDim } = this.#shape;
    for (let t = Math.max(0, this.#first - first); t < count; t++) {
      for (let head = 0; head < heads; head++) this.#addQuery(rows, t * stride + head * headDim, head);
    }
  }

  #addQuery(rows: Float32Array, at: number, head: number): void {
    const { headDim } = this.#shape;
    const sum = this.#sum, products = this.#products, pairs = this.#pairs;
    for (let a = 0; a < headDim; a++) {
      const value = rows[at + a], row = (head * headDim + a) * headDim;
      sum[head * headDim + a] += value;
      if (!pairs) { for (let b = a; b < headDim; b++) products[row + b] += value * rows[at + b]; }
    }
    pairs?.forEach((pair, f) => products[head * pairs.length + f] += pairLength(rows, at, pair));
  }

  /** Over all that was added. */
  means(): QueryMeans {
    const { heads, headDim } = this.#shape, products = this.#products.map((sum) => sum / this.#count);
    const mean = this.#sum.map((sum) => sum / this.#count);
    if (this.#pairs) return { mean, lengths: products };
    for (let head = 0; head < heads; head++) {
      for (let a = 0; a < headDim; a++) {
        for (let b = a; b < headDim; b++) {
          const at = (head * headDim + a) * headDim + b;
          products[at] -= mean[head * headDim + a] * mean[head * headDim + b];
          products[(head * headDim + b) * headDim + a] = products[at];
        }
      }
    }
    return { mean, covariance: products };
  }
}

/** From where what is cached will be seen. */
export interface QueriesToCome {
  /** Positions `next … next + future − 1` are meaned over; for pairs `next` + 1, 2, 4, … `future`. */
  readonly future: number;
  /** Position of the next token. */
  readonly next: number;
  /** The factor that RoPE puts on rotated queries (YaRN), 1 otherwise; that of the keys is in them. */
  readonly magnitude: number;
}

/**
 * The means as queries to come will have them: μ := R·μ and C := R·C·Rᵀ, R the mean of the rotations to come. What is in
 * the result is what is among the means: a covariance, or lengths of pairs.
 * @throws RangeError when the rotation does not fit queries of `headDim`.
 */
export function queriesToCome(
  { mean, covariance, lengths }: QueryMeans,
  { heads, headDim }: AttentionShape,
  rotation: KeyRotation,
  { future, next, magnitude }: QueriesToCome,
): Partial<QueryStatisticsResult & PairStatisticsResult> {
  checkRotation(headDim, rotation);
  const pairs = chunkChannels(headDim, rotation), turned = Float64Array.from(mean, (x) => x * magnitude);
  const both = Float64Array.from(covariance ?? [], (x) => x * magnitude ** 2);
  rotation.frequencies.forEach((frequency, j) => {
    const [a, b] = pairs[j],
      turn = meanOf(lengths ? distant(frequency, next, future) : cosSinsFrom(frequency, next, future));
    for (let head = 0; head < heads; head++) {
      rotatePair(turned, head * headDim + a, head * headDim + b, turn);
      const matrix = head * headDim ** 2;
      if (!covariance) continue;
      for (let i = 0; i < headDim; i++) rotatePair(both, matrix + a * headDim + i, matrix + b * headDim + i, turn);
      for (let i = 0; i < headDim; i++) rotatePair(both, matrix + i * headDim + a, matrix + i * headDim + b, turn);
    }
  });
  const queryMean = Float32Array.from(turned);
  if (!lengths) return { queryMean, queryCovariance: Float32Array.from(both) };
  const pairRest = Float32Array.from(lengths, (length, i) => {
    const head = Math.floor(i / pairs.length);
    return (length - pairLength(mean, head * headDim, pairs[i % pairs.length])) * magnitude;
  });
  return { pairs, pairMean: queryMean, pairRest };
}

function* distant(frequency: number, next: number, future: number): Generator<CosSin> {
  for (let distance = 1; distance <= future; distance *= 2) yield cosSin(frequency * (next + distance));
}

function meanOf(turns: Iterable<CosSin>): CosSin {
  let cos = 0, sin = 0, count = 0;
  for (const turn of turns) {
    cos += turn.cos;
    sin += turn.sin;
    count++;
  }
  return { cos: cos / count, sin: sin / count };
}

/** |q_f| of the query that lies in `values` from `at` on. */
export function pairLength(values: Floats, at: number, pair: readonly number[]): number {
  return Math.sqrt(pair.reduce((sum, d) => sum + values[at + d] ** 2, 0));
}

/**
 * Queries turned back to position 0: `[heads, L, headDim]` after RoPE → `[L, heads, headDim]` before. Within 1e−7 of
 * what was rotated, the same bits in every runtime.
 */
export function queriesBeforeRotation(
  queries: Float32Array,
  { heads, headDim }: AttentionShape,
  rotation: KeyRotation,
): Float32Array {
  checkRotation(headDim, rotation);
  const length = queries.length / (heads * headDim);
  const byToken = new Float32Array(queries.length), pairs = chunkChannels(headDim, rotation);
  for (let head = 0; head < heads; head++) {
    for (let t = 0; t < length; t++) {
      const from = (head * length + t) * headDim;
      byToken.set(queries.subarray(from, from + headDim), (t * heads + head) * headDim);
    }
  }
  rotation.frequencies.forEach((frequency, j) => {
    const [a, b] = pairs[j];
    let row = 0;
    for (const { cos, sin } of cosSinsFrom(frequency, 0, length)) {
      for (let head = 0; head < heads; head++, row += headDim) {
        rotatePair(byToken, row + a, row + b, { cos, sin: -sin });
      }
    }
  });
  return byToken;
}

function rotatePair(values: Float64Array | Float32Array, a: number, b: number, { cos, sin }: CosSin): void {
  [values[a], values[b]] = [values[a] * cos - values[b] * sin, values[a] * sin + values[b] * cos];
}
