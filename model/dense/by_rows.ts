/** Two engines as one: layers over few rows run on the one, over many on the other. */
import type { ModelConfig } from "../config.ts";
import type { DenseEngine, DenseLayers } from "./interface.ts";

export class MixedEngine implements DenseEngine {
  readonly name = "mixed";
  readonly detail: string;
  readonly config: ModelConfig;
  readonly weightBytes: number;
  readonly #few: DenseEngine;
  readonly #many: DenseLayers;
  readonly #manyRows: number;

  /** `few` takes layers below `manyRows` rows, embeddings and logits; both are disposed of with this. */
  constructor(few: DenseEngine, many: DenseLayers, manyRows: number) {
    this.detail = `${few.detail}; from ${manyRows} rows at once on: ${many.detail}`;
    this.config = few.config;
    this.weightBytes = few.weightBytes + many.weightBytes;
    this.#few = few;
    this.#many = many;
    this.#manyRows = manyRows;
  }

  embed(ids: ArrayLike<number>): Float32Array {
    return this.#few.embed(ids);
  }

  qkv(layer: number, hidden: Float32Array, count: number): Promise<Float32Array> {
    return this.#for(count).qkv(layer, hidden, count);
  }

  finish(
    layer: number,
    hidden: Float32Array,
    attention: Float32Array,
    count: number,
    ids?: ArrayLike<number>,
  ): Promise<Float32Array> {
    return this.#for(count).finish(layer, hidden, attention, count, ids);
  }

  logits(hidden: Float32Array, count: number): Promise<Float32Array> {
    return this.#few.logits(hidden, count);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#many[Symbol.asyncDispose]();
    } finally {
      await this.#few[Symbol.asyncDispose]();
    }
  }

  #for(count: number): DenseLayers {
    return count < this.#manyRows ? this.#few : this.#many;
  }
}
