/** What a model and a context will take, known before any weight is read; and whether there is room for it. */
import { type CacheType, entryBytes } from "../core/cache/entry_type.ts";
import { resourceError } from "../core/errors.ts";
import { globalLayers, layerEntries, layerShape, type ModelShape } from "../core/shape.ts";
import type { ModelConfig } from "./config.ts";
import { CHUNK, stepBytes } from "./decode/layer.ts";
import { DEFAULTS } from "./defaults.ts";
import { defaultShare } from "./read/least_kept.ts";

/** What a model is loaded for. */
export interface Expected {
  /** Most tokens there will be at once: text, question and answer. */
  readonly tokens: number;
  /** The last position there will be, where that is another; `trained`: any that the model knows. Default `tokens`. */
  readonly positions?: number | "trained";
  /** Share of them that stays, 0 … 1; `default`: what is left of so many where nothing is asked for. Default 1. */
  readonly kept?: number | "default";
  /** How keys and values are stored. Default `f32`. */
  readonly cacheType?: CacheType;
  /** Read chunk by chunk through all layers, so that no layer is ever there whole. */
  readonly streamed?: boolean;
  /** What a refit of what stays goes by. */
  readonly refit?: {
    /** Tokens of a layer whose queries and outputs wait until its entries are final, and layers that wait at once. */
    readonly tokens: number;
    readonly layers: number;
    /** Candidates that wait for each entry that stays: 1, or more where a pursuit chooses. */
    readonly candidates: number;
  };
}

/** Bytes, each at the least. */
export interface NeededMemory {
  readonly weights: number;
  /** Keys and values at the most while reading: what is kept, and one layer whole unless the text is streamed. */
  readonly cache: number;
  /** Hidden states of all tokens, and what passes through a layer at once. */
  readonly working: number;
  readonly tokens: number;
}

export function neededMemory(config: ModelConfig, weights: number, wanted: Expected): NeededMemory {
  // Where no text may be longer than the model knows, longer ones are refused for that, whatever the memory.
  const most = wanted.positions === "trained" ? config.contextLength : Infinity;
  const expected = { ...wanted, tokens: Math.min(wanted.tokens, most) };
  const { tokens, cacheType = DEFAULTS.cacheType, streamed } = expected, { width, vocabulary } = config;
  const chunk = Math.min(CHUNK, tokens), hidden = streamed ? chunk : tokens;
  return {
    weights,
    cache: Math.ceil(cacheAtMost(config, expected, cacheType)),
    working: 4 * (hidden * width + vocabulary) + stepBytes(config, chunk) + waitingBytes(config, expected),
    tokens,
  };
}

/** Window layers as they are, of the global ones a share, and the rest of the one that is being read; bytes. */
function cacheAtMost(shape: ModelShape, expected: Expected, type: CacheType): number {
  const { tokens, streamed = false, refit, kept: asked = 1 } = expected;
  const share = asked === "default" ? defaultShare(tokens, shape) : asked;
  const kept = Math.min(1, share * (refit?.candidates ?? 1));
  const globals = globalLayers(shape), whole = tokens * shape.kvHeads * entryBytes(shape.headDim, type);
  let bytes = globals.length > 0 && !streamed ? (1 - kept) * whole : 0;
  for (let layer = 0; layer < shape.layers; layer++) {
    if (globals.includes(layer)) bytes += kept * whole;
    else bytes += layerEntries(shape, layer, tokens) * entryBytes(layerShape(shape, layer).headDim, type);
  }
  return bytes;
}

/** Queries, outputs and a sum of each query head, floats. */
function waitingBytes({ heads, headDim }: ModelShape, { refit, tokens }: Expected): number {
  return refit ? 4 * Math.min(refit.tokens, tokens) * refit.layers * heads * (2 * headDim + 1) : 0;
}

/** Modules of our kernels that share the weights, and the cache; 0 where others hold them. */
export interface Modules {
  readonly weightModules: number;
  /** Bytes of weights that lie beside them: tables of which only rows are read. Default 0. */
  readonly outsideBytes?: number;
  readonly cacheModules: number;
}

/** Where it is to be. */
export interface Room extends Modules {
  /** The most this process can have, bytes. */
  readonly limitBytes?: number;
}

/** What a WebAssembly memory can hold: its addresses have 32 bits. */
const MODULE_BYTES = 2 ** 32;

/**
 * `doing`: what can't be done without the room, for the message.
 * @throws PalisadeError resources `memory.short`, `memory.module`, with the sums.
 */
export function checkRoom(name: string, needed: NeededMemory, room: Room, doing = `load ${name}`): void {
  const { weights, cache, working, tokens } = needed;
  const { limitBytes = Infinity, weightModules, outsideBytes = 0, cacheModules } = room;
  const total = weights + cache + working;
  if (total > limitBytes) {
    throw resourceError(
      "memory.short",
      `Can't ${doing}: its weights take ${mb(weights)}, keys and values of ${tokens} tokens ${
        mb(cache)
      } and the work ` +
        `on them ${mb(working)}, ${mb(total)} in all; this process can have ${
          mb(limitBytes)
        } at most: take a smaller ` +
        "model, or one in fewer bits, or less text",
      name,
    );
  }
  checkModules(name, doing, { what: "its weights take", bytes: weights - outsideBytes, modules: weightModules });
  const what = `keys and values of ${tokens} tokens take`;
  checkModules(name, doing, { what, bytes: cache, modules: cacheModules });
}

interface InModules {
  readonly what: string;
  readonly bytes: number;
  readonly modules: number;
}

function checkModules(name: string, doing: string, { what, bytes, modules }: InModules): void {
  if (modules === 0 || bytes <= modules * MODULE_BYTES) return;
  const where = modules === 1
    ? "one WebAssembly memory holds"
    : `the ${modules} WebAssembly memories of the threads hold`;
  const message = `Can't ${doing}: ${what} ${mb(bytes)}, and ${where} ${mb(modules * MODULE_BYTES)} at most: use ` +
    "more threads, a model in fewer bits, or less text";
  throw resourceError("memory.module", message, name);
}

function mb(bytes: number): string {
  return `${Math.ceil(bytes / 1e6)} MB`;
}
