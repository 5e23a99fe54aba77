/**
 * The dense part of a decoder as a device runs it, cut at attention: what goes in and out stays on the device. Everything
 * that waits for it returns a promise, and results belong to the caller, who frees them (`Tensors.free`).
 */
import type { Tensor } from "../../core/backend/tensor.ts";
import type { ModelConfig } from "../config.ts";
import type { DenseName } from "./interface.ts";

/** A chunk of tokens at a layer's attention. */
export interface Projected<T extends Tensor = Tensor> {
  /** `[count, heads, headDim]`, rotated. */
  readonly queries: T;
  /** `[count, kvHeads, headDim]`, rotated; empty for a layer that looks at another's rows (`ModelShape.sources`). */
  readonly keys: T;
  /** `[count, kvHeads, headDim]`, or empty. */
  readonly values: T;
  /** Queries before RoPE, `[count, heads, headDim]`, when asked. */
  readonly unrotated?: T;
}

/** The dense layers of a model on a device: what attention is not. */
export interface Dense<T extends Tensor = Tensor> extends AsyncDisposable {
  readonly name: DenseName;
  /** One line for people: engine, version, threads, how the weights are held. */
  readonly detail: string;
  readonly config: ModelConfig;
  /** Bytes of weights this engine holds. */
  readonly weightBytes: number;
  /** Token embeddings, `[ids, width]`. RangeError for an id outside the vocabulary. */
  embed(ids: ArrayLike<number>): Promise<T>;
  /**
   * Norm, the three projections of `layer`, and RoPE to positions `first`, `first` + 1, …
   * `hidden`: `[count, width]`, left as it is.
   */
  project(
    layer: number,
    hidden: T,
    count: number,
    first: number,
    want?: { readonly unrotated?: boolean },
  ): Promise<Projected<T>>;
  /**
   * Output projection, residual, norm, feed-forward, residual.
   * `hidden`: `[count, width]`, `attention`: `[count, heads, headDim]`, both left as they are → the next layer's input,
   * `[count, width]`. `ids`: of the tokens, for a model whose layers have embeddings of their own.
   */
  finish(layer: number, hidden: T, attention: T, count: number, ids?: ArrayLike<number>): Promise<T>;
  /** Final norm and output head: `[count, width]` → `[count, vocabulary]`. Call it for the rows that need logits. */
  logits(hidden: T, count: number): Promise<T>;
  /**
   * The greedy choice after one row of `hidden`, `[1, width]`, made where the logits are, so that they need not be read.
   * Callers go through `extendByOne` (`model/decode/extend.ts`), which reads the logits where an engine has no choice.
   */
  choose?(hidden: T): Promise<Choice>;
  /**
   * For a device whose numbers come late: greedy choices of up to `most` tokens, each computed before the one before it is
   * known here. Callers go through `TokensAhead` (`model/decode/ahead.ts`).
   */
  choices?(most: number): Choices<T>;
  /**
   * The output projection of a layer, `[width, heads · headDim]`, as the file has it, for `LayerRows.valueNorms`; the
   * caller's to free. Nothing where it isn't held so, or where it is too large to be seen whole.
   */
  outputWeights?(layer: number): Promise<T | undefined>;
  /** Tokens that the layers take at a time while a context is read; default `CHUNK` (`model/decode/layer.ts`). */
  readonly chunk?: number;
  /**
   * For a device whose numbers come late: rows of a KV head, over all layers, that may stay whole until their eviction has
   * been decided, while later layers are read (`model/read/overlap.ts`). Without it each is waited for.
   */
  readonly waitingRows?: number;
}

/** Greedy choices that stay where they were made until they are read. */
export interface Choices<T extends Tensor = Tensor> extends Disposable {
  /** Chooses after one row of `hidden`, `[1, width]`; gives the embedding of what was chosen, `[1, width]`. */
  next(hidden: T): T;
  /** All choices so far, in order. */
  read(): Promise<Choice[]>;
}

/** The lowest token of the largest logit. A logit that is no number, or +∞, counts as the largest of all. */
export interface Choice {
  readonly token: number;
  readonly logit: number;
}
