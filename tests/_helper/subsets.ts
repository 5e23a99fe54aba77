/** The best a policy could have done, by trying every subset. For a dozen entries. */

/** An entry that may be evicted, and what losing it costs. */
export interface Losable {
  readonly layer: number;
  readonly kvHead: number;
  readonly position: number;
  readonly cost: number;
}

export interface Costs {
  readonly largest: number;
  readonly sum: number;
}

/** What evicting these costs; sums in the order given. */
export function costOf(evicted: readonly Losable[]): Costs {
  let largest = 0, sum = 0;
  for (const { cost } of evicted) {
    largest = Math.max(largest, cost);
    sum += cost;
  }
  return { largest, sum };
}

/** The smallest `largest` and the smallest `sum`, each over ALL ways to evict `count` of the entries. */
export function cheapest(entries: readonly Losable[], count: number): Costs {
  const best = { largest: Infinity, sum: Infinity };
  const visit = (from: number, left: number, largest: number, sum: number) => {
    if (left === 0) {
      best.largest = Math.min(best.largest, largest);
      best.sum = Math.min(best.sum, sum);
      return;
    }
    for (let i = from; i + left <= entries.length; i++) {
      visit(i + 1, left - 1, Math.max(largest, entries[i].cost), sum + entries[i].cost);
    }
  };
  visit(0, count, 0, 0);
  return best;
}
