/** What a step rule remembers about the entries of one (layer, KV head), kept in step with the cache. */
import type { StepRule } from "./rule.ts";

/** Room is made in whole blocks of entries and kept, so that bytes stop moving once a cache has reached its cap. */
const BLOCK = 64;

/** What a rule remembers of a head's entries while answering. */
export class RuleState {
  readonly #rule: StepRule;
  #statistics: Float64Array[];
  readonly #began: number;
  #length = 0;

  /** `began`: entries the head holds before any step. */
  constructor(rule: StepRule, began = 0) {
    this.#rule = rule;
    this.#began = began;
    this.#statistics = Array.from({ length: rule.statistics }, () => new Float64Array(0));
  }

  /** Entries it knows. */
  get length(): number {
    return this.#length;
  }

  /** Bytes held, room included. */
  get byteLength(): number {
    return this.#statistics.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /**
   * Takes in one step. `group`: the softmax rows of the query heads that share this KV head, `[entries]` each; entries
   * beyond those known are new. A probability that is no finite number counts as 0.
   * @throws RangeError when the rows differ in length or are shorter than what is known.
   */
  update(group: readonly Float32Array[]): void {
    const entries = group[0]?.length ?? 0;
    if (group.some(({ length }) => length !== entries) || entries < this.#length) {
      throw new RangeError(`Cannot take in rows of ${group.map(({ length }) => length)}: ${this.#length} are known`);
    }
    this.fit(entries);
    if (this.#rule.headReduction !== "none") {
      this.#rule.update(this.#statistics, reduced(group, this.#rule.headReduction));
    }
  }

  /** Takes in new entries with scores that were known when their keys were made; for rules that are `predicted`. */
  remember(predicted: Float32Array): void {
    const known = this.#length;
    this.fit(known + predicted.length);
    this.#statistics[0].set(predicted, known);
  }

  /** `[length]`, higher = keep. */
  scores(): Float32Array {
    return this.#rule.scores(this.#statistics, this.#length, this.#began);
  }

  /** Follows the cache to `length` entries: new ones know nothing, dropped ones (from the end) are forgotten. */
  fit(length: number): void {
    if (!Number.isInteger(length) || length < 0) throw new RangeError(`Cannot remember ${length} entries`);
    if (length < this.#length) { for (const each of this.#statistics) each.fill(0, length, this.#length); }
    if (length > (this.#statistics[0]?.length ?? Infinity)) {
      this.#statistics = this.#statistics.map((each) => {
        const grown = new Float64Array(Math.ceil(length / BLOCK) * BLOCK);
        grown.set(each.subarray(0, this.#length));
        return grown;
      });
    }
    this.#length = length;
  }

  /** Keeps these entries (ascending, unique indices), as the cache does. */
  compact(kept: Int32Array): void {
    kept.forEach((from, to) => {
      if (from >= this.#length || from < to) throw new RangeError(`Cannot keep entry ${from} of ${this.#length}`);
      for (const each of this.#statistics) each[to] = each[from];
    });
    this.fit(kept.length);
  }
}

/** `[entries]`. */
function reduced(group: readonly Float32Array[], by: "mean" | "max"): Float64Array {
  const into = new Float64Array(group[0].length);
  for (const row of group) {
    for (let i = 0; i < into.length; i++) {
      const p = Number.isFinite(row[i]) ? row[i] : 0;
      into[i] = by === "max" ? Math.max(into[i], p) : into[i] + p / group.length;
    }
  }
  return into;
}
