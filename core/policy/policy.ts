/**
 * The shape of an eviction policy: score, aggregate, allocate, select.
 *
 * Words: an *entry* is one (layer, KV head, position) with its key and value. A *score* says how much losing the
 * entry would hurt: higher means keep. An *observation* is what the backend measured about one layer (attention of
 * the last queries, column sums, value norms …), already reduced so that nothing of size heads × window × length is
 * stored. `L` is the number of context tokens, `N = L − window` the prefix in front of the observation window.
 */
import type { AttentionShape, ModelShape } from "../shape.ts";
import type { Stages } from "./stages.ts";

/**
 * Reductions of the softmax rows of the last `window` queries over all keys (each row sums to 1 over its causal
 * keys). "Group" is the `heads / kvHeads` query heads that share a KV head. Prefix columns only, unless said.
 * - `mean`: un-pooled mean over group and window, `[kvHeads, N]`
 * - `variance`: un-pooled unbiased variance over the window, meaned over the group, `[kvHeads, N]`
 * - `entropy`: −Σ a·ln(a + 1e−10) over the prefix columns, per row, `[heads, window]`
 * - `pooledMean`, `pooledMax`: each row average-pooled (`kernel`, zero padding, divisor always `kernel`), scaled back to
 *   its own mass, then reduced over group and window, `[kvHeads, N]`; a row without mass stays all zero
 * - `mass`: Σ over the prefix columns, per row, `[heads, window]`
 * - `logSumExp`: natural logarithm of Σ exp(q·k/√headDim) over ALL causal keys, per row, `[heads, window]`
 */
export type Reduction = "mean" | "variance" | "entropy" | "pooledMean" | "pooledMax" | "mass" | "logSumExp";

/** Norm of a value on its way through the output projection: `l1` as published; `l2` costs about a tenth of it. */
export type NormKind = "l1" | "l2";

/** What a policy wants measured. Everything is optional: a policy that needs nothing costs nothing. */
export interface Needs {
  /** Reductions over the observation window; the window's length is in {@link Budget.window}. */
  readonly window?: readonly Reduction[];
  /** Pooling kernel of `pooledMean` and `pooledMax`, odd, ≥ 1. Default 5. */
  readonly kernel?: number;
  /** What the window's attention loses if an entry alone goes, `[kvHeads, N]` (DropKV); beside a `window`. */
  readonly dropErrors?: boolean;
  /** ‖v·Wo_h‖ of every entry, meaned over the group: `[kvHeads, L]`. */
  readonly valueNorms?: NormKind;
  /** Σ over all causal queries of the softmax column, per query head: `[heads, L]` (H2O). */
  readonly columnSum?: boolean;
  /** Maximum over all causal queries of the softmax column, per query head: `[heads, L]` (KVzip). */
  readonly columnMax?: boolean;
  /** Largest attention on every entry while the model repeats the context, `[kvHeads, L]` (KVzip). */
  readonly reconstruction?: Reconstruction;
  /** Logarithm of that attention as a gate predicts it when the key is made, `[kvHeads, L]`. */
  readonly gate?: GateTarget;
  /** The same by a gate that is fitted on this text while it is read, `[kvHeads, L]`. */
  readonly selfGate?: SelfGateNeed;
  /** Attention of soft tokens behind the context on every entry, `[kvHeads, L]` (Judge Q). */
  readonly softTokens?: SoftTokensNeed;
  /** Largest attention of the context's own queries on every entry, asked from behind its end, `[kvHeads, L]`. */
  readonly moved?: MovedNeed;
  /** What single queries read of the cache; nothing is measured for it (FASA). */
  readonly foresight?: ForesightNeed;
  /** A file that the policy names: who makes the policy reads it (`model/policy_files/`). */
  readonly file?: PolicyFileNeed;
  /** The layer's keys and values themselves: `[kvHeads, L, headDim]` each, keys after RoPE. */
  readonly rows?: boolean;
  /** What queries are like and will be (Expected Attention). */
  readonly queryStatistics?: QueryStatisticsNeed;
  /** What queries are like pair by pair of RoPE, for keys as they are cached (TriAttention). */
  readonly pairStatistics?: QueryStatisticsNeed;
}

/** What a gate was fitted to predict, and is asked for: `true` is KVzip's importance, for most. */
export type GateTarget = boolean | "kvzip-plus";

/** Kinds of files that policies name. `gate` is named beside the policy, by the option `gate`. */
export type PolicyFileKind = "head-scores" | "soft-tokens" | "gate" | "chunks" | "statistics";

/** A file that a policy names. */
export interface PolicyFileNeed {
  readonly kind: PolicyFileKind;
  /** As typed. */
  readonly name: string;
  /** What stands in it, of the kind that is read before the policy is made. */
  readonly headScores?: HeadScores;
}

/** How much a query reads, and by how much it chooses (`core/measure/foresight.ts`). */
export interface ForesightNeed {
  /** Entries of each head, sinks and recent ones among them. */
  readonly entries: number;
  /** Share of the frequency chunks that choose, 0 < share ≤ 1. */
  readonly chunks: number;
  readonly sinks: number;
  readonly recent: number;
}

/** What becomes of the attention of all soft tokens on one entry; over the group too. */
export interface SoftTokensNeed {
  readonly reduction: "mean" | "max";
}

/** Which queries are moved behind the context's end (`core/measure/moved.ts`). */
export interface MovedNeed {
  /** One in so many, ≥ 1; the last token's among them. */
  readonly every: number;
}

/** What a gate is fitted on while reading (`model/read/replay.ts`). */
export interface SelfGateNeed {
  /** Tokens of the context that the model repeats, about, ≥ 1. */
  readonly tokens: number;
  /** Most of them at once, ≥ 1. */
  readonly chunk: number;
  /** As many more as this share of the arithmetic of reading the context pays for, ≥ 0; absent: none. */
  readonly work?: number;
}

/** Means of the queries before RoPE, turned by the mean rotation of the positions to come. */
export interface QueryStatisticsNeed {
  /** First tokens whose queries don't count, ≥ 0; at least one token always counts. */
  readonly sinks: number;
  /** Positions `L … L + future − 1` are meaned over, ≥ 1; of pairs, `L + 1, 2, 4, …` up to `L + future`. */
  readonly future: number;
  /** Of the texts that `palisade calibrate` read for the model, in place of the context's own: no query is looked at. */
  readonly calibrated?: boolean;
}

/** How the model is made to repeat the context (KVzip, arXiv 2505.23416). */
export interface Reconstruction {
  /** Most context tokens repeated at once, ≥ 1. */
  readonly chunk: number;
  /** Tokens in front of a later chunk that its instruction cites, ≥ 0. */
  readonly postfix: number;
  /** Attention counts by what it moves: times ‖Wo·v‖ of the entry, over ‖h‖ of the token that looks (KVzip+). */
  readonly contribution?: boolean;
}

/** One layer, as measured. Only the fields asked for in {@link Needs} are present. */
export interface Observation {
  readonly layer: number;
  readonly shape: AttentionShape;
  /** Context tokens `L`. */
  readonly length: number;
  /** Observation window in tokens; `N = length − window`. */
  readonly window: number;
  readonly mean?: Float32Array;
  readonly variance?: Float32Array;
  readonly entropy?: Float32Array;
  readonly pooledMean?: Float32Array;
  readonly pooledMax?: Float32Array;
  readonly mass?: Float32Array;
  readonly logSumExp?: Float32Array;
  readonly dropErrors?: Float32Array;
  readonly valueNorms?: Float32Array;
  readonly columnSum?: Float32Array;
  readonly columnMax?: Float32Array;
  readonly reconstruction?: Float32Array;
  readonly gate?: Float32Array;
  readonly selfGate?: Float32Array;
  readonly softTokens?: Float32Array;
  readonly moved?: Float32Array;
  readonly keys?: Float32Array;
  readonly values?: Float32Array;
  /** `[heads, headDim]`, for `queryStatistics`. */
  readonly queryMean?: Float32Array;
  /** `[heads, headDim, headDim]`, for `queryStatistics`. */
  readonly queryCovariance?: Float32Array;
  /** `[pairs][2]`, for `pairStatistics`: dimensions that turn together, and neighbours of those that don't turn. */
  readonly pairs?: readonly (readonly number[])[];
  /** `[heads, headDim]`, for `pairStatistics`: the mean query, turned. */
  readonly pairMean?: Float32Array;
  /** `[heads, pairs]`, for `pairStatistics`: by how much a pair is longer on average than its mean, ≥ 0. */
  readonly pairRest?: Float32Array;
}

/** What `keep` resolved to for one context. See `budget.ts`. */
export interface Budget {
  /** Context tokens `L`. */
  readonly length: number;
  readonly model: ModelShape;
  /** What stays of each head, as asked: 0 < fraction ≤ 1. `@reference`: the double `1 − r`. */
  readonly fraction: number;
  /** Entries per KV head on average, `n`; 1 ≤ n ≤ L. */
  readonly perHead: number;
  /** Entries per layer over all its heads, for policies whose heads compete. */
  readonly perLayer: number;
  /** Entries over all layers and heads, for policies whose layers compete. */
  readonly total: number;
  /** First tokens protected in every head (after shrinking). */
  readonly sinks: number;
  /** Last tokens observed and protected in every head (after shrinking). */
  readonly window: number;
  /** The window the policy asked for. */
  readonly windowAsked: number;
}

/** Scores of one layer, ready for the selector. */
export interface LayerScores {
  /** `[kvHeads, L]`, higher = keep. NaN counts as −∞, −0 as +0. */
  readonly scores: Float32Array;
  /** The policy's own second key for equal scores, `[kvHeads, L]`, higher = keep. */
  readonly second?: Float32Array;
  /** Entries kept before any score is looked at, `[kvHeads, L]`, 1 = protected. */
  readonly protectedEntries?: Uint8Array;
  /**
   * Entries of each KV head, `[kvHeads]`, for {@link Allocation} `head`: absent means `budget.perHead` each; and `layer`:
   * the heads share the sum, absent means `budget.perLayer`.
   */
  readonly counts?: Int32Array;
  /** The layer's weight when layers share a budget ({@link Allocation} `cascade`), ≥ 0. */
  readonly preference?: number;
}

/**
 * Who competes with whom for the budget.
 * - `head`: every head has its own count, `budget.perHead` or what {@link LayerScores.counts} says.
 * - `layer`: the heads of one layer share `budget.perLayer`, or the sum of their counts.
 * - `model`: all layers and heads share `budget.total`.
 * - `cascade`: the layers share kvHeads × layers × `perHead` entries by their `preference`, every head of a layer alike.
 * - `all`: nobody, nothing is evicted whatever the budget.
 */
export type Allocation =
  | (LayerBudget & { readonly kind: "head" })
  | (LayerBudget & { readonly kind: "layer" })
  | { readonly kind: "model" }
  | { readonly kind: "cascade" }
  | { readonly kind: "all" };

/** What a layer gets. */
export interface LayerBudget {
  /** True when `budget.perLayer` is kvHeads × `perHead` (Ada-KV) instead of being rounded once (DefensiveKV). */
  readonly fromHeads?: boolean;
  /** True when counts differ over layers: only their sum over the model is kvHeads × layers × `perHead`. */
  readonly uneven?: boolean;
}

/**
 * What a score says besides the order, so that a fixed threshold on it means something.
 * - `order`: nothing.
 * - `importance`: it is a worst-case importance, 0 … 1.
 * - `predicted`: it is a predicted ln importance, right up to a margin that holds with probability `coverage`, 0 … 1.
 */
export type ScoreMeaning =
  | { readonly kind: "order" }
  | { readonly kind: "importance" }
  | { readonly kind: "predicted"; readonly coverage: number };

/** A documented parameter of a policy. Defaults live here and nowhere else. */
export type Parameter = NumberParameter | TextParameter;

export interface NumberParameter extends ParameterBase {
  readonly type: "number" | "integer";
  readonly default: number;
  /** Inclusive range. */
  readonly min?: number;
  readonly max?: number;
}

export interface TextParameter extends ParameterBase {
  readonly type: "text";
  readonly default: string;
  /** The allowed words; any text without. */
  readonly choices?: readonly string[];
}

interface ParameterBase {
  readonly name: string;
  /**
   * True when the published code has no such thing: `NAME@reference` refuses it and does not list it. There it counts as
   * 0 if it is a number, as its default if it is a text.
   */
  readonly oursOnly?: boolean;
  /** True when it came later: at its default it is left out of a policy's parameters, so that what was known stays the same. */
  readonly later?: boolean;
}

/** Values of a policy's parameters by name. */
export type ParameterValues = Readonly<Record<string, number | string>>;

/** A policy with its parameters resolved: what the reader runs, layer by layer. */
export interface Policy {
  /** Name as typed, with `@reference` where it applies. */
  readonly name: string;
  readonly parameters: ParameterValues;
  readonly needs: Needs;
  readonly allocate: Allocation;
  readonly meaning: ScoreMeaning;
  /**
   * `late`: a layer evicts when all of it is scored. `early`: while reading, chunk by chunk, which only scores allow that
   * are known when the key is made.
   */
  readonly evicts: "early" | "late";
  /** How budgets are counted: ours, or the published `trunc(L·(1−r)·…)`, left to right in doubles. */
  readonly arithmetic: "floor" | "reference";
  /** Sinks and window protected (and observed) before shrinking. */
  readonly sinks: number;
  readonly window: number;
  /** In place of a budget: what scores below it goes, and nothing else. */
  readonly threshold?: number;
  /** What is done behind the selection; absent: nothing. */
  readonly stages?: Stages;
  /** Pure: reads the observation, returns new arrays. */
  score(observation: Observation, budget: Budget): LayerScores;
}

/** Ours, or the published code to the index (`NAME@reference`). */
export type PolicyMode = "ours" | "reference";

/** A line of the registry. */
export interface PolicyEntry {
  readonly name: string;
  readonly parameters: readonly Parameter[];
  /** Whether `NAME@reference` exists: the published code where ours differs. */
  readonly reference?: true;
  /** For a policy that works on another's scores: the scorer it takes when none is named. */
  readonly over?: string;
  /** `values` holds every parameter; `scorer` is given exactly when `over` is set, in the same mode. */
  create(values: ParameterValues, mode: PolicyMode, scorer?: Policy, files?: PolicyFiles): Policy;
}

/** What people read about a policy. Apart from what runs, so that who only evicts carries no prose. */
export interface PolicyAbout {
  /** One line, no full stop. */
  readonly summary: string;
  /** `Author et al. YEAR, arXiv NUMBER`, or `baseline`. */
  readonly paper: string;
  /** Where the published code is, repository and file, with the commit we read. */
  readonly source: string;
  /** What `NAME@reference` does differently, where there is one. */
  readonly reference?: string;
  /** What each parameter is; those that many policies share may be left out. */
  readonly help?: Readonly<Record<string, string>>;
}

/** What a policy's parameters name but `core/` can't read. */
export interface PolicyFiles {
  /** Head scores by the file name that `headkv(file=…)` gives. */
  readonly headScores?: ReadonlyMap<string, HeadScores>;
}

/** How much each head matters, `[layers][query heads]` or `[layers][kvHeads]`, each ≥ 0 and finite, not all 0. */
export type HeadScores = readonly (readonly number[])[];
