/**
 * A cache that is cloaked while nobody asks. Its rows are cloaked once, by a key that only this object has, and lie here;
 * the backend's are wiped. For a question they are uncloaked into the backend, and wiped again after it: the cloaked ones
 * stay as they are, so nothing drifts from question to question.
 */
import { copyHeads } from "../../../core/backend/copy_heads.ts";
import type { RaggedCache } from "../../../core/cache/ragged.ts";
import { layerShape } from "../../../core/shape.ts";
import { Cloak, type CloakedHead, newSalt } from "./cloak.ts";

/** A head at rest; biases of refitted entries say nothing of the text and stay plain. */
interface RestingHead extends CloakedHead {
  readonly bias?: Float32Array;
}

export class CloakedRest {
  readonly #cache: RaggedCache;
  readonly #cloak: Cloak;
  /** `[layers][kvHeads]`. */
  readonly #heads: readonly (readonly RestingHead[])[];
  readonly #bytes: number;

  private constructor(cache: RaggedCache, cloak: Cloak, heads: readonly (readonly RestingHead[])[]) {
    this.#cache = cache;
    this.#cloak = cloak;
    this.#heads = heads;
    const sizes = heads.flat().map(({ keys, values, bias }) =>
      keys.byteLength + values.byteLength + (bias?.byteLength ?? 0)
    );
    this.#bytes = sizes.reduce((sum, size) => sum + size, 0);
    cache.hide(this.#bytes);
  }

  /** Lays a cache to rest. @throws PalisadeError input `cloak.range`, resources `seal.no-crypto`; it is awake then. */
  static async of(cache: RaggedCache): Promise<CloakedRest> {
    const key = crypto.getRandomValues(new Uint8Array(32));
    const cloak = await Cloak.of({ kind: "key", bytes: key }, newSalt());
    // The cloak keeps it where scripts can't read it.
    key.fill(0);
    const { layers } = cache.shape, all: RestingHead[][] = [];
    for (let layer = 0; layer < layers; layer++) {
      const heads: RestingHead[] = [];
      for (const [head, rows] of (await copyHeads(cache.rows(layer))).entries()) {
        const cloaked = await cloak.cover(layer, head, rows, layerShape(cache.shape, layer).headDim);
        heads.push({ ...cloaked, ...(rows.bias && { bias: rows.bias }) });
        wipe(rows.keys, rows.values);
      }
      all.push(heads);
    }
    return new CloakedRest(cache, cloak, all);
  }

  /** Does something with the cache awake. What is appended meanwhile is gone afterwards. */
  async awake<T>(work: () => Promise<T>): Promise<T> {
    const mark = this.#cache.mark();
    await this.#cache.show((layer) => this.#uncovered(layer));
    try {
      return await work();
    } finally {
      this.#cache.trim(mark);
      this.#cache.hide(this.#bytes);
    }
  }

  async #uncovered(layer: number) {
    const { headDim } = layerShape(this.#cache.shape, layer);
    const heads = this.#heads[layer].map(async (head, kvHead) => ({
      ...await this.#cloak.uncover(layer, kvHead, head, headDim),
      ...(head.bias && { bias: head.bias }),
    }));
    return await Promise.all(heads);
  }
}

function wipe(...arrays: readonly Float32Array[]): void {
  for (const array of arrays) array.fill(0);
}
