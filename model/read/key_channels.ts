/**
 * ThinK's stage of a reading, behind any selection and merge: when a layer's entries are final, the channels of their keys
 * that matter least to the last queries are left out, in all but the last entries (`core/measure/key_channels.ts`).
 */
import type { Backend } from "../../core/backend/interface.ts";
import type { Tensor } from "../../core/backend/tensor.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { inputError, option, say } from "../../core/errors.ts";
import { channelCount, channelSquares, keptChannels } from "../../core/measure/key_channels.ts";
import type { Stages } from "../../core/policy/stages.ts";

/** The last entries, whose keys stay whole: those of the published code. */
export const RECENT_KEYS = 32;

/** What was left out. */
export interface KeyChannelFigures {
  /** Channels that stay, of how many. */
  readonly channels: number;
  readonly of: number;
  /** Entries with fewer. */
  readonly entries: number;
  /** Last entries of each head that are whole. */
  readonly recent: number;
  /** Last tokens whose queries chose. */
  readonly window: number;
  readonly ms: number;
}

/** Refuses what a backend can't leave out. @throws PalisadeError input `key-channels.backend`. */
export function checkKeyChannels({ keyChannels }: Stages, { reduces, name }: Pick<Backend, "reduces" | "name">): void {
  if (keyChannels === undefined || reduces) return;
  const message = say`The ${name} backend attends to whole keys alone: take ${option("backend")} wasm`;
  throw inputError("key-channels.backend", message, option("keyChannels"));
}

/** Leaves channels out of a cache's keys, layer by layer. */
export class KeyChannelStage {
  readonly #cache: RaggedCache;
  readonly #count: number;
  readonly #window: number;
  /** Mean squares of the queries' channels, `[kvHeads][headDim]`, of layers that wait. */
  readonly #waiting = new Map<number, Float64Array[]>();
  #entries = 0;
  #ms = 0;

  constructor(cache: RaggedCache, share: number, window: number) {
    this.#cache = cache;
    this.#count = channelCount(cache.shape.headDim, share);
    this.#window = window;
  }

  /** Takes the last queries of a layer, `[window, heads, headDim]`. */
  async add(layer: number, queries: Tensor): Promise<void> {
    this.take(layer, await this.#cache.backend.tensors.read(queries));
  }

  /** {@link add}, of numbers that are on this side. */
  take(layer: number, numbers: Float32Array): void {
    const { heads, kvHeads, headDim } = this.#cache.shape, each = heads / kvHeads * headDim;
    const ofHead = (kv: number) => {
      const mine = new Float32Array(numbers.length / kvHeads);
      for (let from = kv * each, to = 0; from < numbers.length; from += heads * headDim, to += each) {
        mine.set(numbers.subarray(from, from + each), to);
      }
      return channelSquares(mine, headDim);
    };
    this.#waiting.set(layer, Array.from({ length: kvHeads }, (_, kv) => ofHead(kv)));
  }

  /** Leaves out what the layers that wait need least: their entries are final. */
  async run(): Promise<void> {
    const start = performance.now(), { headDim } = this.#cache.shape;
    for (const [layer, squares] of this.#waiting) {
      for (const [head, mine] of squares.entries()) {
        const length = this.#cache.length(layer, head), recent = Math.min(length, RECENT_KEYS);
        if (length === recent) continue;
        const { keys } = await this.#cache.rows(layer).copyRows(head);
        const channels = keptChannels(mine, channelSquares(keys, headDim), this.#count);
        this.#cache.thin(layer, head, { channels, recent });
        this.#entries += length - recent;
      }
    }
    this.#waiting.clear();
    this.#ms += performance.now() - start;
  }

  figures(): KeyChannelFigures {
    const { headDim } = this.#cache.shape;
    return {
      ...{ channels: this.#count, of: headDim, entries: this.#entries, recent: RECENT_KEYS },
      ...{ window: this.#window, ms: this.#ms },
    };
  }
}
