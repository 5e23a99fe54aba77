/**
 * Pseudo-queries: embeddings that stand behind the context like tokens, go through every layer with it, and are gone
 * again. What their queries look at is a score; nothing else sees them. For soft tokens (Judge Q, arXiv 2509.10798).
 *
 * Layer-major: their hidden states, `count × width`, wait beside the context's; their rows are behind the context's rows
 * while one layer is observed.
 */
import type { Tensor } from "../../core/backend/tensor.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { Needs, Observation } from "../../core/policy/policy.ts";
import { type AtAttention, layerAttention, layerStep } from "../decode/layer.ts";
import type { Dense } from "../dense/dense.ts";
import type { Device } from "../device.ts";
import type { Behind } from "./behind.ts";

export class Probe implements Disposable {
  readonly #dense: Dense;
  readonly #cache: RaggedCache;
  readonly #length: number;
  readonly #count: number;
  /** `[count, width]`, replaced layer by layer. */
  #hidden: Tensor;

  readonly #behind?: Behind;

  /** `cache` holds the context of `length` tokens, layer by layer complete before {@link layer} is called. */
  constructor(
    { dense, backend }: Device,
    cache: RaggedCache,
    length: number,
    embeddings: Float32Array,
    behind?: Behind,
  ) {
    this.#behind = behind;
    this.#dense = dense;
    this.#cache = cache;
    this.#length = length;
    this.#count = embeddings.length / dense.config.width;
    this.#hidden = backend.tensors.upload(embeddings.slice());
  }

  /** Bytes of the hidden states. */
  get hiddenBytes(): number {
    return this.#hidden.byteLength;
  }

  /**
   * Mean or largest attention on the context's entries over the group and all probes, `[kvHeads, length]`; undefined in a
   * window layer.
   */
  async layer(layer: number, reduction: "mean" | "max"): Promise<Float32Array | undefined> {
    const { config } = this.#dense, count = this.#count;
    const mark = this.#cache.mark();
    // Pooling over one entry changes nothing.
    const needs: Needs = reduction === "mean" ? { window: ["mean"] } : { window: ["pooledMax"], kernel: 1 };
    let observed: Pick<Observation, "mean" | "pooledMax"> = {};
    const first = this.#cache.position + this.#length, behind = this.#behind, lengths = behind?.lengths(layer);
    const attend = async (at: AtAttention) => {
      const { rows, queries, made } = at, own = !behind && (await rows.prefillAttention(queries, count)).output;
      const output = made.add(own || await behind!.attend(layer, at, count, first));
      if (lengths) behind!.back(layer, lengths);
      if (this.#cache.globals.includes(layer)) observed = await rows.observe(queries, count, needs);
      this.#cache.trim(mark);
      return output;
    };
    const input = { layer, hidden: this.#hidden, count, first };
    // After the last layer's attention nobody reads them.
    if (layer === config.layers - 1) await layerAttention(this.#dense, this.#cache, input, attend);
    else {
      const next = await layerStep(this.#dense, this.#cache, input, attend);
      this[Symbol.dispose]();
      this.#hidden = next;
    }
    return observed.mean ?? observed.pooledMax;
  }

  [Symbol.dispose](): void {
    this.#cache.backend.tensors.free(this.#hidden);
  }
}
