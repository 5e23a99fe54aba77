/**
 * Merging what is evicted into what stays, after Elastic Cache (arXiv 2407.18121): an evicted entry goes into the kept
 * entry of its head that is nearest by position, its *anchor*.
 *
 * An entry's *mass* m is the attention that the last queries gave it, meaned over queries and group. A group of entries
 * with shares w = m / Σm becomes one with
 *
 *     k' = Σ wᵢ kᵢ      v' = Σ wᵢ vᵢ      β = Σ wᵢ (βᵢ − ln wᵢ)      m' = Σ mᵢ
 *
 * `mean` takes k' and v' alone: the anchor weighs as one entry, as published. `sum` adds β to its logit, the entropy of the
 * shares: the logarithm of how many entries it stands for. For one query that is exact in weight, because its logits
 * are linear in the key: exp(q·k' + β) = Σ exp(q·kᵢ). For n entries with equal keys the shares are equal and β is ln n,
 * so attention over the merged entry is attention over them all. Merging merged entries once more gives the same as
 * merging all at once.
 *
 * The published code takes plain means and no weight; what stays is another policy's business here. Keys are meaned as
 * they are stored, after RoPE.
 */
import { ln } from "../measure/exp.ts";

/** What becomes of evicted entries. */
export const MERGES = ["none", "mean", "sum"] as const;
export type Merge = typeof MERGES[number];

/** Entries of one head before its eviction. */
export interface MergeEntries {
  /** `[rows, headDim]`, as stored. */
  readonly keys: Float32Array;
  /** `[rows, headDim]`. */
  readonly values: Float32Array;
  /** Of the first rows; 0 for the others. */
  readonly bias?: Float32Array;
  /** True positions, ascending, `[rows]`. */
  readonly positions: Int32Array;
  /** `[rows]`, ≥ 0; NaN for an entry that no query of the window could judge: it is no anchor, and isn't merged. */
  readonly masses: Float64Array;
}

/** The entries that stay, `[kept]`, with what was merged into them. */
export interface MergedEntries {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** `[kept]`; all 0 with `mean`. */
  readonly bias: Float32Array;
  readonly masses: Float64Array;
  /** Evicted entries that went into another, and those that are lost. */
  readonly merged: number;
  readonly lost: number;
}

/** An entry that nobody looked at still weighs something beside others like it. */
const LEAST_MASS = 1e-30;

/** Merges the rows that are not in `kept` (ascending) into those that are. O(rows · headDim). */
export function mergeHead(
  entries: MergeEntries,
  kept: Int32Array,
  headDim: number,
  merge: Exclude<Merge, "none">,
): MergedEntries {
  const anchors = anchorsOf(entries, kept), groups = new Groups(entries, kept, headDim);
  let merged = 0;
  for (let row = 0; row < anchors.length; row++) {
    if (anchors[row] < 0) continue;
    if (kept[anchors[row]] !== row) merged++;
    groups.add(anchors[row], row);
  }
  const lost = anchors.length - kept.length - merged;
  return { ...groups.result(merge), merged, lost };
}

/**
 * For each row the index among `kept` of where it goes; −1 for one that goes nowhere: lost, or kept without being an
 * anchor. Of two that are equally near the earlier is taken.
 */
export function anchorsOf({ positions, masses }: Pick<MergeEntries, "positions" | "masses">, kept: Int32Array) {
  const to = new Int32Array(positions.length).fill(-1);
  const able = Int32Array.from({ length: kept.length }, (_, i) => i).filter((i) => !Number.isNaN(masses[kept[i]]));
  if (able.length === 0) return to;
  const stays = new Uint8Array(positions.length);
  for (const row of kept) stays[row] = 1;
  const distance = (at: number, row: number) => Math.abs(positions[kept[able[at]]] - positions[row]);
  for (let row = 0, at = 0; row < positions.length; row++) {
    if (Number.isNaN(masses[row])) continue;
    while (at + 1 < able.length && distance(at + 1, row) < distance(at, row)) at++;
    if (!stays[row] || kept[able[at]] === row) to[row] = able[at];
  }
  return to;
}

/** Sums of each anchor's group, in doubles. */
class Groups {
  readonly #entries: MergeEntries;
  readonly #kept: Int32Array;
  readonly #headDim: number;
  readonly #keys: Float64Array;
  readonly #values: Float64Array;
  /** Σ m, and Σ m · (β − ln m). */
  readonly #mass: Float64Array;
  readonly #entropy: Float64Array;
  /** Rows in each group. */
  readonly #counts: Int32Array;

  constructor(entries: MergeEntries, kept: Int32Array, headDim: number) {
    this.#entries = entries;
    this.#kept = kept;
    this.#headDim = headDim;
    this.#keys = new Float64Array(kept.length * headDim);
    this.#values = new Float64Array(kept.length * headDim);
    this.#mass = new Float64Array(kept.length);
    this.#entropy = new Float64Array(kept.length);
    this.#counts = new Int32Array(kept.length);
  }

  add(to: number, row: number): void {
    const { keys, values, masses, bias } = this.#entries, headDim = this.#headDim;
    const mass = Math.max(masses[row], LEAST_MASS);
    for (let j = 0, at = to * headDim, from = row * headDim; j < headDim; j++) {
      this.#keys[at + j] += mass * keys[from + j];
      this.#values[at + j] += mass * values[from + j];
    }
    this.#mass[to] += mass;
    this.#entropy[to] += mass * ((bias?.[row] ?? 0) - ln(mass));
    this.#counts[to]++;
  }

  result(merge: Exclude<Merge, "none">): Pick<MergedEntries, "keys" | "values" | "bias" | "masses"> {
    const { keys, values, bias, masses } = this.#entries, headDim = this.#headDim, kept = this.#kept;
    const out = { keys: picked(keys, kept, headDim), values: picked(values, kept, headDim) };
    const biases = Float32Array.from(kept, (row) => bias?.[row] ?? 0);
    const sums = Float64Array.from(kept, (row) => masses[row]);
    kept.forEach((_, i) => {
      // A row by itself stays to the bit.
      if (this.#counts[i] < 2) return;
      const mass = sums[i] = this.#mass[i];
      for (let j = i * headDim; j < (i + 1) * headDim; j++) {
        out.keys[j] = this.#keys[j] / mass;
        out.values[j] = this.#values[j] / mass;
      }
      if (merge === "sum") biases[i] = this.#entropy[i] / mass + ln(mass);
    });
    return { ...out, bias: biases, masses: sums };
  }
}

function picked(rows: Float32Array, kept: Int32Array, headDim: number): Float32Array {
  const out = new Float32Array(kept.length * headDim);
  kept.forEach((row, to) => out.set(rows.subarray(row * headDim, (row + 1) * headDim), to * headDim));
  return out;
}
