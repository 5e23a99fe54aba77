/** What of a calibration's statistics a policy needs. */
import type { QueryMeans } from "../../core/measure/query_statistics.ts";
import type { Needs } from "../../core/policy/policy.ts";
import type { Statistics } from "./file.ts";

/** Whether a policy goes by queries of texts that were calibrated on, not by the context's own. */
export function isCalibrated({ queryStatistics, pairStatistics }: Needs): boolean {
  return !!(queryStatistics?.calibrated || pairStatistics?.calibrated);
}

/** Means of one layer, for `queryStatistics` and for `pairStatistics`. */
export function layerMeans(
  { mean, covariance, lengths, shape: { layers } }: Statistics,
  layer: number,
): { readonly whole: QueryMeans; readonly pairs: QueryMeans } {
  const of = (all: Float32Array) => all.subarray(all.length / layers * layer, all.length / layers * (layer + 1));
  return { whole: { mean: of(mean), covariance: of(covariance) }, pairs: { mean: of(mean), lengths: of(lengths) } };
}
