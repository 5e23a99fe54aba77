/** Defensive aggregation: the worst case over observations, with the head's mean risk as a floor. */

/**
 * R = max(R̃, mean_i R̃) per head, from R̃ = the largest pooled importance over group and window.
 * `pooledMax` and the result: `[kvHeads, N]`. arXiv 2510.13334, the worst-case estimate and its prior risk.
 */
export function defensiveRisk(pooledMax: Float32Array, kvHeads: number): Float32Array {
  const prefixLength = pooledMax.length / kvHeads;
  const risk = new Float32Array(pooledMax.length);
  for (let head = 0; head < kvHeads; head++) {
    const start = head * prefixLength;
    let sum = 0;
    for (let i = start; i < start + prefixLength; i++) sum += pooledMax[i];
    const floor = sum / prefixLength;
    for (let i = start; i < start + prefixLength; i++) risk[i] = Math.max(pooledMax[i], floor);
  }
  return risk;
}
