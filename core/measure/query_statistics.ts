/**
 * What a layer's queries are like: mean and covariance before RoPE, turned by the mean rotation of the positions to
 * come. Expected Attention, arXiv 2510.00636; kvpress 8bb29b9, `expected_attention_press.py`. Sums are taken in doubles.
 */
import type { QueryStatisticsNeed } from "../policy/policy.ts";
import { checkRotation, type KeyRotation } from "./rotation.ts";
import type { AttentionShape } from "../shape.ts";
import { type CosSin, cosSinsFrom } from "./cos_sin.ts";

export interface QueryStatisticsResult {
  /** `[heads, headDim]`. */
  readonly queryMean: Float32Array;
  /** `[heads, headDim, headDim]`, divided by the count, not by the count less one. */
  readonly queryCovariance: Float32Array;
}

/** Running sums over the queries of one layer of a context of `length` tokens. O(heads · headDim²) a token. */
export class QueryStatistics {
  readonly #shape: AttentionShape;
  readonly #length: number;
  readonly #future: number;
  /** First token that counts; the last token always does. */
  readonly #first: number;
  readonly #sum: Float64Array;
  /** Upper triangles of Σ q·qᵀ, `[heads, headDim, headDim]`. */
  readonly #products: Float64Array;

  constructor(shape: AttentionShape, length: number, { sinks, future }: QueryStatisticsNeed) {
    this.#shape = shape;
    this.#length = length;
    this.#future = future;
    this.#first = Math.min(sinks, length - 1);
    this.#sum = new Float64Array(shape.heads * shape.headDim);
    this.#products = new Float64Array(shape.heads * shape.headDim ** 2);
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
    const sum = this.#sum, products = this.#products;
    for (let a = 0; a < headDim; a++) {
      const value = rows[at + a], row = (head * headDim + a) * headDim;
      sum[head * headDim + a] += value;
      for (let b = a; b < headDim; b++) products[row + b] += value * rows[at + b];
    }
  }

  /**
   * The statistics after the mean rotation over positions `next … next + future − 1`. `magnitude`: the factor that
   * RoPE puts on rotated queries (YaRN), 1 otherwise.
   */
  result(rotation: KeyRotation, magnitude = 1, next = this.#length): QueryStatisticsResult {
    const { heads, headDim } = this.#shape;
    const count = this.#length - this.#first;
    const mean = this.#sum.map((sum) => sum / count * magnitude);
    const covariance = new Float64Array(this.#products.length);
    for (let head = 0; head < heads; head++) {
      for (let a = 0; a < headDim; a++) {
        for (let b = a; b < headDim; b++) {
          const at = (head * headDim + a) * headDim + b;
          const product = mean[head * headDim + a] * mean[head * headDim + b];
          const value = this.#products[at] / count * magnitude ** 2 - product;
          covariance[at] = covariance[(head * headDim + b) * headDim + a] = value;
        }
      }
    }
    this.#rotate(mean, covariance, rotation, next);
    return { queryMean: Float32Array.from(mean), queryCovariance: Float32Array.from(covariance) };
  }

  /** μ := R·μ and C := R·C·Rᵀ in place; R is the mean of the rotations to come. */
  #rotate(means: Float64Array, covariance: Float64Array, rotation: KeyRotation, next: number): void {
    const { heads, headDim } = this.#shape;
    checkRotation(headDim, rotation);
    rotation.frequencies.forEach((frequency, j) => {
      const mean = this.#meanCosSin(frequency, next);
      const [a, b] = pairOf(rotation, j);
      const turn = (values: Float64Array, x: number, y: number) => rotatePair(values, x, y, mean);
      for (let head = 0; head < heads; head++) {
        turn(means, head * headDim + a, head * headDim + b);
        const matrix = head * headDim ** 2;
        for (let i = 0; i < headDim; i++) turn(covariance, matrix + a * headDim + i, matrix + b * headDim + i);
        for (let i = 0; i < headDim; i++) turn(covariance, matrix + i * headDim + a, matrix + i * headDim + b);
      }
    });
  }

  #meanCosSin(frequency: number, next: number): CosSin {
    let cos = 0, sin = 0;
    for (const turn of cosSinsFrom(frequency, next, this.#future)) {
      cos += turn.cos;
      sin += turn.sin;
    }
    return { cos: cos / this.#future, sin: sin / this.#future };
  }
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
  const byToken = new Float32Array(queries.length);
  for (let head = 0; head < heads; head++) {
    for (let t = 0; t < length; t++) {
      const from = (head * length + t) * headDim;
      byToken.set(queries.subarray(from, from + headDim), (t * heads + head) * headDim);
    }
  }
  rotation.frequencies.forEach((frequency, j) => {
    const [a, b] = pairOf(rotation, j);
    let row = 0;
    for (const { cos, sin } of cosSinsFrom(frequency, 0, length)) {
      for (let head = 0; head < heads; head++, row += headDim) {
        rotatePair(byToken, row + a, row + b, { cos, sin: -sin });
      }
    }
  });
  return byToken;
}

/** Indices of the two dimensions that turn together. */
function pairOf({ pairs, rotated }: KeyRotation, j: number): [number, number] {
  return pairs === "interleaved" ? [2 * j, 2 * j + 1] : [j, j + rotated / 2];
}

function rotatePair(values: Float64Array | Float32Array, a: number, b: number, { cos, sin }: CosSin): void {
  [values[a], values[b]] = [values[a] * cos - values[b] * sin, values[a] * sin + values[b] * cos];
}
