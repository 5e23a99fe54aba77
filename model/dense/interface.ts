/**
 * The dense part of a decoder, cut at attention. Every engine runs the same four pieces over any number of tokens;
 * RoPE and attention happen between `qkv` and `finish`, outside. All buffers are float32 and row-major.
 */
import type { ModelConfig } from "../config.ts";

/** The engines on this side. `mixed`: `wasm` for few rows at once, `node` for many. */
export type HostDenseName = "web" | "node" | "wasm" | "mixed";
/** Those, and `webgpu`, whose weights and results stay on its device (`dense/gpu/`). */
export type DenseName = HostDenseName | "webgpu";

/** The layers alone. */
export interface DenseLayers extends AsyncDisposable {
  readonly name: HostDenseName;
  /** One line for people: engine, version, threads, how the weights are held. */
  readonly detail: string;
  readonly config: ModelConfig;
  /** Bytes of weights this engine holds. */
  readonly weightBytes: number;
  /**
   * Norm and the three projections of layer `layer`, with biases where the model has them.
   * `hidden`: `[count, width]` → `[count, (heads + 2·kvHeads)·headDim]`, each row q then k then v, before RoPE; of a
   * layer that looks at another's keys and values q alone.
   */
  qkv(layer: number, hidden: Float32Array, count: number): Promise<Float32Array>;
  /**
   * Output projection, residual, norm, feed-forward, residual.
   * `hidden`: `[count, width]`, `attention`: `[count, heads·headDim]` → the next hidden state `[count, width]`. `ids`: of the
   * tokens, for a model whose layers have embeddings of their own.
   */
  finish(
    layer: number,
    hidden: Float32Array,
    attention: Float32Array,
    count: number,
    ids?: ArrayLike<number>,
  ): Promise<Float32Array>;
}

/** The dense layers over arrays of this side; shapes in numbers, outermost first. */
export interface DenseEngine extends DenseLayers {
  /** Token embeddings: `[count, width]`. */
  embed(ids: ArrayLike<number>): Float32Array;
  /** Final norm and output head: `[count, width]` → `[count, vocabulary]`. Call it for the rows that need logits. */
  logits(hidden: Float32Array, count: number): Promise<Float32Array>;
}
