/** The selector's slow, obvious twin: sort the whole pool. */
import type { SelectionInput } from "../../core/select/select.ts";

/** Same contract as `selectTop`. O(n log n). */
export function naiveSelect({ segments, count }: SelectionInput): Int32Array[] {
  const entries = segments.flatMap(({ scores, second, protectedEntries }, segment) =>
    Array.from(scores, (score, index) => ({
      segment,
      index,
      keys: [protectedEntries?.[index] ? 1 : 0, plain(score), plain(second?.[index] ?? 0)],
    }))
  );
  entries.sort((a, b) => {
    for (let k = 0; k < a.keys.length; k++) if (a.keys[k] !== b.keys[k]) return a.keys[k] > b.keys[k] ? -1 : 1;
    return a.segment - b.segment || a.index - b.index;
  });
  const kept: number[][] = segments.map(() => []);
  for (const { segment, index } of entries.slice(0, count)) kept[segment].push(index);
  return kept.map((indices) => Int32Array.from(indices.sort((a, b) => a - b)));
}

/** NaN is −∞; −0 compares equal to +0 anyway. */
function plain(score: number): number {
  return Number.isNaN(score) ? -Infinity : score;
}
