/** Statistics of queries that nobody calibrated. */
import { randomSource } from "../../core/measure/random.ts";
import type { ModelConfig } from "../../model/config.ts";
import type { Statistics } from "../../model/statistics/file.ts";

/** Any mean, covariances that are symmetric, lengths above 0. */
export function anyStatistics(
  { name, architecture, layers, heads, headDim }: ModelConfig,
  sha256 = "0".repeat(64),
): Statistics {
  const next = randomSource(11), floats = (count: number) => Float32Array.from({ length: count }, () => next() * 4 - 2);
  const mean = floats(layers * heads * headDim), covariance = new Float32Array(mean.length * headDim);
  covariance.forEach((_, at) => {
    const i = at % headDim ** 2, [a, b] = [Math.floor(i / headDim), i % headDim];
    covariance[at] = a === b ? 2 : 0.5 ** Math.abs(a - b);
  });
  return {
    name: "made up",
    info: {
      format: 1,
      model: { name, architecture, sha256 },
      calibration: { texts: ["none"], tokens: 1000, seed: 1 },
    },
    shape: { layers, heads, headDim },
    ...{ mean, covariance, lengths: floats(layers * heads * Math.ceil(headDim / 2)).map((x) => 2 + Math.abs(x)) },
  };
}
