/** A dense engine on this side as a device's dense part. */
import type { ModelConfig } from "../config.ts";
import { HOST_TENSORS, type Tensors } from "../../core/backend/tensor.ts";
import type { Dense, Projected } from "./dense.ts";
import type { DenseEngine, DenseName } from "./interface.ts";
import { project } from "./project.ts";

/** Splits what the engine projects, and applies RoPE. Ends the engine with itself. */
export class HostDense implements Dense<Float32Array> {
  readonly engine: DenseEngine;
  readonly name: DenseName;
  readonly detail: string;
  readonly config: ModelConfig;
  readonly weightBytes: number;
  /** What results come from, and go back to. */
  readonly tensors: Tensors<Float32Array>;

  /** `tensors`: those of the backend beside it. */
  constructor(engine: DenseEngine, tensors: Tensors<Float32Array> = HOST_TENSORS) {
    this.tensors = tensors;
    this.engine = engine;
    this.name = engine.name;
    this.detail = engine.detail;
    this.config = engine.config;
    this.weightBytes = engine.weightBytes;
  }

  // deno-lint-ignore require-await -- a bad id must reject, not throw
  async embed(ids: ArrayLike<number>): Promise<Float32Array> {
    return this.engine.embed(ids);
  }

  async project(
    layer: number,
    hidden: Float32Array,
    count: number,
    first: number,
    want?: { readonly unrotated?: boolean },
  ): Promise<Projected<Float32Array>> {
    const qkv = await this.engine.qkv(layer, hidden, count);
    try {
      return project(this.config, layer, qkv, count, first, { ...want, tensors: this.tensors });
    } finally {
      this.tensors.free(qkv);
    }
  }

  finish(
    layer: number,
    hidden: Float32Array,
    attention: Float32Array,
    count: number,
    ids?: ArrayLike<number>,
  ): Promise<Float32Array> {
    return this.engine.finish(layer, hidden, attention, count, ids);
  }

  logits(hidden: Float32Array, count: number): Promise<Float32Array> {
    return this.engine.logits(hidden, count);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve(this.engine[Symbol.asyncDispose]());
  }
}
