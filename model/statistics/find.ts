/** Which statistics belong to a model file: found by its SHA-256 beside its gate, in the folder for gates. */
import { inputError, option, say } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { GateSubject } from "../gate/find.ts";
import { findOwn } from "../policy_files/found_for.ts";
import { checkStatistics, readStatistics, type Statistics } from "./file.ts";

export const STATISTICS_SUFFIX = ".statistics.safetensors";

/**
 * The statistics in the named file, or those found for this model.
 * @throws PalisadeError `statistics.none`, `statistics.*` of {@link readStatistics} and {@link checkStatistics}.
 */
export async function findStatistics(model: GateSubject, runtime: Runtime, file?: string): Promise<Statistics> {
  const statistics = file === undefined
    ? await findOwn(model, runtime, STATISTICS_SUFFIX, readStatistics)
    : await readStatistics(file, runtime);
  if (!statistics) {
    const advice = `find them with palisade calibrate --kind statistics --model ${model.name}`;
    const message = say`No statistics of queries are known of ${model.config.name}: ${advice}`;
    throw inputError("statistics.none", message, option("policy"));
  }
  checkStatistics(statistics, model.config, await model.identity());
  return statistics;
}
