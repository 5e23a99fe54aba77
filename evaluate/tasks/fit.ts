/** Fills a prompt up to its length. */
import { inputError, option } from "../../core/errors.ts";

/**
 * The largest prompt `build(n)`, n ≥ `least`, that costs at most `length` tokens. `build` must be pure and its cost must
 * not fall with n. RULER steps in fixed increments; this search is exact to one unit.
 * @throws PalisadeError `length.too-small` when even `build(least)` costs more.
 */
export function fitLength<P>(
  build: (n: number) => P,
  tokens: (prompt: P) => number,
  { length, least, most = Infinity, task }: { length: number; least: number; most?: number; task: string },
): P {
  let low = least, best = build(least);
  const smallest = tokens(best);
  if (smallest > length) {
    const message = `Can't make a ${task} prompt of ${length} tokens: the shortest takes ${smallest}`;
    throw inputError("length.too-small", message, option("length"));
  }
  let high = Math.min(most, Math.max(least * 2, 16));
  for (; low < most; high = Math.min(most, high * 2)) {
    const prompt = build(high);
    if (tokens(prompt) > length) break;
    low = high;
    best = prompt;
  }
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    const prompt = build(middle);
    if (tokens(prompt) <= length) {
      low = middle;
      best = prompt;
    } else high = middle;
  }
  return best;
}
