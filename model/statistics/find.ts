/** Which statistics belong to a model file: found by its SHA-256 beside its gate, in the folder for gates. */
import type { Runtime } from "../../runtime/interface.ts";
import type { GateSubject } from "../gate/find.ts";
import { findNamedOrOwn } from "../policy_files/found_for.ts";
import { checkStatistics, readStatistics, type Statistics } from "./file.ts";

export const STATISTICS_SUFFIX = ".statistics.safetensors";

/**
 * The statistics in the named file, or those found for this model.
 * @throws PalisadeError `statistics.none`, `statistics.*` of {@link readStatistics} and {@link checkStatistics}.
 */
export async function findStatistics(model: GateSubject, runtime: Runtime, file?: string): Promise<Statistics> {
  const none = {
    code: "statistics.none",
    what: "statistics of queries",
    advice: `find them with palisade calibrate --kind statistics --model ${model.name}`,
  };
  const kind = { suffix: STATISTICS_SUFFIX, read: readStatistics, check: checkStatistics, none };
  return await findNamedOrOwn(model, runtime, kind, file);
}
