/**
 * Reading on behind a context that was evicted before: what was kept of it stays, and only what is new is read and
 * judged. Layer by layer, as `layers.ts` reads a whole context: the new tokens attend over the kept entries and over each
 * other; then the policy scores the new entries as if they were a context of their own, and the budget's rest of them
 * stays (`behind.ts`).
 */
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { concatenate } from "../../core/concatenate.ts";
import type { Budget, Policy } from "../../core/policy/policy.ts";
import type { Stages } from "../../core/policy/stages.ts";
import type { ModelShape } from "../../core/shape.ts";
import type { Device } from "../device.ts";
import { Behind } from "./behind.ts";
import { type LayersOptions, readContext } from "./layers.ts";
import type { Reading, ReadResult } from "./reading.ts";
import type { RefitFigures } from "./refit.ts";

export interface AppendOptions extends Omit<LayersOptions, "behind" | "explain" | "predict"> {
  /** What may stay of the new entries: {@link budgetBehind}. */
  readonly budget: Budget;
  /** The gate's scores of the entries that are there, where they are to be gone on with. */
  readonly predicted?: readonly Float32Array[];
}

export type AppendResult = Pick<ReadResult, "activationBytes" | "ms" | "predicted" | "refit">;

/** Why a text that is read like this can't be gone on with, whatever was kept of its beginning; undefined when it can. */
export function cannotGoOn(
  reading: Reading,
  { convolved, sources }: Pick<ModelShape, "convolved" | "sources">,
): string | undefined {
  const { way, policy: { needs, stages } } = reading;
  if (way === "risk") return "what the last queries lose of entries that are gone can't be measured any more";
  if (way === "streaming" || way === "rolling") {
    return `in the way of ${way} entries compete by scores that end with the reading`;
  }
  if (reading.explain) return "a certificate is of all entries, and those that were evicted are gone";
  if (convolved?.some((width) => width > 0)) return "its convolutions go on from a whole reading's rows alone";
  if (sources) return "its layers look at rows of earlier layers, which are read together with them";
  if (needs.foresight) return "what single queries read of it is found once all of the text is there";
  return stages && stageKeeps(stages);
}

function stageKeeps({ merge, keyChannels }: Stages): string | undefined {
  if (merge) return "what was merged into its last tokens can't be told apart again";
  return keyChannels ? "the channels of a head's keys were chosen for all of them at once" : undefined;
}

/**
 * What may stay of `count` new tokens, so that `cache` holds no more than `whole` allows when they are in it. Where heads
 * or layers have budgets of their own, the fullest decides. All of the global layers.
 */
export function budgetBehind(whole: Budget, { allocate }: Policy, cache: RaggedCache, count: number): Budget {
  const { layers, kvHeads } = whole.model, heads = layers * kvHeads, entries = cache.globalEntries();
  const lengths = cache.globals.map((layer) => Array.from({ length: kvHeads }, (_, head) => cache.length(layer, head)));
  const even = !("uneven" in allocate && allocate.uneven);
  const fullestHead = Math.max(...lengths.flat());
  const fullestLayer = Math.max(...cache.globals.map((layer) => cache.layerEntries(layer)));
  const held = {
    head: even && allocate.kind === "head" ? fullestHead : entries / heads,
    layer: even && allocate.kind === "layer" ? fullestLayer : entries / layers,
  };
  const left = (allowed: number, taken: number, times: number) =>
    Math.min(count * times, Math.max(times, Math.floor(allowed - taken + 1e-9)));
  const perHead = left(whole.perHead, held.head, 1);
  return {
    ...whole,
    length: count,
    fraction: perHead / count,
    perHead,
    perLayer: left(whole.perLayer, held.layer, kvHeads),
    total: left(whole.total, entries, heads),
    sinks: 0,
    window: Math.min(whole.window, perHead),
  };
}

/**
 * Reads `ids` (at least one) into `cache` behind what it holds, and evicts of them. When it fails the cache is to be
 * disposed of.
 */
export async function readOn(
  device: Device,
  cache: RaggedCache,
  ids: readonly number[],
  { predicted: before, ...options }: AppendOptions,
): Promise<AppendResult> {
  const read = await readContext(device, ids, { ...options, behind: new Behind(cache), predict: before !== undefined });
  const { activationBytes, ms, predicted, refit } = read;
  return {
    activationBytes,
    ms,
    refit,
    predicted: before?.map((list, i) => concatenate([list, predicted![i]], Float32Array)),
  };
}

/** What two refits did, of different entries. */
export function bothRefits(a: RefitFigures | undefined, b: RefitFigures | undefined): RefitFigures | undefined {
  if (!a || !b) return a ?? b;
  const heads = a.heads + b.heads,
    mean = (of: "before" | "after") => heads === 0 ? 0 : (a.heads * a[of] + b.heads * b[of]) / heads;
  return {
    ...{ refit: b.refit, heads, of: a.of + b.of, tokens: Math.max(a.tokens, b.tokens) },
    ...{ before: mean("before"), after: mean("after"), ms: a.ms + b.ms },
  };
}
