/** `palisade calibrate --kind statistics`: finds what a model's queries are like, and tells how alike they are. */
import type { CalibrationPlan } from "../../model/gate/fit/plan.ts";
import type { Model } from "../../model/model.ts";
import {
  calibrateStatistics,
  type FoundStatistics,
  SKIPPED,
  type StatisticsCalibration,
} from "../../model/statistics/calibrate.ts";
import type { Io } from "../io.ts";
import { printJson } from "../json/print.ts";
import { formatBytes, formatMs } from "../print/format.ts";

/** Tokens of a plan whose texts have `tokens` that count: those that don't come on top. */
export function plannedTokens(tokens: number, contextLength: number): number {
  // Texts are at least half as long as the plan has tokens, or the context; short ones are many.
  return Math.ceil(tokens * (1 + 2 * SKIPPED / Math.min(500, contextLength / 2 - 64)));
}

/** Reads all texts that gates are fitted on. */
export async function findStatisticsIn(
  model: Model,
  { fit, sources, seed }: CalibrationPlan,
  options: Pick<StatisticsCalibration, "sha256" | "onProgress" | "signal">,
): Promise<FoundStatistics> {
  return await calibrateStatistics(model, { texts: fit, sources, seed, ...options });
}

/** What was found, for people or as an object. */
export function tellStatistics(
  { info, concentration }: Pick<FoundStatistics, "info" | "concentration">,
  file: { readonly out: string; readonly bytes: number; readonly ms: number; readonly model: string },
  { json }: { readonly json?: boolean },
  io: Io,
): void {
  const { out, bytes, ms, model } = file, { tokens, texts } = info.calibration;
  if (json) return printJson(io, "calibrate", { out, bytes, ms, info, concentration });
  const alike = `a pair of a head's queries points the same way by ${concentration.toFixed(2)} of 1 on average`;
  io.out(`${model}: queries of ${tokens} tokens of ${texts.join(", ")}; ${alike}\n`);
  io.out(`wrote ${out}, ${formatBytes(bytes)}, in ${formatMs(ms)}; for "triattention(statistics=calibrated)"\n`);
}
