/** How far one next-token distribution is from another. */

/**
 * A next-token distribution, made of its logits, that others are compared with. It holds one float32 per token, and the
 * sums that make a comparison one pass over the other's logits.
 */
export class Distribution {
  /** Rounded to float32; the sums below are over the rounded ones, so that rounding cancels. */
  readonly #probabilities: Float32Array;
  readonly #sum: number;
  /** Σ p·ln p, nats. */
  readonly #negentropy: number;

  constructor(logits: Float32Array) {
    const normaliser = logSumExp(logits);
    const probabilities = new Float32Array(logits.length);
    let sum = 0, negentropy = 0;
    for (let i = 0; i < logits.length; i++) {
      const logarithm = logits[i] - normaliser;
      probabilities[i] = Math.exp(logarithm);
      sum += probabilities[i];
      negentropy += probabilities[i] * logarithm;
    }
    this.#probabilities = probabilities;
    this.#sum = sum;
    this.#negentropy = negentropy;
  }

  /**
   * Kullback–Leibler divergence Σ p·(ln p − ln q) of `logits`, whose softmax is q, from this distribution p: nats, ≥ 0,
   * summed in doubles. As many logits as tokens here.
   */
  divergence(logits: Float32Array): number {
    const probabilities = this.#probabilities;
    if (logits.length !== probabilities.length) {
      throw new RangeError(`Can't compare ${logits.length} logits with ${probabilities.length} probabilities`);
    }
    let product = 0;
    for (let i = 0; i < logits.length; i++) product += probabilities[i] * logits[i];
    return Math.max(0, this.#negentropy - product + this.#sum * logSumExp(logits));
  }
}

/** The maximum is taken out first. */
function logSumExp(logits: Float32Array): number {
  let top = -Infinity, sum = 0;
  for (let i = 0; i < logits.length; i++) if (logits[i] > top) top = logits[i];
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i] - top);
  return top + Math.log(sum);
}
