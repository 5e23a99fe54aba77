/** Paired bootstrap: how far a mean difference may be chance. Efron 1979, percentile intervals. */
import { randomSource } from "../../core/measure/random.ts";

/** Resamples; enough for two stable digits of a 95 % interval. */
const RESAMPLES = 10_000;
/** Fixed, so that a report doesn't change from one printing to the next. */
const SEED = 20_251_013;

export interface Interval {
  readonly mean: number;
  /** 2.5 % and 97.5 % percentiles of the resampled mean. */
  readonly low: number;
  readonly high: number;
}

/**
 * Mean over the groups' means of the paired differences, with its 95 % interval. Samples are drawn again within their
 * group, so that every task keeps its weight. Undefined when a group has less than two samples: there is nothing to
 * draw from.
 */
export function bootstrapMean(groups: readonly (readonly number[])[]): Interval | undefined {
  if (groups.length === 0 || groups.some((group) => group.length < 2)) return undefined;
  const random = randomSource(SEED);
  const means = Float64Array.from({ length: RESAMPLES }, () => {
    let sum = 0;
    for (const group of groups) {
      let drawn = 0;
      for (let i = 0; i < group.length; i++) drawn += group[Math.floor(random() * group.length)];
      sum += drawn / group.length;
    }
    return sum / groups.length;
  }).sort();
  const at = (share: number) => means[Math.min(RESAMPLES - 1, Math.floor(share * RESAMPLES))];
  return { mean: mean(groups.map(mean)), low: at(0.025), high: at(0.975) };
}

/** The arithmetic mean; NaN of nothing. */
export function mean(numbers: readonly number[]): number {
  return numbers.reduce((sum, each) => sum + each, 0) / numbers.length;
}

/** The middle one, the upper of two; NaN of nothing. */
export function median(numbers: readonly number[]): number {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1] ?? NaN;
}
