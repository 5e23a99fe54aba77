/**
 * The narrow waist: what a backend must do, and nothing about how.
 *
 * One backend holds the keys and values of every layer, ragged: each KV head has its own number of rows. Row order
 * is insertion order; positions are the cache's business (`core/cache/`). All floats are float32 at this border.
 * What a decoder hands from call to call are tensors (`tensor.ts`), which a device may keep; an observation, and whatever
 * else is asked for by name, comes as plain arrays.
 *
 * A device answers later, so whatever hands back data, or needs the device to have finished, returns a promise; the
 * plain backends resolve at once. `append`, `compact`, `truncate` and `free` hand nothing back: they refuse a bad input
 * at once, and are carried out in the order of the calls, before any call made after them. A device that fails at one of
 * them (no memory, lost) may say so at once, or in the next promise that the same rows give. Lengths and bytes are known
 * on this side.
 */
import type { CacheType } from "../cache/entry_type.ts";
import type { PackedHead } from "../cache/packed.ts";
import type { LinearGate } from "../measure/gate_scores.ts";
import type { Needs, NormKind, Observation } from "../policy/policy.ts";
import type { KeyRotation } from "../measure/rotation.ts";
import type { Algebra } from "../refit/linear.ts";
import type { AttentionShape } from "../shape.ts";
import type { SelectionInput } from "../select/select.ts";
import type { Tensor, Tensors } from "./tensor.ts";

/** Backends hold rows in pages of this many per head, and so at most this many more than needed. */
export const ROW_PAGE = 64;

/** What computes attention. */
export type BackendName = "ts" | "wasm" | "webgpu";

export interface BackendMemory {
  /** Bytes held for keys and values right now, with capacity slack. */
  readonly allocatedBytes: number;
  /** The most `allocatedBytes` has been. */
  readonly highWaterBytes: number;
  /** WebAssembly memory in bytes (never shrinks); 0 where there is none. */
  readonly wasmBytes: number;
}

/** Makes rows, and selects; see the head of the file. */
export interface Backend<T extends Tensor = Tensor> extends Disposable {
  readonly name: BackendName;
  /** One line for people: instruction set, threads. */
  readonly detail: string;
  /** Bytes held. */
  memory(): BackendMemory;
  /**
   * Empty rows for one layer, with room for `reserve` rows per head, stored as `type`. Default `f32`. Made by
   * `checkedRows` (`core/backend/checked_rows.ts`) of what the backend writes, {@link TrustingRows}.
   */
  createRows(shape: AttentionShape, reserve: number, type?: CacheType): LayerRows<T>;
  /** Whether rows can be refitted: {@link LayerRows.refit}. */
  readonly refits?: boolean;
  /** Whether keys can lose channels, {@link LayerRows.thin}, and single queries read a part: {@link LayerRows.foresee}. */
  readonly reduces?: boolean;
  /** Whether rows can be of type `int4` ({@link LayerRows.pack}), and keys and values of types apart. */
  readonly packs?: boolean;
  /**
   * A·Bᵀ, `[n, m]`, of `a`, `[n, depth]`, and `b`, `[m, depth]`, in float32, at once: for refits, which else multiply
   * plainly.
   */
  products?(a: Float32Array, b: Float32Array, depth: number): Float32Array;
  /** `solve` of `core/refit/linear.ts`, in float64, at once. */
  readonly solve?: Algebra["solve"];
  /** `boundedLeastSquares` of `core/refit/linear.ts`, in float64, at once. */
  readonly boundedLeastSquares?: Algebra["boundedLeastSquares"];
  /** What queries, keys, values and attention outputs pass as. */
  readonly tensors: Tensors<T>;
  /** The exact top n of one or many segments; semantics in `core/select/select.ts`. */
  select(input: SelectionInput): Promise<Int32Array[]>;
  /**
   * Scores of a linear gate, `[count, heads]`, from `hidden`, `[count, width]`; formula in `core/measure/gate_scores.ts`.
   * Callers go through `scoreByGate` (`core/backend/gate.ts`), which computes them itself where a backend doesn't.
   */
  gateScores?(gate: LinearGate, hidden: T, count: number): Promise<Float32Array>;
}

/** What `prefillAttention` may be asked for beside its output. */
export interface AttentionWants {
  readonly columnSum?: boolean;
  readonly columnMax?: boolean;
  readonly logSumExp?: boolean;
  /** By what each query's softmax counts in column sums and maxima, `[count]`, > 0; 1 without. */
  readonly rowWeights?: Float32Array;
}

export interface AttentionOutputs<T extends Tensor = Tensor> {
  /** Attention output, `[count, heads, headDim]`; the caller frees it. */
  readonly output: T;
  /** Softmax column sums over the queries of this call, `[heads, rows]`, when asked. */
  readonly columnSum?: Float32Array;
  /** Softmax column maxima over the queries of this call, `[heads, rows]`, when asked. */
  readonly columnMax?: Float32Array;
  /** Natural log-sum-exp of each row, `[count, heads]`, when asked. */
  readonly logSumExp?: Float32Array;
}

export interface DecodeOutputs<T extends Tensor = Tensor> {
  /** Attention output, `[count, heads, headDim]`; the caller frees it. */
  readonly output: T;
  /** Softmax of the LAST query, one array per query head, `[length(kv head)]`, when asked. */
  readonly probabilities?: Float32Array[];
}

/** One head's keys and values, `[rows, headDim]` each. */
export interface CopiedRows {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** What attention adds to the rows' logits, `[rows]`; absent where it is 0 for all of them. */
  readonly bias?: Float32Array;
  /** What is packed of the head as it is stored, where something is; not with `wanted`. */
  readonly packed?: PackedHead;
}

/** What takes the place of one head's values, and what is added to its logits (`core/refit/`). */
export interface RefittedRows {
  /** `[length, headDim]`. */
  readonly values: Float32Array;
  /** `[length]`, added to the scaled logits. */
  readonly bias: Float32Array;
}

/** Which channels of a head's keys stay, and from where on all of them do ({@link LayerRows.thin}). */
export interface ThinKeys {
  /** Ascending, below headDim, at least one. */
  readonly channels: Int32Array;
  /** The last rows, whose keys stay whole. */
  readonly recent: number;
}

/** How single queries read a head by some channels of its keys ({@link LayerRows.foresee}). */
export interface Foresight {
  /** Ascending, below headDim, at least one. */
  readonly channels: Int32Array;
  /** Rows that a query reads, sinks and recent ones among them. */
  readonly entries: number;
  /** First and last rows that are always read. */
  readonly sinks: number;
  readonly recent: number;
}

/**
 * Keys and values of one layer. Any shape, length or index that does not fit is a RangeError: thrown where a method hands
 * nothing back, the promise's where it returns one.
 */
export interface LayerRows<T extends Tensor = Tensor> {
  readonly shape: AttentionShape;
  /** What `append` rounds keys and values to; everything else sees them as stored. */
  readonly type: CacheType;
  /** Rows of one KV head. */
  length(kvHead: number): number;
  /**
   * Σ over heads of rows × row size (key and value), and four bytes for each bias; thin keys at their own size, and what
   * is kept to foresee by.
   */
  readonly liveBytes: number;
  /** The same with capacity slack: at most {@link ROW_PAGE} spare rows per head after `compact`. */
  readonly allocatedBytes: number;

  /**
   * Appends `count` rows to EVERY head. `keys` (after RoPE) and `values`: `[count, kvHeads, headDim]`.
   * @throws PalisadeError (input) `cache-type.range`, nothing appended, when a number is not finite or too large for a
   * narrower type than f32.
   */
  append(keys: T, values: T, count: number): void;

  /**
   * Causal attention of `count` queries that belong to the LAST `count` rows of every head (call it right after
   * appending them; all heads must have the same length): query `t` sees the rows up to its own, as far back as the
   * shape's `reach`. `queries`: `[count, heads, headDim]`, after RoPE; logits
   * are scaled by 1/√headDim.
   */
  prefillAttention(queries: T, count: number, want?: AttentionWants): Promise<AttentionOutputs<T>>;

  /**
   * Attention of `count` queries over all rows of each head: query `t` sees rows `0 … length(head) − count + t`, of them
   * the last as far as the shape's `reach`; the others' probability is 0.
   * Heads may differ in length. This is the decode path (`count` = 1) and the question path (`count` > 1).
   * `queries`: `[count, heads, headDim]`, after RoPE.
   */
  decodeAttention(queries: T, count: number, want?: { probabilities?: boolean }): Promise<DecodeOutputs<T>>;

  /**
   * Attention of any `count` queries, each of which sees every row, whatever the reach: how they would look back from
   * behind all of them. All heads must have the same length. Callers go through `attendUnmasked`
   * (`core/backend/unmasked.ts`), which computes it itself where a backend doesn't.
   */
  unmaskedAttention?(queries: T, count: number, want?: AttentionWants): Promise<AttentionOutputs<T>>;

  /**
   * Of rows that hold what is convolved (`ModelShape.convolved`), of type f32: the convolution of the last `count` rows,
   * let through by `queries`, `[count, heads, headDim]`; formula in `model/decode/convolution.ts`. `taps`: `[heads ·
   * headDim, taps]`, the oldest first, the same array each time. All heads must have the same length. Callers go through
   * `ConvolvedRows` there, which computes it itself where a backend doesn't.
   */
  convolve?(queries: T, count: number, taps: Float32Array): Promise<{ readonly output: T }>;

  /**
   * Gives one head other values, stored as the type is, and its rows a bias: from now on every attention and observation
   * adds it to their logits, and every move takes it along. Rows appended later have none. Only where `Backend.refits`.
   * @throws PalisadeError (input) `cache-type.range` as {@link append}.
   */
  refit?(kvHead: number, rows: RefittedRows): void;

  /**
   * Keeps only some channels of the keys of one head's rows, all but the last `recent`, and gives the others' memory back
   * (ThinK). Attention takes what is gone for 0, and scales by 1/√headDim as before; `copyRows` gives zeros. Rows appended
   * later are whole. Once for each head, after any refit; then only `decodeAttention` attends, and nothing is observed or
   * turned. Rows of narrower types than f32 are rounded anew. Only where {@link Backend.reduces}, and rows are alike and
   * not of `int4`.
   */
  thin?(kvHead: number, keys: ThinKeys): void;

  /**
   * From now on `decodeAttention` of one query, asked for no probabilities, reads only some rows of one head (FASA): the
   * first, the last, and those that rank highest by the given channels of query and key alone. A row ranks by how little
   * its partial product is below a query head's best, of the head of the group where that is least; of equal ones the
   * earlier is read. All rows stay; a copy of those channels in float32 is kept for it. Only where
   * {@link Backend.reduces}, and rows are alike and not of `int4`.
   */
  foresee?(kvHead: number, foresight: Foresight): void;

  /**
   * Packs what is of type `int4`: all rows of every head. A head's last group, when it isn't full, is packed as it is, and
   * anew when more rows have come. With `given` a head's first rows take the numbers that {@link copyRows} gave instead.
   * Rows that move ({@link compact}, {@link rotateKeys}), and those behind them, are float16 again until the next call.
   */
  pack?(given?: readonly (PackedHead | undefined)[]): void;

  /**
   * Softmax of the last `window` queries over all rows that they reach (0 on the others), reduced as `needs.window` asks, plus keys and values when
   * `needs.rows`. `queries`: `[window, heads, headDim]`. Column sums and value norms are not this call's.
   * Never stores heads × window × rows.
   */
  observe(queries: T, window: number, needs: Needs): Promise<Partial<Observation>>;

  /**
   * ‖v·Wo_h‖ meaned over the group, `[kvHeads, rows]`, L1 unless `kind` says otherwise. `wo`: `[width, heads · headDim]`,
   * y = x·woᵀ, of this side or a tensor of the device.
   */
  valueNorms(wo: Float32Array | T, width: number, kind?: NormKind): Promise<Float32Array>;

  /** Keeps only the given rows of each head (ascending, unique indices into its rows); frees the rest. */
  compact(kept: readonly Int32Array[]): void;

  /** Drops rows from the end so that head `h` has `lengths[h]` rows. */
  truncate(lengths: ArrayLike<number>): void;

  /**
   * Turns the keys to other positions: row `i` of head `h` by `moves[h][i]` positions (new − old, any sign), one list
   * per head, `[length]`. Values and row order stay; keys of a narrower type than f32 are rounded anew. Rows that a
   * failure leaves half turned must be freed.
   */
  rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void>;

  /** Rows of their own with the same content and type; both go on independently. */
  clone(): Promise<LayerRows<T>>;

  /**
   * One head's rows as stored, in float32, `[length, headDim]` each; or only the `wanted` ones, `[wanted, headDim]`,
   * indices into its rows in any order. Appending them stores the same. For forks, oracles, certificates and snapshots.
   */
  copyRows(kvHead: number, wanted?: Int32Array): Promise<CopiedRows>;

  /** Gives the memory back. The object can't be used afterwards, but for another `free`. */
  free(): void;
}

/**
 * What a backend writes: rows that trust their caller. Shapes, lengths, indices and numbers fit; `free` comes once, and
 * nothing after it. After a failure they hold what they held before, or fail from then on.
 */
export interface TrustingRows<T extends Tensor = Tensor>
  extends Omit<LayerRows<T>, "shape" | "type" | "length" | "liveBytes" | "clone"> {
  clone(): Promise<TrustingRows<T>>;
}
