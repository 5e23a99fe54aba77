/**
 * A context that was evicted before, and is read on behind: new tokens attend over what was kept of it and over each
 * other. What is new lies in a cache of its own meanwhile, where it is observed, judged and evicted from as a context of
 * its own; so everything that can be done to a context can be done to it, and what was kept stays as it is.
 */
import { copyHeads } from "../../core/backend/copy_heads.ts";
import type { CopiedRows } from "../../core/backend/interface.ts";
import type { Tensor } from "../../core/backend/tensor.ts";
import { type CacheType, checkCacheType, partsOf, type RowType } from "../../core/cache/entry_type.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { concatenate } from "../../core/concatenate.ts";
import { windowOf } from "../../core/shape.ts";
import type { AtAttention } from "../decode/layer.ts";

/** First keys of a head that take the attention that goes nowhere; one head after another, `[kvHeads][count · headDim]`. */
export interface SinkKeys {
  readonly count: number;
  readonly keys: readonly Float32Array[];
}

/** What is read on behind. Of a layer it holds all that is new only while that layer is read. */
export class Behind {
  readonly cache: RaggedCache;
  /** Entries of each head before anything was read on, `[layers][kvHeads]`. */
  readonly #before: readonly Int32Array[];

  constructor(cache: RaggedCache) {
    this.cache = cache;
    this.#before = Array.from({ length: cache.shape.layers }, (_, layer) => this.lengths(layer));
  }

  /** An empty cache for what is new, at the positions that follow, in rows of `type` that are not packed yet. */
  tail(type: CacheType = "f32"): RaggedCache {
    const { backend, shape, position, seen } = this.cache, { keys, values } = partsOf(type);
    const loose = (rows: RowType) => rows === "int4" ? "f16" : rows;
    const tail = new RaggedCache(backend, shape, checkCacheType(`k=${loose(keys)},v=${loose(values)}`));
    tail.resume(position, seen);
    return tail;
  }

  /** Entries of each head of a layer. */
  lengths(layer: number): Int32Array {
    return Int32Array.from({ length: this.cache.shape.kvHeads }, (_, head) => this.cache.length(layer, head));
  }

  /** Takes a chunk's keys and values, the first at logical position `first`, and gives its attention over all there is. */
  async attend(layer: number, { queries, keys, values }: AtAttention, count: number, first: number): Promise<Tensor> {
    this.cache.append(layer, keys, values, count, first);
    return (await this.cache.rows(layer).decodeAttention(queries, count)).output;
  }

  /** Drops all entries of a layer but the first so many of each head. */
  back(layer: number, lengths: Int32Array): void {
    this.cache.compact(layer, Array.from(lengths, (length) => Int32Array.from({ length }, (_, i) => i)));
  }

  /** A layer is through: what is new waits elsewhere, but in a window layer, which keeps what can be looked back to. */
  end(layer: number): void {
    if (windowOf(this.cache.shape, layer) < Infinity) this.cache.release(layer);
    else this.back(layer, this.#before[layer]);
  }

  /** The first keys of each head, where all of them have the same first tokens, at most `most`. */
  async sinks(layer: number, most: number): Promise<SinkKeys> {
    const { cache } = this,
      { kvHeads, headDim } = cache.shape,
      heads = Array.from({ length: kvHeads }, (_, head) => head);
    const firsts = (head: number) => {
      const end = cache.positions(layer, head).subarray(0, most).findIndex((position, i) => position !== i);
      return end === -1 ? Math.min(most, this.#before[layer][head]) : end;
    };
    const count = Math.min(...heads.map(firsts));
    if (count === 0) return { count, keys: heads.map(() => new Float32Array(0)) };
    const copied = await Promise.all(heads.map((head) => cache.rows(layer).copyRows(head)));
    return { count, keys: copied.map(({ keys }) => keys.slice(0, count * headDim)) };
  }

  /** Takes over what stayed of `tail`, behind what was there, biases too; packed where its type is. */
  async join(tail: RaggedCache, count: number): Promise<void> {
    const { cache } = this;
    for (const layer of cache.globals) {
      const heads = await copyHeads(tail.rows(layer));
      cache.fill(
        layer,
        heads.map(({ keys, values }, head) => ({ keys, values, positions: tail.positions(layer, head) })),
      );
      for (const [head, { bias }] of heads.entries()) if (bias?.length) await this.#addBiases(layer, head, bias);
    }
    cache.settle();
    cache.advance(count);
    await cache.packAll();
  }

  async #addBiases(layer: number, head: number, added: NonNullable<CopiedRows["bias"]>): Promise<void> {
    const before = this.#before[layer][head], rows = await this.cache.rows(layer).copyRows(head);
    const old = new Float32Array(before);
    if (rows.bias) old.set(rows.bias.subarray(0, before));
    this.cache.refit(layer, head, { values: rows.values, bias: concatenate([old, added], Float32Array) });
  }
}
