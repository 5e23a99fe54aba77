/** Finds which frequency chunks of a model's heads foresee their highest entries: a few texts, read once each. */
import { RaggedCache } from "../../core/cache/ragged.ts";
import {
  type AgreementInput,
  chunkChannels,
  contextualAgreement,
  dominantChannels,
} from "../../core/measure/chunk_agreement.ts";
import { breathe } from "../../runtime/breathe.ts";
import type { Model } from "../model.ts";
import { LayerReader } from "../read/layer_reader.ts";
import { checkOwnRows } from "../read/shared_rows.ts";
import { type Chunks, CHUNKS_FORMAT } from "./file.ts";

/** Last tokens of a text, of which every eighth one's queries are compared. */
const WINDOW = 64, EVERY = 8;
/** Highest entries that are compared: the paper's smallest; a quarter of a short text's. */
const TOP = 64;

export interface ChunkCalibration {
  /** Token ids of each text. */
  readonly texts: readonly (readonly number[])[];
  /** Ids of a text on which the chunks that are found are tried. */
  readonly heldOut?: readonly number[];
  /** What they are called. */
  readonly sources: readonly string[];
  readonly seed: number;
  /** SHA-256 of the model file. */
  readonly sha256: string;
  /** Called after every layer with texts × layers, the held-out text among them. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** What was found, and how good it is where it was not looked for. */
export interface FoundChunks extends Omit<Chunks, "name"> {
  /**
   * Share of the highest entries of the held-out text that the best {@link TOLD} of each head's chunks find together,
   * meaned over heads and queries; null without such a text.
   */
  readonly heldOut: number | null;
}

/** The share of chunks whose agreement is told: the default of `fasa`. */
const TOLD = 0.25;

/**
 * Mean agreement of every chunk, over the texts, their queries, and the query heads of each KV head.
 * @throws PalisadeError `shared-rows.calibrate`.
 */
export async function calibrateChunks(model: Model, options: ChunkCalibration): Promise<FoundChunks> {
  const { config } = model, { layers, kvHeads, headDim } = config, { texts, heldOut, onProgress } = options;
  checkOwnRows(config);
  const count = Math.ceil(headDim / 2), agreement = new Float32Array(layers * kvHeads * count);
  const all = heldOut ? [...texts, heldOut] : texts;
  const top = all.reduce((least, ids) => Math.min(least, Math.max(1, Math.floor(ids.length / 4))), TOP);
  let done = 0, together = 0, heads = 0;
  const told = { ...options, onLayer: () => onProgress?.(++done, all.length * layers) };
  for (const ids of texts) {
    await eachHead(model, ids, told, (layer, head, input) => {
      const means = contextualAgreement(input, chunkChannels(headDim, config.ropes[layer]), top);
      means.forEach((mean, c) => agreement[(layer * kvHeads + head) * count + c] += mean / texts.length);
    });
  }
  if (heldOut) {
    await eachHead(model, heldOut, told, (layer, head, input) => {
      const from = (layer * kvHeads + head) * count, chunks = chunkChannels(headDim, config.ropes[layer]);
      const chosen = [...dominantChannels(agreement.subarray(from, from + count), chunks, TOLD)];
      const rest = chunks.flat().filter((channel) => !chosen.includes(channel));
      together += contextualAgreement(input, [chosen, rest], top)[0];
      heads++;
    });
  }
  const { architecture, name } = config, tokens = texts.reduce((sum, { length }) => sum + length, 0);
  const calibration = { texts: options.sources, tokens, seed: options.seed };
  const info = {
    format: CHUNKS_FORMAT,
    model: { name, sha256: options.sha256, architecture },
    calibration,
    top,
  } as const;
  const found = {
    info,
    agreement: agreement.map((each) => Math.min(1, each)),
    shape: [layers, kvHeads, count] as const,
  };
  return { ...found, heldOut: heldOut ? together / heads : null };
}

/** Reads a text and calls `use` for each KV head of the global layers. */
async function eachHead(
  model: Model,
  ids: readonly number[],
  { signal, onLayer }: { readonly signal?: AbortSignal; readonly onLayer: () => void },
  use: (layer: number, head: number, input: AgreementInput) => void,
): Promise<void> {
  const { layers, kvHeads } = model.config;
  using cache = new RaggedCache(model.backend, model.config);
  const window = Math.min(WINDOW, Math.max(1, Math.floor(ids.length / 4)));
  using reader = await LayerReader.open(model, cache, ids, { needs: {}, window, signal });
  for (let layer = 0; layer < layers; layer++) {
    const seen = await reader.layer(layer);
    if (cache.globals.includes(layer)) {
      const queries = await model.backend.tensors.read(seen.windowQueries);
      for (let head = 0; head < kvHeads; head++) {
        await breathe(signal);
        const { keys } = await cache.rows(layer).copyRows(head);
        use(layer, head, inputOf({ queries, keys, length: ids.length, window }, model, head));
      }
    }
    reader.release(seen);
    // No later layer looks at it.
    cache.clear(layer);
    onLayer();
  }
}

interface Seen {
  /** `[window, heads, headDim]`. */
  readonly queries: Float32Array;
  /** `[length, headDim]`. */
  readonly keys: Float32Array;
  readonly length: number;
  readonly window: number;
}

/** Some of the last queries of a KV head's group, and what they see. */
function inputOf({ queries, keys, length, window }: Seen, { config }: Model, head: number): AgreementInput {
  const { heads, kvHeads, headDim } = config, group = heads / kvHeads;
  const tokens = Array.from({ length: Math.ceil(window / EVERY) }, (_, i) => window - 1 - i * EVERY);
  const mine = new Float32Array(tokens.length * group * headDim), visible: number[] = [];
  for (const t of tokens) {
    for (let h = head * group; h < (head + 1) * group; h++) {
      const from = (t * heads + h) * headDim;
      mine.set(queries.subarray(from, from + headDim), visible.length * headDim);
      visible.push(length - window + t + 1);
    }
  }
  return { queries: mine, keys, headDim, visible };
}
