/** Which chunks belong to a model file: found by its SHA-256 beside its gate, in the folder for gates. */
import { inputError, option, say } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { GateSubject } from "../gate/find.ts";
import { findOwn } from "../policy_files/found_for.ts";
import { checkChunks, type Chunks, readChunks } from "./file.ts";

export const CHUNKS_SUFFIX = ".chunks.safetensors";

/**
 * The chunks in the named file, or those found for this model.
 * @throws PalisadeError `chunks.none`, `chunks.*` of {@link readChunks}.
 */
export async function findChunks(model: GateSubject, runtime: Runtime, file?: string): Promise<Chunks> {
  const chunks = file === undefined
    ? await findOwn(model, runtime, CHUNKS_SUFFIX, readChunks)
    : await readChunks(file, runtime);
  if (!chunks) {
    const advice = `find them with palisade calibrate --kind fasa --model ${model.name}`;
    const message = say`No frequency chunks are known of ${model.config.name}: ${advice}`;
    throw inputError("chunks.none", message, option("policy"));
  }
  checkChunks(chunks, model.config, await model.identity());
  return chunks;
}
