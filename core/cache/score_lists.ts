/** A score for every entry of a cache, row by row beside its rows. */
import type { ModelShape } from "../shape.ts";

export class ScoreLists {
  readonly #kvHeads: number;
  /** One per layer and KV head, `[entries]`. */
  readonly lists: Float32Array[];

  constructor({ layers, kvHeads }: Pick<ModelShape, "layers" | "kvHeads">) {
    this.#kvHeads = kvHeads;
    this.lists = Array.from({ length: layers * kvHeads }, () => new Float32Array(0));
  }

  get byteLength(): number {
    return this.lists.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** Scores of `count` entries appended to every head of a layer, `[count, kvHeads]`. */
  append(layer: number, scores: Float32Array, count: number): void {
    for (let g = 0; g < this.#kvHeads; g++) {
      const old = this.lists[layer * this.#kvHeads + g], list = new Float32Array(old.length + count);
      list.set(old);
      for (let t = 0; t < count; t++) list[old.length + t] = scores[t * this.#kvHeads + g];
      this.lists[layer * this.#kvHeads + g] = list;
    }
  }

  /** Scores of all entries of an empty layer, `[kvHeads, length]`. */
  fill(layer: number, scores: Float32Array): void {
    const length = scores.length / this.#kvHeads;
    for (let g = 0; g < this.#kvHeads; g++) {
      this.lists[layer * this.#kvHeads + g] = scores.slice(g * length, (g + 1) * length);
    }
  }

  /** Keeps these rows of each head of a layer, as `RaggedCache.compact` does. */
  compact(layer: number, kept: readonly Int32Array[]): void {
    kept.forEach((rows, g) => {
      const list = this.lists[layer * this.#kvHeads + g];
      this.lists[layer * this.#kvHeads + g] = Float32Array.from(rows, (row) => list[row]);
    });
  }
}
