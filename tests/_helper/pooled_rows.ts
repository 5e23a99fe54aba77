/** The rows that the defensive rule observes, one by one, by their definition and in doubles. */
import { attentionRows } from "./attention.ts";
import type { DumpCase } from "./dumps.ts";

/**
 * I[j, i]: prefix part of each window row, average-pooled with zero padding, scaled back to its own mass.
 * `[kvHeads][group · window][N]`.
 */
export function pooledRows(each: DumpCase, layer: number, window: number, kernel: number): number[][][] {
  const { shape: { heads, kvHeads }, length } = each;
  const prefix = length - window, reach = (kernel - 1) / 2;
  const rows = attentionRows(each, layer, window).map((ofHead) =>
    ofHead.map((row) => {
      const seen = row.slice(0, prefix);
      const pooled = seen.map((_, i) => {
        return seen.slice(Math.max(0, i - reach), i + reach + 1).reduce((sum, a) => sum + a, 0) / kernel;
      });
      const total = (values: readonly number[]) => values.reduce((sum, a) => sum + a, 0);
      const sum = total(pooled);
      return pooled.map((p) => sum === 0 ? 0 : p * total(seen) / sum);
    })
  );
  const group = heads / kvHeads;
  return Array.from({ length: kvHeads }, (_, g) => rows.slice(g * group, (g + 1) * group).flat());
}
