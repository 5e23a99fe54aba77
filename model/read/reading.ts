/**
 * The five ways to read a context, and what each is told. `plan.ts` chooses, `read.ts` runs.
 *
 * - `layers`: the whole context layer by layer, down to a budget (`layers.ts`).
 * - `threshold`: the same, but what scores below a threshold goes, whatever the budget.
 * - `risk`: the smallest budget that holds a risk is searched first (`at_risk.ts`).
 * - `streaming`: chunk by chunk through all layers, evicting by scores that were predicted (`streaming.ts`).
 * - `rolling`: the same by keys and values alone, for contexts beyond the trained length (`rolling.ts`).
 */
import type { CacheType } from "../../core/cache/entry_type.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { Budget, Policy } from "../../core/policy/policy.ts";
import type { Keep } from "../../core/select/budget.ts";
import type { LayerCertificate } from "../../core/worst_case/certificate.ts";
import type { Device } from "../device.ts";
import type { GateScorer } from "../gate/scorer.ts";
import type { WorstCase } from "../gate/worst_case.ts";
import type { Refit } from "../../core/refit/refit.ts";
import type { Chunks } from "../foresight/file.ts";
import type { Statistics } from "../statistics/file.ts";
import type { KeyChannelFigures } from "./key_channels.ts";
import type { MergeFigures } from "./merge.ts";
import type { RefitFigures } from "./refit.ts";
import type { RiskFigures } from "./at_risk.ts";
import type { RepeatPrompt } from "./reconstruct.ts";
import type { Fitted, Fitting, Piece } from "./replay.ts";

/** What every way is told. */
interface Planned {
  readonly policy: Policy;
  readonly budget: Budget;
  /** How the cache stores keys and values. Default `f32`. */
  readonly cacheType?: CacheType;
  /** A cap leaves the context less than was asked for. */
  readonly keepCapped?: boolean;
  /** Nothing was asked for, and the least of the default decided, not its share: what that comes to. */
  readonly least?: Keep;
  /** Tokens that the frame puts in front of the text; protected where `budget.sinks` reach as far. */
  readonly frameTokens?: number;
}

/** Of the ways that read the whole context before they decide. */
interface Whole extends Planned {
  /** For `needs.reconstruction`: `repeatPrompts` of the same context. */
  readonly prompts?: readonly RepeatPrompt[];
  /** For `needs.selfGate`, and for a refit: `piecesOf` the same context. */
  readonly pieces?: readonly Piece[];
  /** Certificates are wanted. */
  readonly explain?: boolean;
  /** What is refitted of what stays. Default `none`. */
  readonly refit?: Refit;
}

export interface LayersReading extends Whole {
  readonly way: "layers";
  /** The gate's scores of what is kept are wanted, whatever the policy: {@link ReadResult.predicted}. */
  readonly predict?: boolean;
}

export interface ThresholdReading extends Whole {
  readonly way: "threshold";
  /**
   * The importance, 0 … 1, that may not be lost; the threshold, unless the policy's scores are predicted. A policy's own
   * threshold, on its own scale, where it has one.
   */
  readonly limit: number;
}

export interface RiskReading extends Whole {
  readonly way: "risk";
  /** ε, 0 < ε < 1. */
  readonly limit: number;
  /** Bytes of keys and values that may wait. */
  readonly maxCacheBytes: number;
}

export interface StreamingReading extends Planned {
  readonly way: "streaming";
  /** Closes the gaps after each eviction, so that no position reaches the trained context, however long the text is. */
  readonly realign?: boolean;
}

export interface RollingReading extends Planned {
  readonly way: "rolling";
  readonly predict?: boolean;
}

export type Reading = LayersReading | ThresholdReading | RiskReading | StreamingReading | RollingReading;

/** What a policy's scores come from besides the layers: files, opened once the plan stands. */
export interface ScoreFiles {
  /** For `needs.gate` and `predict`. */
  readonly gate?: GateScorer;
  /** For `needs.selfGate`: what its gate begins with. */
  readonly fitting?: Fitting;
  /** For `needs.foresight`. */
  readonly chunks?: Chunks;
  /** For statistics of queries that are `calibrated`. */
  readonly statistics?: Statistics;
  /** For `needs.softTokens`: embeddings, `[count, width]`. */
  readonly softTokens?: Float32Array;
  /** For a threshold on predicted scores: where the gate's margins put it. */
  readonly worstCase?: WorstCase;
}

/** What every way is given besides. */
export interface ReadOptions extends ScoreFiles {
  /** The output projection of one layer, `[width, heads · headDim]`, for policies that weigh values and certificates. */
  readonly outputWeights: (layer: number) => Promise<Float32Array>;
  /** Called after each layer; by ways that go chunk by chunk, with layers' worth of tokens. */
  readonly onLayer?: (done: number, layers: number) => void;
  /** Checked between chunks. */
  readonly signal?: AbortSignal;
  /** Milliseconds now; injected so that the pure rooms need no clock of their own. */
  readonly now?: () => number;
}

/** What reading a context gives. */
export interface ReadResult {
  /** The caller owns it. */
  readonly cache: RaggedCache;
  /** Hidden state of the last token before the final norm, `[width]`. */
  readonly lastHidden: Float32Array;
  /** The most bytes of hidden states and chunk activations held at once. */
  readonly activationBytes: number;
  /** Milliseconds in dense and attention work, and in observing, scoring, selecting and compacting. */
  readonly ms: { readonly prefill: number; readonly evict: number };
  /** One per global layer, when asked. */
  readonly certificates?: readonly LayerCertificate[];
  /** The gate's scores of the entries in global layers, row by row, `[global layers · kvHeads][entries]`, when asked. */
  readonly predicted?: readonly Float32Array[];
  /** What a limit came to, where it took the place of a budget. */
  readonly budget?: Budget;
  /** What a refit did, where there was one. */
  readonly refit?: RefitFigures;
  /** What a merge did, where there was one. */
  readonly merge?: MergeFigures;
  /** What a gate was fitted on, for `needs.selfGate`. */
  readonly fitted?: Fitted;
  /** What was left out of the keys, where that was asked for. */
  readonly keyChannels?: KeyChannelFigures;
  /** What a search did. */
  readonly figures?: RiskFigures;
}

/** How each way is called: reads `ids` (at least one) into a new cache. */
export type Reader<R extends Reading> = (
  device: Device,
  ids: readonly number[],
  options: Omit<R, "way"> & ReadOptions,
) => Promise<ReadResult>;
