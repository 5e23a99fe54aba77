/**
 * A cache that is cloaked while nobody asks. Its rows are cloaked and masked once, by a key that only this object has, and
 * lie here;
 * the backend's are wiped. For a question they are uncloaked into the backend, and wiped again after it: the cloaked ones
 * stay as they are, so nothing drifts from question to question.
 */
import { copyHeads } from "../../../core/backend/copy_heads.ts";
import type { RaggedCache } from "../../../core/cache/ragged.ts";
import { layerShape } from "../../../core/shape.ts";
import { bytesOf } from "../rows.ts";
import { Cloak, type CloakedHead, newSalt } from "./cloak.ts";

/** A head at rest, its rows masked; biases of refitted entries say nothing of the text and stay plain. */
interface RestingHead extends Pick<CloakedHead, "rows" | "largest"> {
  readonly keys: Uint8Array<ArrayBuffer>;
  readonly values: Uint8Array<ArrayBuffer>;
  readonly bias?: Float32Array;
}

/** The masks of a head's keys and values: what no other of this cloak has. */
function purposesOf(layer: number, kvHead: number): [keys: number, values: number] {
  const first = layer * 2 ** 16 + 2 * kvHead;
  return [first, first + 1];
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
        heads.push({ ...await masked(cloak, layer, head, cloaked), ...(rows.bias && { bias: rows.bias }) });
        wipe(rows.keys, rows.values, cloaked.keys, cloaked.values);
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
    const heads = this.#heads[layer].map(async (head, kvHead) => {
      const cloaked = await this.#unmasked(layer, kvHead, head);
      const plain = await this.#cloak.uncover(layer, kvHead, cloaked, headDim);
      wipe(cloaked.keys, cloaked.values);
      return { ...plain, ...(head.bias && { bias: head.bias }) };
    });
    return await Promise.all(heads);
  }

  async #unmasked(layer: number, kvHead: number, { rows, largest, ...sides }: RestingHead): Promise<CloakedHead> {
    const purposes = purposesOf(layer, kvHead);
    const shown = async (side: "keys" | "values", purpose: number) =>
      new Float32Array((await this.#cloak.mask(purpose, sides[side])).buffer);
    return { rows, largest, keys: await shown("keys", purposes[0]), values: await shown("values", purposes[1]) };
  }
}

async function masked(cloak: Cloak, layer: number, kvHead: number, { rows, largest, keys, values }: CloakedHead) {
  const purposes = purposesOf(layer, kvHead);
  const hidden = [await cloak.mask(purposes[0], bytesOf(keys)), await cloak.mask(purposes[1], bytesOf(values))];
  return { rows, largest, keys: hidden[0], values: hidden[1] };
}

function wipe(...arrays: readonly Float32Array[]): void {
  for (const array of arrays) array.fill(0);
}
