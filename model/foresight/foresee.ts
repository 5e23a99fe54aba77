/** What makes a cache's single queries read a part of it, once its context is read. */
import type { Backend } from "../../core/backend/interface.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { inputError, option, say } from "../../core/errors.ts";
import { chunkChannels, dominantChannels } from "../../core/measure/chunk_agreement.ts";
import type { ForesightNeed, Needs } from "../../core/policy/policy.ts";
import type { ModelConfig } from "../config.ts";
import type { Chunks } from "./file.ts";

/** Refuses what a backend can't. @throws PalisadeError input `fasa.backend`. */
export function checkForesees({ foresight }: Needs, { reduces, name }: Pick<Backend, "reduces" | "name">): void {
  if (!foresight || reduces) return;
  const message = say`The ${name} backend reads all entries: take ${option("backend")} wasm`;
  throw inputError("fasa.backend", message, option("policy"));
}

/** What single queries read of each head of the global layers. */
export interface ForesightFigures {
  /** Entries that a token reads, sinks and recent ones among them, of `of` that the context left. */
  readonly entries: number;
  readonly of: number;
  /** Channels of each key that choose, of `headDim`; they are held once more in float32. */
  readonly channels: number;
  readonly headDim: number;
}

/** Null where everything is read. */
export function foresightFigures(cache: RaggedCache): ForesightFigures | null {
  const layer = cache.globals[0], foresight = layer === undefined ? undefined : cache.reduced(layer, 0).foresight;
  if (!foresight) return null;
  const of = cache.length(layer, 0), { headDim } = cache.shape;
  return { entries: Math.min(of, foresight.entries), of, channels: foresight.channels.length, headDim };
}

/** Every head of the global layers chooses by its own dominant chunks. */
export function foreseeBy(
  cache: RaggedCache,
  { ropes }: Pick<ModelConfig, "ropes">,
  { agreement, shape: [, kvHeads, count] }: Chunks,
  { entries, chunks, sinks, recent }: ForesightNeed,
): void {
  for (const layer of cache.globals) {
    const all = chunkChannels(cache.shape.headDim, ropes[layer]);
    for (let head = 0; head < kvHeads; head++) {
      const from = (layer * kvHeads + head) * count;
      const channels = dominantChannels(agreement.subarray(from, from + count), all, chunks);
      cache.foresee(layer, head, { channels, entries, sinks, recent });
    }
  }
}
