/**
 * Joint selection over layers while they arrive one by one.
 *
 * An entry outside the best `total` of the layers seen so far can't be in the final set, because later layers only add
 * rivals. So it is dropped at once, and what is left after the last layer equals one selection over all layers.
 */
import type { Budget, LayerScores } from "./policy.ts";
import { selectTop } from "./select.ts";
import { allEntries, bytesOf, type LayerChange, pick, type Survivors } from "./survivors.ts";

/** The streaming twin of one `selectTop` over the heads of all layers with `budget.total` entries. */
export class JointSelection {
  readonly #budget: Budget;
  readonly #layers = new Map<number, Survivors[]>();

  constructor(budget: Budget) {
    this.#budget = budget;
  }

  /**
   * Takes one layer's scores, `[kvHeads, L]`, and returns the layers that lose entries now, in ascending order.
   * Layers may come in any order, each once. The scores are copied as far as they survive.
   * @throws RangeError when the layer is unknown or came before, or a shape does not fit.
   */
  add(layer: number, scores: LayerScores): LayerChange[] {
    const { model, total } = this.#budget;
    if (!Number.isInteger(layer) || layer < 0 || layer >= model.layers || this.#layers.has(layer)) {
      throw new RangeError(`Cannot add layer ${layer}: want each of 0 … ${model.layers - 1} once`);
    }
    this.#layers.set(layer, allEntries(scores, this.#budget));

    const order = [...this.#layers.keys()].sort((a, b) => a - b);
    const segments = order.flatMap((each) => this.#layers.get(each)!);
    const entries = segments.reduce((sum, { scores }) => sum + scores.length, 0);
    const kept = selectTop({ segments, count: Math.min(total, entries) });
    const changes = order.map((each, i) => ({
      layer: each,
      kept: kept.slice(i * model.kvHeads, (i + 1) * model.kvHeads),
    }));
    return changes.filter((change) => this.#shrink(change, change.layer === layer));
  }

  /** Positions that are still in, per KV head, ascending. After the last layer: the final kept sets. */
  kept(layer: number): Int32Array[] {
    const heads = this.#layers.get(layer);
    if (!heads) throw new RangeError(`Cannot give layer ${layer}: it was not added`);
    return heads.map(({ positions }) => positions.slice());
  }

  /** Bytes of scores, keys and positions held for the survivors. */
  get scoreBytes(): number {
    return [...this.#layers.values()].reduce((sum, heads) => sum + bytesOf(heads), 0);
  }

  /** Applies one change; false when the layer loses nothing. `copy` makes survivors independent of the caller's arrays. */
  #shrink({ layer, kept }: LayerChange, copy: boolean): boolean {
    const heads = this.#layers.get(layer)!;
    const loses = (head: Survivors, i: number) => head.scores.length !== kept[i].length;
    const changed = heads.map((head, i) => copy || loses(head, i) ? pick(head, kept[i]) : head);
    this.#layers.set(layer, changed);
    return heads.some(loses);
  }
}
