/** Finds what a model's queries are like before RoPE: a few texts, read once each, of which only means stay. */
import { RaggedCache } from "../../core/cache/ragged.ts";
import { inputError, option } from "../../core/errors.ts";
import { pairLength, QueryStatistics } from "../../core/measure/query_statistics.ts";
import { chunkChannels } from "../../core/measure/chunk_agreement.ts";
import { globalLayers } from "../../core/shape.ts";
import type { Model } from "../model.ts";
import { LayerReader } from "../read/layer_reader.ts";
import { checkOwnRows } from "../read/shared_rows.ts";
import { LEAST_TOKENS, type Statistics, STATISTICS_FORMAT } from "./file.ts";

/** First tokens of each text whose queries don't count: as the policies that go by a context's own leave them out. */
export const SKIPPED = 4;

export interface StatisticsCalibration {
  /** Token ids of each text. */
  readonly texts: readonly (readonly number[])[];
  /** What they are called. */
  readonly sources: readonly string[];
  readonly seed: number;
  /** SHA-256 of the model file. */
  readonly sha256: string;
  /** Called after every layer with texts × layers. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** Means over all queries of the texts, and how alike those are. */
export interface FoundStatistics extends Omit<Statistics, "name"> {
  /** |E[q_f]| / E|q_f|, 0 … 1, meaned over pairs and heads: 1 where each pair of a head's queries always points the same way. */
  readonly concentration: number;
}

/**
 * Reads each text alone and sums up its queries in the global layers. Memory: the sums, heads · headDim² doubles a layer, and
 * of one text hidden states and a layer's rows.
 * @throws PalisadeError `shared-rows.calibrate`, `statistics.tokens` for fewer than {@link LEAST_TOKENS} that count.
 */
export async function calibrateStatistics(model: Model, options: StatisticsCalibration): Promise<FoundStatistics> {
  const { config } = model, { layers, heads, headDim, ropes, architecture, name } = config;
  const { texts, sources, seed, sha256, signal, onProgress } = options;
  checkOwnRows(config);
  const tokens = texts.reduce((sum, { length }) => sum + Math.max(0, length - SKIPPED), 0);
  if (tokens < LEAST_TOKENS) {
    const message = `${tokens} tokens count, without the first ${SKIPPED} of each text: want at least ${LEAST_TOKENS}`;
    throw inputError("statistics.tokens", message, option("tokens"));
  }
  const globals = globalLayers(config);
  const sums = new Map(globals.map((layer) => [layer, {
    whole: new QueryStatistics(config, tokens, 0),
    pairs: new QueryStatistics(config, tokens, 0, ropes[layer]),
  }]));
  let done = 0;
  for (const ids of texts) {
    using cache = new RaggedCache(model.backend, config);
    const onQueries = (layer: number, rows: Float32Array, first: number, count: number) => {
      const skipped = Math.max(0, Math.min(count, SKIPPED - first)), row = heads * headDim;
      const { whole, pairs } = sums.get(layer)!;
      for (const each of [whole, pairs]) each.add(rows.subarray(skipped * row), first, count - skipped, row);
    };
    using reader = await LayerReader.open(model, cache, ids, { needs: {}, window: 1, onQueries, signal });
    for (let layer = 0; layer < layers; layer++) {
      reader.release(await reader.layer(layer));
      // No later layer looks at it.
      cache.clear(layer);
      onProgress?.(++done, texts.length * layers);
    }
  }
  const count = Math.ceil(headDim / 2), shape = { layers, heads, headDim };
  const mean = new Float32Array(layers * heads * headDim), covariance = new Float32Array(mean.length * headDim);
  const lengths = new Float32Array(layers * heads * count);
  let along = 0;
  for (const [layer, { whole, pairs }] of sums) {
    const means = whole.means(), ofPairs = pairs.means().lengths!;
    mean.set(means.mean, layer * heads * headDim);
    covariance.set(means.covariance!, layer * heads * headDim ** 2);
    lengths.set(ofPairs, layer * heads * count);
    chunkChannels(headDim, ropes[layer]).forEach((pair, f) => {
      for (let head = 0; head < heads; head++) {
        along += pairLength(means.mean, head * headDim, pair) / (ofPairs[head * count + f] || 1);
      }
    });
  }
  const info = {
    format: STATISTICS_FORMAT,
    model: { name, sha256, architecture },
    calibration: { texts: sources, tokens, seed },
  } as const;
  const concentration = along / (globals.length * heads * count);
  return { info, shape, mean, covariance, lengths, concentration };
}
