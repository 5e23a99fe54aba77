/**
 * The merging stage of a reading, behind any selection: when a layer loses entries, each goes into the nearest kept one
 * of its head (`core/merge/merge.ts`). Where layers compete, that happens each time entries leave; merging merged ones
 * gives what merging all at once would.
 */
import { copyHeads } from "../../core/backend/copy_heads.ts";
import type { CopiedRows, LayerRows } from "../../core/backend/interface.ts";
import type { Tensor } from "../../core/backend/tensor.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { option, PalisadeError, say } from "../../core/errors.ts";
import { type Merge, type MergedEntries, mergeHead } from "../../core/merge/merge.ts";
import { WINDOW } from "../../core/policy/parameters.ts";
import type { Backend } from "../../core/backend/interface.ts";

/** What a merge did. */
export interface MergeFigures {
  readonly merge: Exclude<Merge, "none">;
  /** Last tokens whose attention the shares went by. */
  readonly window: number;
  /** Evicted entries that went into another, and those that are lost: no query of the window could judge them. */
  readonly merged: number;
  readonly lost: number;
  readonly ms: number;
}

/** Refuses a merge by weight where attention adds no biases. @throws PalisadeError input `merge.backend`. */
export function checkMerge(merge: Merge | undefined, { refits, name }: Pick<Backend, "refits" | "name">): void {
  if (merge !== "sum" || refits) return;
  const message = say`The ${name} backend adds no biases to attention: take ${option("merge")} mean`;
  throw new PalisadeError("input", "merge.backend", message, { where: option("merge") });
}

/** Last tokens that judge where the policy asks for no window: a quarter of a short context. */
export function mergeWindow(length: number): number {
  return Math.max(1, Math.min(WINDOW.default, Math.floor(length / 4)));
}

/** Merges what leaves a cache, layer by layer. */
export class MergeStage {
  readonly #cache: RaggedCache;
  readonly #merge: Exclude<Merge, "none">;
  readonly #window: number;
  /** Masses of the rows that are there, `[layer][kvHeads]`. */
  readonly #masses = new Map<number, Float64Array[]>();
  /** The most bytes of copied rows at once. */
  copyBytes = 0;
  #merged = 0;
  #lost = 0;
  #ms = 0;

  constructor(cache: RaggedCache, merge: Exclude<Merge, "none">, window: number) {
    this.#cache = cache;
    this.#merge = merge;
    this.#window = window;
  }

  /** Bytes of the masses. */
  get byteLength(): number {
    return [...this.#masses.values()].flat().reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** Drops the masses of a layer that loses nothing more. */
  forget(layer: number): void {
    this.#masses.delete(layer);
  }

  /** Measures a layer that is whole. `queries`: its last `window` ones, `[window, heads, headDim]`. */
  async add(layer: number, queries: Tensor): Promise<void> {
    const rows = this.#cache.rows(layer), { kvHeads } = this.#cache.shape;
    const { mean } = await rows.observe(queries, this.#window, { window: ["mean"] });
    const prefix = mean!.length / kvHeads;
    this.#masses.set(
      layer,
      Array.from({ length: kvHeads }, (_, head) => {
        const masses = new Float64Array(rows.length(head)).fill(NaN);
        masses.set(mean!.subarray(head * prefix, (head + 1) * prefix));
        return masses;
      }),
    );
  }

  /**
   * Keeps these rows of each head of `layer` as `RaggedCache.compact`, and merges the others into them. `between` is
   * called when the others are gone and nothing is merged yet.
   */
  async compact(layer: number, kept: readonly Int32Array[], between?: () => Promise<void>): Promise<void> {
    const start = performance.now(), masses = this.#masses.get(layer)!;
    if (kept.every((rows, head) => rows.length === masses[head].length)) return await between?.();
    const positions = kept.map((_, head) => this.#cache.positions(layer, head));
    const copies = await this.#copies(this.#cache.rows(layer));
    const heads = copies.map((copy, head) =>
      this.#head({ ...copy, positions: positions[head] }, masses[head], kept[head])
    );
    this.#cache.compact(layer, kept);
    this.#ms += performance.now() - start;
    await between?.();
    const middle = performance.now();
    this.#cache.rewrite(layer, heads.map(({ keys, values, bias }) => ({ keys, values, ...(bias && { bias }) })));
    this.#masses.set(layer, heads.map((head) => head.masses));
    this.#ms += performance.now() - middle;
  }

  async #copies(rows: LayerRows): Promise<CopiedRows[]> {
    const copies = await copyHeads(rows);
    const bytes = copies.reduce((sum, { keys, values }) => sum + keys.byteLength + values.byteLength, 0);
    this.copyBytes = Math.max(this.copyBytes, bytes);
    return copies;
  }

  #head(rows: CopiedRows & { readonly positions: Int32Array }, masses: Float64Array, kept: Int32Array) {
    const { headDim } = this.#cache.shape;
    const made: MergedEntries = mergeHead({ ...rows, masses }, kept, headDim, this.#merge);
    this.#merged += made.merged;
    this.#lost += made.lost;
    return { ...made, bias: this.#merge === "sum" && made.bias.length > 0 ? made.bias : undefined };
  }

  figures(): MergeFigures {
    return { merge: this.#merge, window: this.#window, merged: this.#merged, lost: this.#lost, ms: this.#ms };
  }
}
