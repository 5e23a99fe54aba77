/**
 * Layers that share a budget by preference, decided while they arrive one by one (the cascade of CAKE, arXiv
 * 2503.12491, on our own split).
 *
 * Every head of every layer has room for its sinks and window; the rest, layers × (n − sinks − window) entries per head,
 * is split by `apportion`, in which a new layer only takes from the others. So what a layer loses now it could not have
 * kept later, and after the last layer the sets equal one split over all layers.
 */
import type { Budget, LayerScores } from "../policy/policy.ts";
import { selectTop } from "./select.ts";
import { apportion } from "./apportion.ts";
import { allEntries, bytesOf, type Candidates, type LayerChange, pick } from "./candidates.ts";

interface CascadeLayer {
  readonly layer: number;
  readonly preference: number;
  /** Entries of each head now. */
  count: number;
  heads: Candidates[];
}

/** Shares a budget over layers by their preferences, while they arrive; see the head of the file. */
export class CascadeSelection {
  readonly #budget: Budget;
  /** In ascending order of layer. */
  readonly #layers: CascadeLayer[] = [];

  constructor(budget: Budget) {
    this.#budget = budget;
  }

  /**
   * Takes one layer's scores, `[kvHeads, L]`, with its `preference`, and returns the layers that lose entries now, in
   * ascending order. Layers may come in any order, each once. The scores are copied as far as they survive.
   * @throws RangeError when the layer is unknown or came before, has no preference, or a shape does not fit.
   */
  add(layer: number, scores: LayerScores): LayerChange[] {
    const { model, length } = this.#budget;
    const known = this.#layers.some((each) => each.layer === layer);
    if (!Number.isInteger(layer) || layer < 0 || layer >= model.layers || known) {
      throw new RangeError(`Cannot add layer ${layer}: want each of 0 … ${model.layers - 1} once`);
    }
    const { preference } = scores;
    if (preference === undefined) throw new RangeError(`Cannot add layer ${layer}: it has no preference`);
    this.#layers.push({ layer, preference, count: length, heads: allEntries(scores, this.#budget) });
    this.#layers.sort((a, b) => a.layer - b.layer);
    // The new layer still has all its entries; the others can only lose some.
    const counts = this.#split();
    return this.#layers.flatMap((each, i) => this.#shrink(each, counts[i], each.layer === layer) ?? []);
  }

  /** Positions that are still in, per KV head, ascending. After the last layer: the final kept sets. */
  kept(layer: number): Int32Array[] {
    const found = this.#layers.find((each) => each.layer === layer);
    if (!found) throw new RangeError(`Cannot give layer ${layer}: it was not added`);
    return found.heads.map(({ positions }) => positions.slice());
  }

  /** Bytes of scores, keys and positions held for entries that are still in. */
  get scoreBytes(): number {
    return this.#layers.reduce((sum, { heads }) => sum + bytesOf(heads), 0);
  }

  /** Entries per head of each layer seen so far. */
  #split(): Int32Array {
    const { perHead, sinks, window, model } = this.#budget;
    // Every layer keeps its sinks and window; what it holds beyond them is split.
    const fixed = sinks + window;
    const rooms = this.#layers.map(({ count }) => count - fixed);
    // Early on the layers hold less than the whole budget: then all of it stays.
    const total = Math.min((perHead - fixed) * model.layers, rooms.reduce((sum, room) => sum + room, 0));
    const weights = this.#layers.map(({ preference }) => preference);
    return apportion(weights, rooms, total).map((seats) => seats + fixed);
  }

  /** `undefined` when the layer loses nothing. `copy` makes candidates independent of the caller's arrays. */
  #shrink(each: CascadeLayer, count: number, copy: boolean): LayerChange | undefined {
    const loses = count < each.count;
    if (!loses && !copy) return undefined;
    // Every head of a layer keeps the same number, by its own scores.
    const kept = each.heads.flatMap((head) => selectTop({ segments: [head], count }));
    each.heads = each.heads.map((head, i) => pick(head, kept[i]));
    each.count = count;
    return loses ? { layer: each.layer, kept } : undefined;
  }
}
