/**
 * The selector: the exact top n of a set of entries.
 *
 * Order, best first: protected entries; higher score; higher second key; lower segment; lower index. Scores are
 * float32; −0 counts as +0, NaN as −∞. The order is total, so every backend returns the same set.
 */

/** One (layer, KV head): its entries in ascending position. */
export interface Segment {
  /** `[entries]`, higher = keep. */
  readonly scores: Float32Array;
  /** Second key for equal scores, `[entries]`, higher = keep. */
  readonly second?: Float32Array;
  /** 1 = kept before any score is looked at, `[entries]`. */
  readonly protectedEntries?: Uint8Array;
}

/** What is selected from, and how much stays. */
export interface SelectionInput {
  /** In order of layer, then KV head. */
  readonly segments: readonly Segment[];
  /** How many entries of all segments stay, 0 ≤ count ≤ Σ entries. */
  readonly count: number;
}

/** Keys of entries that stay whatever their score, and that leave whatever it is: beyond those of all floats. */
const STAYS = 0x7fffffff, LEAVES = -0x80000000;
/** What {@link orderedKey} makes of +∞ and −∞. */
const HIGHEST = 0x7f800000, LOWEST = ~0x7f800000;

/**
 * The kept indices of each segment, ascending: one `Int32Array` per segment, `count` entries in all.
 *
 * Three radix passes over the bits per key, so O(entries) whatever the scores are. The inputs are only read.
 * @throws RangeError when `count` is not an integer in 0 … Σ entries or an array's length does not fit its segment.
 */
export function selectTop(input: SelectionInput): Int32Array[] {
  const { segments, count } = input;
  const total = checkSelection(input);
  const pool = {
    keys: new Int32Array(total),
    second: segments.some(({ second }) => second) ? new Int32Array(total) : undefined,
    protectedEntries: segments.some(({ protectedEntries }) => protectedEntries) ? new Uint8Array(total) : undefined,
  };
  let at = 0;
  for (const { scores, second, protectedEntries } of segments) {
    writeKeys(scores, pool.keys, at);
    if (second) writeKeys(second, pool.second!, at);
    if (protectedEntries) pool.protectedEntries!.set(protectedEntries, at);
    at += scores.length;
  }
  const cutoff = new Cutoff(pool, count);
  at = 0;
  return segments.map(({ scores: { length } }) => {
    const rows = new Int32Array(length), kept = cutoff.take(at, at += length, rows, 0);
    return rows.slice(0, kept);
  });
}

/** Entries of all segments in one row, in the selector's order; each array `[entries]`. */
export interface SortKeys {
  /** {@link orderedKey} of the scores. */
  readonly keys: Int32Array;
  /** Of the second keys; +0 has 0, so zeros where there are none. */
  readonly second?: Int32Array;
  /** Not 0 = protected. */
  readonly protectedEntries?: Uint8Array;
}

/** Where entries are cut: what lies above stays, what lies below leaves, and of the equals the first few stay. */
export class Cutoff {
  readonly #keys: Int32Array;
  readonly #second?: Int32Array;
  #key = STAYS;
  #secondKey = STAYS;
  /** How many that equal both keys still stay. */
  #ties = 0;

  /** Keeps `count` entries, 0 … all of them. They are only read. */
  constructor({ keys, second, protectedEntries }: SortKeys, count: number) {
    this.#keys = protectedEntries ? protectedFirst(keys, protectedEntries, count) : keys;
    this.#second = second;
    if (count === 0) return;
    [this.#key, this.#ties] = nthBest(this.#keys, count);
    if (second) [this.#secondKey, this.#ties] = nthBest(secondKeysAt(second, this.#keys, this.#key), this.#ties);
  }

  /**
   * Which of the entries `start … end − 1` stay: their indices from `start` on, written into `rows` from `at` on.
   * Returns where it stopped writing. To be called once for each run of entries, from the first to the last.
   */
  take(start: number, end: number, rows: Int32Array, at: number): number {
    const keys = this.#keys, second = this.#second, key = this.#key, secondKey = this.#secondKey;
    for (let i = start; i < end; i++) {
      if (keys[i] < key) continue;
      if (keys[i] === key && !(second && second[i] > secondKey)) {
        if (this.#ties === 0 || (second && second[i] < secondKey)) continue;
        this.#ties--;
      }
      rows[at++] = i - start;
    }
    return at;
  }
}

/** The second keys of all entries whose first is `key`. */
function secondKeysAt(second: Int32Array, keys: Int32Array, key: number): Int32Array {
  const found = new Int32Array(keys.length);
  let count = 0;
  for (let i = 0; i < keys.length; i++) if (keys[i] === key) found[count++] = second[i];
  return found.subarray(0, count);
}

/** Keys that put protected entries first. When there are too many of them, only they compete. */
function protectedFirst(keys: Int32Array, protectedEntries: Uint8Array, count: number): Int32Array {
  const raised = keys.slice();
  let found = 0;
  for (let i = 0; i < raised.length; i++) {
    if (protectedEntries[i] === 0) continue;
    raised[i] = STAYS;
    found++;
  }
  return found <= count ? raised : keys.map((key, i) => protectedEntries[i] === 0 ? LEAVES : key);
}

/**
 * A float32 as a signed integer of the same order: −0 equals +0 and NaN equals −∞.
 * `bits`: the float's own 32 bits.
 */
export function orderedKey(bits: number): number {
  const magnitude = bits & 0x7fffffff;
  if (magnitude > HIGHEST) return LOWEST;
  return (bits | 0) >= 0 ? magnitude : magnitude === 0 ? 0 : ~magnitude;
}

/** Writes the keys of `floats` into `keys` from `at` on. */
export function writeKeys(floats: Float32Array, keys: Int32Array, at: number): void {
  const bits = new Int32Array(floats.buffer, floats.byteOffset, floats.length);
  for (let i = 0; i < bits.length; i++) keys[at + i] = orderedKey(bits[i]);
}

/** Entries of all segments. @throws RangeError as {@link selectTop}. */
export function checkSelection({ segments, count }: SelectionInput): number {
  let total = 0;
  for (const [index, { scores, second, protectedEntries }] of segments.entries()) {
    for (const other of [second, protectedEntries]) {
      if (other && other.length !== scores.length) {
        throw new RangeError(`Segment ${index} has ${scores.length} scores but a key of ${other.length} entries`);
      }
    }
    total += scores.length;
  }
  if (!Number.isInteger(count) || count < 0 || count > total) {
    throw new RangeError(`Cannot select ${count} entries: want an integer from 0 to ${total}`);
  }
  return total;
}

/**
 * The `count`-th best of `keys` (1 ≤ count ≤ all of them), and how many of its equals belong to the best `count`. Digit by
 * digit from the top; after each digit only the entries that share it are looked at.
 */
function nthBest(keys: Int32Array, count: number): [key: number, equals: number] {
  let left = count, open = keys, prefix = 0;
  for (const [shift, width] of [[21, 11], [10, 11], [0, 10]]) {
    // The sign makes the top digit a signed one.
    const digits = 1 << width, mask = digits - 1, flip = shift === 21 ? digits >> 1 : 0;
    const counts = new Int32Array(digits);
    for (let i = 0; i < open.length; i++) counts[((open[i] >>> shift) & mask) ^ flip]++;
    let digit = mask;
    while (counts[digit] < left) left -= counts[digit--];
    const same = new Int32Array(counts[digit]), wanted = digit ^ flip;
    for (let i = 0, to = 0; i < open.length; i++) {
      if (((open[i] >>> shift) & mask) === wanted) same[to++] = open[i];
    }
    prefix |= wanted << shift;
    open = same;
  }
  return [prefix, left];
}
