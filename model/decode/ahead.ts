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

/**
 * Most tokens that are computed together, and milliseconds that they may take. While their numbers are waited for as many
 * more are computed, so that the device has something to do.
 */
const MOST = 16, LONGEST_MS = 50;

export interface AheadOptions extends ExtendOptions {
  /** Milliseconds that tokens computed together may take; default {@link LONGEST_MS}. */
  readonly longest?: number;
}

/** Tokens that are computed together, in the cache already. */
interface Group {
  readonly count: number;
  readonly begun: number;
  readonly tokens: Promise<number[]>;
}

export class TokensAhead {
  readonly #dense: Dense;
  readonly #cache: RaggedCache;
  readonly #sampler: Sampler;
  readonly #options: AheadOptions;
  /** Tokens that are known and were not taken. */
  readonly #waiting: number[] = [];
  /** Those behind them that are under way, two groups at most. */
  readonly #groups: Group[] = [];
  /** The embedding of the last token that is computed. */
  #embedded?: Tensor;
  /** Tokens to compute next. */
  #group = 1;
  /** Milliseconds that the last tokens took, each, once there were some; and when they came. */
  #each?: number;
  #arrived = 0;

  constructor(dense: Dense, cache: RaggedCache, sampler: Sampler, options: AheadOptions) {
    this.#dense = dense;
    this.#cache = cache;
    this.#sampler = sampler;
    this.#options = options;
  }

  /** Where the next token will stand, as far as tokens were taken. */
  get position(): number {
    return this.#cache.position - this.#untaken;
  }

  get #untaken(): number {
    return this.#groups.reduce((sum, { count }) => sum + count, this.#waiting.length);
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
    const { longest = LONGEST_MS } = this.#options;
    if (this.#groups.length === 0) await this.#begin(most, id);
    const [group] = this.#groups;
    // More are on their way before these are waited for, unless one alone takes long: whoever stops early waits for them.
    const isQuick = this.#each !== undefined && this.#each <= longest;
    if (isQuick && most > group.count) await this.#begin(most - group.count, id);
    const [first, ...others] = await group.tokens;
    this.#groups.shift();
    this.#waiting.push(...others);
    const now = performance.now();
    this.#each = (now - Math.max(group.begun, this.#arrived)) / group.count;
    this.#arrived = now;
    // Twice as many as long as that is quick: whoever stops early has waited for no more than was taken.
    this.#group = Math.max(1, Math.min(2 * this.#group, MOST, Math.floor(longest / this.#each)));
    return first;
  }

  /** Takes tokens that nobody took back out of the cache, once they are there. */
  async end(): Promise<void> {
    await this.settle();
    this.#cache.takeBack(this.#untaken);
    this.#waiting.length = this.#groups.length = 0;
  }

  /** Waits for what is under way, however it ends; what a failure leaves behind needs no more. */
  async settle(): Promise<void> {
    this.#free();
    await Promise.allSettled(this.#groups.map(({ tokens }) => tokens));
  }

  /** Computes up to `most` tokens behind the last that was computed, `id` if none was, without waiting for them. */
  async #begin(most: number, id: number): Promise<void> {
    const { tensors } = this.#cache.backend, { signal } = this.#options;
    const count = Math.max(1, Math.min(this.#group, most)), begun = performance.now();
    this.#embedded ??= await this.#dense.embed([id]);
    const choices = this.#dense.choices!(count);
    let made = 0;
    try {
      for (; made < count; made++) {
        await breathe(signal);
        const from: Tensor = this.#embedded!;
        this.#embedded = undefined;
        const hidden = await forwardFrom(this.#dense, this.#cache, from, 1);
        try {
          this.#embedded = choices.next(hidden);
        } finally {
          tensors.free(hidden);
        }
      }
    } catch (error) {
      choices[Symbol.dispose]();
      if (signal?.aborted) this.#cache.takeBack(made);
      throw error;
    }
    const tokens = choices.read().then((all) => all.map(chosen)).finally(() => choices[Symbol.dispose]());
    // Looked at later, or never where something fails before.
    tokens.catch(() => {});
    this.#groups.push({ count, begun, tokens });
  }

  #free(): void {
    if (this.#embedded) this.#cache.backend.tensors.free(this.#embedded);
    this.#embedded = undefined;
  }
}
