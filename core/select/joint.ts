/**
 * Joint selection over layers while they arrive one by one.
 *
 * An entry outside the best `total` of the layers seen so far can't be in the final set, because later layers only add
 * rivals. So it is dropped at once, and what is left after the last layer equals one selection over all layers.
 */
import { segmentsOf } from "./allocate.ts";
import type { Budget, LayerScores } from "../policy/policy.ts";
import { Cutoff, type SortKeys, writeKeys } from "./select.ts";
import type { LayerChange } from "./candidates.ts";

/** Entries that are still in, in the selector's order: layer, KV head, position. */
interface Entries extends SortKeys {
  /** Positions in the context, `[entries]`. */
  readonly positions: Int32Array;
}

/** One `selectTop` over the heads of all layers with `budget.total` entries, taken layer by layer. */
export class JointSelection {
  readonly #budget: Budget;
  /** Entries of each layer's heads, `[layers][kvHeads]`; none for layers that have not come. */
  readonly #counts: (number[] | undefined)[];
  /** One flat list: hundreds of short arrays per layer would cost more than the selection. */
  #entries: Entries = { keys: new Int32Array(0), positions: new Int32Array(0) };

  constructor(budget: Budget) {
    this.#budget = budget;
    this.#counts = new Array(budget.model.layers).fill(undefined);
  }

  /**
   * Takes one layer's scores, `[kvHeads, L]`, and returns the layers that lose entries now, in ascending order.
   * Layers may come in any order, each once. The scores are copied as far as they survive.
   * @throws RangeError when the layer is unknown or came before, or a shape does not fit.
   */
  add(layer: number, scores: LayerScores): LayerChange[] {
    const { model, length, total } = this.#budget;
    if (!Number.isInteger(layer) || layer < 0 || layer >= model.layers || this.#counts[layer]) {
      throw new RangeError(`Cannot add layer ${layer}: want each of 0 … ${model.layers - 1} once`);
    }
    // The entries join at their layer's place, so that the list stays in order of layer, head, position.
    const added = entriesOf(scores, this.#budget);
    this.#entries = inserted(this.#entries, added, this.#start(layer));
    this.#counts[layer] = new Array(model.kvHeads).fill(length);
    // While all fit, nobody leaves.
    return this.#entries.keys.length > total ? this.#shrink(total) : [];
  }

  /** Positions that are still in, per KV head, ascending. After the last layer: the final kept sets. */
  kept(layer: number): Int32Array[] {
    const counts = this.#counts[layer];
    if (!counts) throw new RangeError(`Cannot give layer ${layer}: it was not added`);
    let at = this.#start(layer);
    return counts.map((count) => this.#entries.positions.slice(at, at += count));
  }

  /** Bytes of scores, keys and positions held for entries that are still in. */
  get scoreBytes(): number {
    const { keys, second, protectedEntries, positions } = this.#entries;
    return keys.byteLength + (second?.byteLength ?? 0) + (protectedEntries?.byteLength ?? 0) + positions.byteLength;
  }

  /** Where the layer's entries begin. */
  #start(layer: number): number {
    return this.#counts.slice(0, layer).flat().reduce<number>((sum, count) => sum + (count ?? 0), 0);
  }

  /** Keeps the best `total` entries. */
  #shrink(total: number): LayerChange[] {
    const cutoff = new Cutoff(this.#entries, total), changes: LayerChange[] = [];
    const rows = new Int32Array(total), places = new Int32Array(total);
    // `start`: the head's first entry in the list as it was; `at`: its first among those that stay.
    let start = 0, at = 0;
    this.#counts.forEach((counts, layer) => {
      if (!counts) return;
      const [before, first] = [start, at];
      const kept = counts.map((count, head) => {
        const from = at;
        // Rows count from the head's first entry, as the cache does; places from the start of the list.
        at = cutoff.take(start, start + count, rows, at);
        for (let i = from; i < at; i++) places[i] = start + rows[i];
        start += count;
        counts[head] = at - from;
        return rows.subarray(from, at);
      });
      // Fewer stay than there were: the layer loses entries.
      if (at - first < start - before) changes.push({ layer, kept });
    });
    // What stays moves up in place; behind it is room for the next layer.
    this.#entries = picked(this.#entries, places);
    return changes;
  }
}

/** All entries of a layer. */
function entriesOf(layer: LayerScores, { model, length }: Budget): Entries {
  segmentsOf(layer, model.kvHeads, length);
  const { scores, second, protectedEntries } = layer;
  const positions = new Int32Array(scores.length);
  for (let i = 0; i < positions.length; i++) positions[i] = i % length;
  return { keys: keysOf(scores), second: second && keysOf(second), protectedEntries, positions };
}

function keysOf(floats: Float32Array): Int32Array {
  const keys = new Int32Array(floats.length);
  writeKeys(floats, keys, 0);
  return keys;
}

/** `more` put into `pool` at place `at`: in the same memory, where there is room behind the entries. */
function inserted(pool: Entries, more: Entries, at: number): Entries {
  const old = pool.keys.length, count = more.keys.length, length = old + count;
  const put = <T extends Int32Array | Uint8Array>(kind: Kind<T>, from?: T, added?: T): T | undefined => {
    if (!from && !added) return;
    let all = new kind(from?.buffer ?? length);
    if (all.length < length) all = new kind(length);
    all.set(from ?? []);
    all.copyWithin(at + count, at, old).fill(0, at, at + count).set(added ?? [], at);
    return all.subarray(0, length) as T;
  };
  return {
    keys: put(Int32Array, pool.keys, more.keys)!,
    positions: put(Int32Array, pool.positions, more.positions)!,
    second: put(Int32Array, pool.second, more.second),
    protectedEntries: put(Uint8Array, pool.protectedEntries, more.protectedEntries),
  };
}

type Kind<T> = new (memory: ArrayBufferLike | number) => T;

/** The entries at the given places, ascending, in the same memory. */
function picked({ keys, second, protectedEntries, positions }: Entries, places: Int32Array): Entries {
  const count = places.length;
  for (let i = 0; i < count; i++) {
    const place = places[i];
    keys[i] = keys[place];
    positions[i] = positions[place];
    if (second) second[i] = second[place];
    if (protectedEntries) protectedEntries[i] = protectedEntries[place];
  }
  return {
    keys: keys.subarray(0, count),
    second: second?.subarray(0, count),
    protectedEntries: protectedEntries?.subarray(0, count),
    positions: positions.subarray(0, count),
  };
}
