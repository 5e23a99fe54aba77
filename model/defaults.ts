/** What the library takes where nothing is said. Every default stands here, and nowhere else; help prints them. */
import type { CacheType } from "../core/cache/entry_type.ts";
import type { Merge } from "../core/merge/merge.ts";
import type { Refit } from "../core/refit/refit.ts";
import { DEFAULT_STEP_RULE } from "../core/rules/registry.ts";
import type { Positions } from "./decode/answer.ts";
import type { DenseChoice } from "./dense/pick.ts";
import type { BackendChoice } from "./device.ts";
import { MODELS } from "./store/registry.ts";

/** Every default of the library by the name of its option. */
export const DEFAULTS = {
  /** The named model of commands; `loadModel` is always told one. */
  model: MODELS[0].name,
  /** What stays of a context. */
  keep: "20%",
  /** But no fewer entries per head, where nothing was asked for: a short text loses nothing. */
  leastKept: 512,
  /** Nor fewer places for each token, on the average over the heads that evict. */
  leastPlaces: 2,
  /** The policy for dumps, which any dump of one reading can serve. */
  dumpPolicy: "layer-defensive",
  /** What a reading may cost. */
  effort: "fast",
  /** What is refitted of what stays. */
  refit: "none" satisfies Refit as Refit,
  /** What becomes of evicted entries. */
  merge: "none" satisfies Merge as Merge,
  /** What stays of each key. */
  keyChannels: "100%",
  /** Where kept keys stand. */
  positions: "true" satisfies Positions as Positions,
  /** How keys and values are stored. */
  cacheType: "f32" satisfies CacheType as CacheType,
  /** Keys and values that may wait while `risk` looks for its budget: 1 GiB. */
  maxCacheBytes: 2 ** 30,
  /** The rule of `maxCache`. */
  stepRule: DEFAULT_STEP_RULE,
  backend: "auto" satisfies BackendChoice as BackendChoice,
  dense: "auto" satisfies DenseChoice as DenseChoice,
  /** Of the kernels; the command line takes `auto`. */
  threads: 1,
  /** Longest answer in tokens. */
  maxTokens: 256,
  /** The same for a model that was told to think first. */
  thinkingTokens: 2048,
  /** 0: always the likeliest token. */
  temperature: 0,
  /** Sampled from all tokens. */
  topP: 1,
  seed: 0,
} as const;
