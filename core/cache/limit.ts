/**
 * The cap of `maxCache`, N tokens per head: Σ lengths ≤ N · kvHeads · layers after every append, for ever. Of the global
 * layers alone: a window layer holds no more than its window by itself.
 *
 * Room is made before tokens are appended. Every head grows by one entry per token, so all of them fill up at the same
 * token, and every head has a cap of its own: what the context left in it, plus its equal part of the free room. So the
 * allocation over heads and layers that the policy made while reading is kept, the caps sum to at most N · kvHeads ·
 * layers exactly, lengths depend on the number of tokens alone, and each head evicts by its own scores. When it is full,
 * it goes down by N/10 entries (rounded up) at once: to a low-water mark of 90 %.
 *
 * Protected in every head, where they are still there: the sinks, the chat template's markers, the recent window.
 */
import type { Tensor } from "../backend/tensor.ts";
import { inputError, option } from "../errors.ts";
import { SINKS, WINDOW } from "../policy/parameters.ts";
import type { KeyRotation } from "../measure/rotation.ts";
import type { StepRule } from "../rules/rule.ts";
import { RuleState } from "../rules/state.ts";
import type { ModelShape } from "../shape.ts";
import type { RaggedCache } from "./ragged.ts";

/** Scores that are known when a key is made, for rules that go by them. */
export interface PredictedScores {
  /** Of the entries that are there, row by row, `[global layers · kvHeads][entries]`. */
  readonly known: readonly Float32Array[];
  /** Of `count` new ones, `[count, kvHeads]`, from what goes into their layer, `[count, width]`. */
  score(layer: number, hidden: Tensor, count: number): Promise<Float32Array>;
}

/** A cap, and what to evict by. */
export interface LimitOptions {
  /** N, entries per head on average, ≥ 1. */
  readonly tokens: number;
  readonly rule: StepRule;
  /** For a rule that is `predicted`. */
  readonly predicted?: PredictedScores;
  /** True positions of the chat template's control tokens, of those read and of those to come. */
  readonly markers?: ReadonlySet<number>;
  /** Close the gaps after each eviction ({@link RaggedCache.realign}), for keys that turn like this. */
  readonly realign?: KeyRotation | readonly KeyRotation[];
  /** Most entries of any head; with `realign` the trained context, which no position may then reach. */
  readonly longest?: number;
}

/** What a cap has done so far. */
export interface LimitFigures {
  /** Times the cache was full and went down to the low-water mark. */
  readonly evictions: number;
  /** Entries evicted, over all layers and heads. */
  readonly evictedEntries: number;
  /** Those of them that were in the cache when the cap began. */
  readonly evictedFromContext: number;
  /** The most entries after any append. */
  readonly peakEntries: number;
  /** The last tokens that were protected; fewer than asked where a head has no room for them. */
  readonly window: { readonly asked: number; readonly used: number };
  /** Bytes that the rule remembers, right now. */
  readonly stateBytes: number;
}

/** Low-water mark: this share of N is given up at once. */
const STEP_SHARE = 0.1;
const SINK_COUNT = SINKS.default;
const WINDOW_ASKED = WINDOW.default;

/** Entries per head that a context may take at most, so that the first question finds the low-water mark's room. */
export function lowWater(tokens: number): number {
  return tokens - Math.ceil(STEP_SHARE * tokens);
}

/** Holds a cache to its cap: makes room before tokens are appended. */
export class CacheLimit {
  readonly #cache: RaggedCache;
  readonly #options: LimitOptions;
  /** Most entries of each head, `[global layers · kvHeads]`. */
  readonly #caps: Int32Array;
  /** Entries each head gives up at once, ≥ 1. */
  readonly #step: number;
  readonly #window: number;
  readonly #states: RuleState[];
  readonly #contextEnd: number;
  #evictions = 0;
  #evicted = 0;
  #evictedFromContext = 0;
  #peak = 0;

  /**
   * Caps `cache` from here on, with what it holds as the context.
   * @throws PalisadeError `max-cache.small` when no token would fit beside the context's entries and the protected ones;
   * RangeError when the rule is predicted and `predicted` does not know every entry.
   */
  constructor(cache: RaggedCache, options: LimitOptions) {
    this.#cache = cache;
    this.#options = options;
    this.#contextEnd = cache.seen;
    const { shape, globals } = cache, heads = shape.kvHeads * globals.length;
    const marked = SINK_COUNT + (options.markers?.size ?? 0);
    // What each head holds; at the least, room for its protected entries and one that can be evicted.
    const shares = Int32Array.from({ length: heads }, (_, i) => Math.max(this.#length(i), marked + 1));
    const held = shares.reduce((sum, share) => sum + share, 0);
    const longest = Math.max(...shares, ...windowLengths(shape));
    // What N leaves, in equal parts, but no head may outgrow the trained context.
    const free = Math.floor((options.tokens * heads - held) / heads);
    const room = Math.min(free, (options.longest ?? Infinity) - longest);
    if (!(room >= 1)) throw tooSmall(options, held / heads, longest, marked);
    this.#caps = shares.map((share) => share + room);
    // A tenth of N at once, or all the free room where that is less.
    this.#step = Math.min(options.tokens - lowWater(options.tokens), room);
    // The recent window must fit the smallest head after an eviction.
    const shortest = Math.min(...this.#caps) - this.#step;
    this.#window = Math.min(WINDOW_ASKED, Math.max(1, shortest - marked));
    this.#states = Array.from(shares, (_, i) => new RuleState(options.rule, this.#length(i)));
    if (options.rule.predicted) this.#remember(options.predicted?.known ?? []);
    else this.#states.forEach((state, i) => state.fit(this.#length(i)));
  }

  /** Most tokens to append at once. One where the rule looks at attention, since a backend hands out the last query's. */
  get chunk(): number {
    return this.wantsProbabilities ? 1 : this.#step;
  }

  /** Whether the rule looks at attention, so that every step must measure it. */
  get wantsProbabilities(): boolean {
    return this.#options.rule.headReduction !== "none";
  }

  /** Whether it wants a layer's: window layers are none of its business. */
  wantsProbabilitiesOf(layer: number): boolean {
    return this.wantsProbabilities && this.#cache.globals.includes(layer);
  }

  /** Call before appending `count` tokens, 1 … {@link chunk}: evicts when they would not fit. */
  async makeRoom(count: number): Promise<void> {
    if (!(count >= 1 && count <= this.chunk)) {
      throw new RangeError(`Cannot make room for ${count}: want 1 … ${this.chunk}`);
    }
    this.#peak = Math.max(this.#peak, this.#cache.globalEntries());
    const full = this.#caps.some((cap, i) => this.#length(i) + count > cap);
    if (full) await this.#evict();
  }

  /** Call with the probabilities of each layer's step, one row per query head, right after its attention. */
  observe(layer: number, probabilities: readonly Float32Array[]): void {
    const { kvHeads } = this.#cache.shape, group = probabilities.length / kvHeads;
    for (let head = 0; head < kvHeads; head++) {
      this.#state(layer, head).update(probabilities.slice(head * group, (head + 1) * group));
    }
  }

  /** Call with what goes into each layer, `[count, width]`, once room has been made for `count` tokens. */
  async predict(layer: number, hidden: Tensor, count: number): Promise<void> {
    if (!this.#options.rule.predicted || !this.#cache.globals.includes(layer)) return;
    const { kvHeads } = this.#cache.shape;
    const scores = await this.#options.predicted!.score(layer, hidden, count);
    for (let head = 0; head < kvHeads; head++) {
      const own = Float32Array.from({ length: count }, (_, t) => scores[t * kvHeads + head]);
      this.#state(layer, head).remember(own);
    }
  }

  /** What the cap has done so far. */
  figures(): LimitFigures {
    return {
      evictions: this.#evictions,
      evictedEntries: this.#evicted,
      evictedFromContext: this.#evictedFromContext,
      peakEntries: Math.max(this.#peak, this.#cache.globalEntries()),
      window: { asked: WINDOW_ASKED, used: this.#window },
      stateBytes: this.#states.reduce((sum, { byteLength }) => sum + byteLength, 0),
    };
  }

  async #evict(): Promise<void> {
    const { shape: { kvHeads }, globals } = this.#cache;
    for (const [index, layer] of globals.entries()) {
      const kept: Int32Array[] = [];
      for (let head = 0; head < kvHeads; head++) kept.push(await this.#keep(index * kvHeads + head));
      this.#cache.compact(layer, kept);
    }
    this.#cache.releaseAll();
    if (this.#options.realign) await this.#cache.realign(this.#options.realign);
    this.#evictions++;
  }

  /** The rows of one head that stay; its statistics follow. */
  async #keep(index: number): Promise<Int32Array> {
    const { backend } = this.#cache, length = this.#length(index);
    const state = this.#states[index];
    const count = Math.min(length, this.#caps[index] - this.#step);
    const positions = this.#cache.positions(...this.#place(index));
    // A rule that looks at no attention hears of new entries only here.
    state.fit(length);
    const segment = { scores: state.scores(), protectedEntries: this.#protected(positions) };
    const [kept] = await backend.select({ segments: [segment], count });
    state.compact(kept);
    // Positions ascend, so the first `before` rows are the context's.
    const before = positions.filter((position) => position < this.#contextEnd).length;
    this.#evicted += length - count;
    this.#evictedFromContext += before - kept.filter((row) => row < before).length;
    return kept;
  }

  #remember(known: readonly Float32Array[]): void {
    this.#states.forEach((state, i) => {
      if (known[i]?.length !== this.#length(i)) {
        throw new RangeError(`Cannot cap by predicted scores: ${known[i]?.length} known of ${this.#length(i)} entries`);
      }
      state.remember(known[i]);
    });
  }

  #protected(positions: Int32Array): Uint8Array {
    const { markers } = this.#options, recent = positions.length - this.#window;
    return Uint8Array.from(positions, (at, i) => at < SINK_COUNT || i >= recent || markers?.has(at) ? 1 : 0);
  }

  #length(index: number): number {
    return this.#cache.length(...this.#place(index));
  }

  /** Layer and head of the cap's `index`-th head. */
  #place(index: number): [layer: number, head: number] {
    const { globals, shape: { kvHeads } } = this.#cache;
    return [globals[Math.floor(index / kvHeads)], index % kvHeads];
  }

  #state(layer: number, head: number): RuleState {
    const { globals, shape: { kvHeads } } = this.#cache;
    return this.#states[globals.indexOf(layer) * kvHeads + head];
  }
}

/** Entries that window layers hold by themselves, per head. */
function windowLengths({ windows = [] }: ModelShape): number[] {
  return windows.filter((window) => window > 0).map((window) => window - 1);
}

function tooSmall({ tokens, longest }: LimitOptions, mean: number, most: number, marked: number) {
  const beyond = longest !== undefined && most >= longest;
  const reason = beyond
    ? `its longest head has ${most}, and the trained context is ${longest}: keep less`
    : `the context and the ${marked} protected entries and one more take ${Math.ceil(mean)} per head: want at least ${
      Math.ceil(mean) + 1
    }`;
  return inputError(
    "max-cache.small",
    `Can't cap the cache at ${tokens} entries per head: ${reason}`,
    option("maxCache"),
  );
}
