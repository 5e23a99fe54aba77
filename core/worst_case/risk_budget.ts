/**
 * The smallest budget at which a risk stays below a limit.
 *
 * The risk of a budget is the mean over all layers and query heads of the largest attention mass that a window query
 * loses (`meanLargestMass` in `certificate.ts`). It can only fall when the budget grows if what is kept is nested, and
 * in whole tokens per head every policy of the registry is (`tests/core/laws_test.ts`; in fractions `defensive` and
 * `layer-defensive` are not). For a policy that is not nested the search still ends at a budget that holds the limit and
 * whose next smaller one does not, but a yet smaller one might.
 */
import { softmaxRow } from "../measure/attention.ts";
import { exp } from "../measure/exp.ts";
import type { AttentionShape } from "../shape.ts";

/** Budgets tried in one round, at most 32 (`core/select/kept_sets.ts`): three rounds reach 35,000 tokens. */
const PER_ROUND = 32;

/** A budget that holds a risk. */
export interface RiskBudget {
  /** Tokens per head. */
  readonly tokens: number;
  /** The risk there. */
  readonly risk: number;
}

/**
 * The smallest `tokens` in `least … most` whose risk is at most `limit`; the risk at `most` counts as 0 (everything
 * stays). `riskOf` gives the risk of several budgets, ascending, at once; NaN counts as too much.
 */
export async function smallestBudget(
  { least, most }: { least: number; most: number },
  limit: number,
  riskOf: (tokens: readonly number[]) => Promise<ArrayLike<number>>,
): Promise<RiskBudget> {
  let below = least - 1, best: RiskBudget = { tokens: most, risk: 0 };
  while (best.tokens - below > 1) {
    const tried = spread(below, best.tokens);
    const risks = Array.from(await riskOf(tried));
    const first = risks.findIndex((risk) => risk <= limit);
    below = first === 0 ? below : first < 0 ? tried.at(-1)! : tried[first - 1];
    if (first >= 0) best = { tokens: tried[first], risk: risks[first] };
  }
  return best;
}

/** At most {@link PER_ROUND} integers between the two, ends excluded, evenly spread. */
function spread(low: number, high: number): number[] {
  const between = high - low - 1, count = Math.min(PER_ROUND, between);
  return Array.from({ length: count }, (_, i) => low + Math.ceil((i + 1) * between / count));
}

/** One layer before anything of it is evicted. */
export interface WholeLayer {
  readonly shape: AttentionShape;
  readonly length: number;
  readonly window: number;
  /** `[window, heads, headDim]`, after RoPE. */
  readonly queries: Float32Array;
  /** One array per KV head, `[length, headDim]`, after RoPE. */
  readonly keys: readonly Float32Array[];
}

/**
 * Per candidate, the sum over the layer's query heads of the largest mass that a window query loses; divide by heads
 * (and layers) for the mean. `candidates[c][kvHead]`: kept positions, ascending. Each row's softmax is taken once:
 * O(heads · window · (length · headDim + Σ kept)).
 */
export function largestMasses(layer: WholeLayer, candidates: readonly (readonly Int32Array[])[]): Float64Array {
  const { shape, length, window, queries, keys } = layer, { heads, kvHeads, headDim } = shape;
  const sums = new Float64Array(candidates.length);
  const row = new Float64Array(length), largest = new Float64Array(candidates.length);
  for (let head = 0; head < heads; head++) {
    const kvHead = Math.floor(head / (heads / kvHeads));
    largest.fill(0);
    for (let t = 0; t < window; t++) {
      const visible = length - window + t + 1;
      const query = { vector: queries, offset: (t * heads + head) * headDim }, nothing = shape.nullLogits?.[head];
      const { maximum, sum } = softmaxRow(query, keys[kvHead], headDim, visible, row, 0, undefined, nothing);
      const whole = nothing === undefined ? 1 : 1 - exp(nothing - maximum) / sum;
      candidates.forEach((kept, c) => largest[c] = Math.max(largest[c], lost(row, kept[kvHead], visible, whole)));
    }
    for (let c = 0; c < sums.length; c++) sums[c] += largest[c];
  }
  return sums;
}

/** What of `row[0 … visible)`, whose sum is `whole`, is not kept, 0 … 1. */
function lost(row: Float64Array, kept: Int32Array, visible: number, whole: number): number {
  let mass = 0, seen = 0;
  for (; seen < kept.length && kept[seen] < visible; seen++) mass += row[kept[seen]];
  return seen === visible ? 0 : Math.max(0, whole - mass);
}
