/**
 * The tokens of an answer, one after another. A device whose numbers come late computes some greedy ones ahead, and tells
 * them together; those that nobody takes are taken back out of the cache.
 */
import type { Tensor } from "../../core/backend/tensor.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { breathe } from "../../runtime/breathe.ts";
import type { Dense } from "../dense/dense.ts";
import { extendByOne, type ExtendOptions, forwardFrom } from "./extend.ts";
import { chosen, type Sampler } from "./sampler.ts";

/** Most tokens that are computed before the first of them is known, and milliseconds that they may take. */
const MOST = 16, LONGEST_MS = 100;

export interface AheadOptions extends ExtendOptions {
  /** Milliseconds that tokens computed together may take; default {@link LONGEST_MS}. */
  readonly longest?: number;
}

export class TokensAhead {
  readonly #dense: Dense;
  readonly #cache: RaggedCache;
  readonly #sampler: Sampler;
  readonly #options: AheadOptions;
  /** Tokens that were computed and not taken. */
  readonly #waiting: number[] = [];
  /** Tokens to compute next. */
  #group = 1;

  constructor(dense: Dense, cache: RaggedCache, sampler: Sampler, options: AheadOptions) {
    this.#dense = dense;
    this.#cache = cache;
    this.#sampler = sampler;
    this.#options = options;
  }

  /** Where the next token will stand, as far as tokens were taken. */
  get position(): number {
    return this.#cache.position - this.#waiting.length;
  }

  /** The token after `ids`. */
  async first(ids: readonly number[]): Promise<number> {
    return await extendByOne(this.#dense, this.#cache, ids, this.#sampler, this.#options);
  }

  /** The token after `id`, which was taken last; at most `most` will be wanted in all. */
  async next(id: number, most: number): Promise<number> {
    this.#options.signal?.throwIfAborted();
    const waiting = this.#waiting.shift();
    if (waiting !== undefined) return waiting;
    if (!this.#dense.choices || !this.#sampler.greedy || this.#options.limit) return await this.first([id]);
    const count = Math.max(1, Math.min(this.#group, most)), start = performance.now();
    const [first, ...others] = await this.#compute(id, count);
    this.#waiting.push(...others);
    // Twice as many as long as that is quick: whoever stops early has waited for no more than was taken.
    const each = (performance.now() - start) / count, { longest = LONGEST_MS } = this.#options;
    this.#group = Math.max(1, Math.min(2 * this.#group, MOST, Math.floor(longest / each)));
    return first;
  }

  /** Takes tokens that nobody took back out of the cache. */
  end(): void {
    this.#cache.takeBack(this.#waiting.length);
    this.#waiting.length = 0;
  }

  async #compute(id: number, count: number): Promise<number[]> {
    const { tensors } = this.#cache.backend, { signal } = this.#options;
    using choices = this.#dense.choices!(count);
    let embedded: Tensor | undefined = await this.#dense.embed([id]);
    try {
      for (let i = 0; i < count; i++) {
        await breathe(signal);
        const from: Tensor = embedded!;
        embedded = undefined;
        const hidden = await forwardFrom(this.#dense, this.#cache, from, 1);
        try {
          embedded = choices.next(hidden);
        } finally {
          tensors.free(hidden);
        }
      }
      return (await choices.read()).map(chosen);
    } finally {
      if (embedded) tensors.free(embedded);
    }
  }
}
