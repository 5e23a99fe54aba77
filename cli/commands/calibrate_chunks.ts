/** `palisade calibrate --kind fasa`: finds a model's dominant frequency chunks, and tells what they are worth. */
import { calibrateChunks, type ChunkCalibration } from "../../model/foresight/calibrate.ts";
import type { Chunks } from "../../model/foresight/file.ts";
import { type CalibrationPlan, FIT_TOKENS } from "../../model/gate/fit/plan.ts";
import type { Model } from "../../model/model.ts";
import type { Io } from "../io.ts";
import { printJson } from "../json/print.ts";
import { formatBytes, formatMs } from "../print/format.ts";

/** Texts that are read: more of them change little (over 70 % of the chunks are the same on any of them). */
const MOST_TEXTS = 6;
/** Tokens of theirs, and of one text more, on which what was found is tried. */
export const CHUNK_TOKENS = (MOST_TEXTS + 1) * FIT_TOKENS;

interface Found {
  readonly chunks: Omit<Chunks, "name">;
  /** Null without a text that was not looked at. */
  readonly heldOut: number | null;
}

/** Looks at all texts but the last, which tries what was found; at the only one. */
export async function findChunksIn(
  model: Model,
  { fit, sources, seed }: CalibrationPlan,
  options: Pick<ChunkCalibration, "sha256" | "onProgress" | "signal">,
): Promise<Found> {
  const last = fit.length > 1 ? fit.length - 1 : fit.length;
  const texts = { texts: fit.slice(0, last), heldOut: fit[last], sources, seed };
  const { heldOut, ...chunks } = await calibrateChunks(model, { ...texts, ...options });
  return { chunks, heldOut };
}

/** What was found, for people or as an object. */
export function tellFound(
  { chunks, heldOut }: Found,
  file: { readonly out: string; readonly bytes: number; readonly ms: number; readonly model: string },
  { json }: { readonly json?: boolean },
  io: Io,
): void {
  const { out, bytes, ms, model } = file, figures = figuresOf(chunks), { best, mean, top } = figures;
  if (json) return printJson(io, "calibrate", { out, bytes, ms, info: chunks.info, heldOut, ...figures });
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const found = heldOut === null ? "" : `, together ${percent(heldOut)} in a text that was not looked at`;
  const each = `of the ${top} highest entries the best quarter of the chunks finds ${percent(best)}, each alone`;
  io.out(`${model}: ${each} (all: ${percent(mean)})${found}\n`);
  io.out(`wrote ${out}, ${formatBytes(bytes)}, in ${formatMs(ms)}\n`);
}

/** Mean agreement of each head's best quarter, and of all chunks. */
function figuresOf({ agreement, shape: [layers, kvHeads, count], info: { top } }: Omit<Chunks, "name">) {
  const quarter = Math.max(1, Math.round(count / 4));
  let best = 0, all = 0;
  for (let head = 0; head < layers * kvHeads; head++) {
    const mine = agreement.slice(head * count, (head + 1) * count).sort().reverse();
    best += mine.slice(0, quarter).reduce((a, b) => a + b, 0) / quarter;
    all += mine.reduce((a, b) => a + b, 0) / count;
  }
  return { best: best / (layers * kvHeads), mean: all / (layers * kvHeads), top };
}
