/**
 * The selector: the exact top n of one pool of entries.
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

export interface SelectionInput {
  /** In order of layer, then KV head. */
  readonly segments: readonly Segment[];
  /** How many entries of the whole pool stay, 0 ≤ count ≤ Σ entries. */
  readonly count: number;
}

/** States of an entry while the pool is narrowed down. */
const OPEN = 0, KEPT = 1, OUT = 2;

/** Entries of all segments in one row, in the selector's order. */
interface Pool {
  readonly state: Uint8Array;
  readonly key: Uint32Array;
  /** How many more open entries may stay. */
  left: number;
}

/**
 * The kept indices of each segment, ascending: one `Int32Array` per segment, `count` entries in all.
 *
 * Three radix passes over the bits per key, so O(entries) whatever the scores are. The inputs are only read.
 * @throws RangeError when `count` is not an integer in 0 … Σ entries or an array's length does not fit its segment.
 */
export function selectTop(input: SelectionInput): Int32Array[] {
  const { segments, count } = input;
  const total = checkedTotal(segments);
  if (!Number.isInteger(count) || count < 0 || count > total) {
    throw new RangeError(`Cannot select ${count} entries: want an integer from 0 to ${total}`);
  }
  const pool: Pool = { state: new Uint8Array(total), key: new Uint32Array(total), left: count };
  narrowByProtection(pool, segments);
  narrowByFloats(pool, segments, (segment) => segment.scores);
  if (segments.some((segment) => segment.second)) narrowByFloats(pool, segments, (segment) => segment.second);
  keepFirst(pool);
  return collect(pool, segments);
}

/**
 * A float32 as an unsigned integer of the same order: −0 equals +0 and NaN equals −∞.
 * `bits`: the float's own 32 bits.
 */
export function orderedKey(bits: number): number {
  const magnitude = bits & 0x7fffffff;
  if (magnitude === 0) return 0x80000000;
  if (magnitude > 0x7f800000) return 0x007fffff; // NaN: the key of −∞
  return (bits < 0 || bits > 0x7fffffff ? ~bits : bits | 0x80000000) >>> 0;
}

function checkedTotal(segments: readonly Segment[]): number {
  let total = 0;
  for (const [index, { scores, second, protectedEntries }] of segments.entries()) {
    for (const other of [second, protectedEntries]) {
      if (other && other.length !== scores.length) {
        throw new RangeError(`Segment ${index} has ${scores.length} scores but a key of ${other.length} entries`);
      }
    }
    total += scores.length;
  }
  return total;
}

/** Protected entries come before all others. */
function narrowByProtection(pool: Pool, segments: readonly Segment[]): void {
  let at = 0;
  for (const segment of segments) {
    for (let i = 0; i < segment.scores.length; i++) pool.key[at++] = segment.protectedEntries?.[i] ? 1 : 0;
  }
  narrow(pool);
}

/** Narrows by a float key; a segment without one counts as all +0. */
function narrowByFloats(pool: Pool, segments: readonly Segment[], key: (segment: Segment) => Float32Array | undefined) {
  let at = 0;
  for (const segment of segments) {
    const floats = key(segment), { length } = segment.scores;
    const bits = floats && new Uint32Array(floats.buffer, floats.byteOffset, floats.length);
    for (let i = 0; i < length; i++) pool.key[at++] = orderedKey(bits ? bits[i] : 0);
  }
  narrow(pool);
}

/** Keeps every open entry whose key lies above the cut, drops every one below; those at the cut stay open. */
function narrow(pool: Pool): void {
  const { state, key } = pool;
  const cut = cutKey(pool);
  for (let i = 0; i < state.length; i++) {
    if (state[i] !== OPEN || key[i] === cut) continue;
    state[i] = key[i] > cut ? KEPT : OUT;
    if (state[i] === KEPT) pool.left--;
  }
}

/**
 * The key of the `left`-th best open entry, digit by digit from the top; above all keys when `left` is 0. After each
 * digit only the entries that share it are looked at.
 */
function cutKey({ state, key, left }: Pool): number {
  if (left === 0) return Infinity;
  let keys = new Uint32Array(state.length), open = 0;
  for (let i = 0; i < state.length; i++) if (state[i] === OPEN) keys[open++] = key[i];
  keys = keys.subarray(0, open);
  let prefix = 0;
  for (const [shift, width] of [[21, 11], [10, 11], [0, 10]]) {
    const digits = 1 << width, counts = new Uint32Array(digits);
    for (let i = 0; i < keys.length; i++) counts[(keys[i] >>> shift) & (digits - 1)]++;
    let digit = digits - 1;
    while (digit > 0 && counts[digit] < left) left -= counts[digit--];
    prefix = prefix * digits + digit;
    let same = 0;
    for (let i = 0; i < keys.length; i++) {
      if (((keys[i] >>> shift) & (digits - 1)) === digit) keys[same++] = keys[i];
    }
    keys = keys.subarray(0, same);
  }
  return prefix;
}

/** Equal in every key: the lower segment and the lower index stay. */
function keepFirst(pool: Pool) {
  for (let i = 0; i < pool.state.length && pool.left > 0; i++) {
    if (pool.state[i] !== OPEN) continue;
    pool.state[i] = KEPT;
    pool.left--;
  }
}

function collect({ state }: Pool, segments: readonly Segment[]): Int32Array[] {
  let start = 0;
  return segments.map(({ scores }) => {
    const kept = new Int32Array(scores.length);
    let count = 0;
    for (let i = 0; i < scores.length; i++) if (state[start + i] === KEPT) kept[count++] = i;
    start += scores.length;
    return kept.slice(0, count);
  });
}
