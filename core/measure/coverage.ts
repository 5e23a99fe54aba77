/**
 * Stage 1 of CriticalKV as DefensiveKV uses it: the entries that hold most of each head's mean attention.
 * FFY0/DefensiveKV 9251b95, kvpress/presses/efficient_defensivekv_press.py.
 */

export interface CoverageOptions {
  /** Share of the head's mean attention to cover, 0 … 1. */
  readonly threshold: number;
  /** The most entries of one head; negative: all but the last −cap in this order (Python's slice, quirk Q4). */
  readonly cap: number;
}

/**
 * `[kvHeads, N]`, 1 = covered. Per head: entries by falling mean attention (equal: lower position first) up to, but
 * without, the one that reaches the threshold (quirk Q3); none when it is never reached or the head has no mass.
 * `mean`: `[kvHeads, N]`, un-pooled. O(N log N) per head.
 */
export function coverageSet(mean: Float32Array, kvHeads: number, { threshold, cap }: CoverageOptions): Uint8Array {
  const prefixLength = mean.length / kvHeads;
  const covered = new Uint8Array(mean.length);
  for (let head = 0; head < kvHeads; head++) {
    const row = mean.subarray(head * prefixLength, (head + 1) * prefixLength);
    const order = Uint32Array.from(row, (_, i) => i).sort((a, b) => row[b] - row[a] || a - b);
    const count = Math.min(crossing(row, order, threshold), cap);
    const taken = order.subarray(0, count >= 0 ? count : Math.max(0, prefixLength + count));
    for (const i of taken) covered[head * prefixLength + i] = 1;
  }
  return covered;
}

/** Index in `order` of the entry at which the running share reaches the threshold; 0 when none does. */
function crossing(row: Float32Array, order: Uint32Array, threshold: number): number {
  let total = 0;
  for (const mass of row) total += mass;
  let running = 0;
  for (let c = 0; c < order.length; c++) {
    running += row[order[c]];
    if (running / total >= threshold) return c;
  }
  return 0;
}
