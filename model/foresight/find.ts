/** Which chunks belong to a model file: found by its SHA-256 beside its gate, in the folder for gates. */
import type { Runtime } from "../../runtime/interface.ts";
import type { GateSubject } from "../gate/find.ts";
import { findNamedOrOwn } from "../policy_files/found_for.ts";
import { checkChunks, type Chunks, readChunks } from "./file.ts";

export const CHUNKS_SUFFIX = ".chunks.safetensors";

/**
 * The chunks in the named file, or those found for this model.
 * @throws PalisadeError `chunks.none`, `chunks.*` of {@link readChunks}.
 */
export async function findChunks(model: GateSubject, runtime: Runtime, file?: string): Promise<Chunks> {
  const none = {
    code: "chunks.none",
    what: "frequency chunks",
    advice: `find them with palisade calibrate --kind fasa --model ${model.name}`,
  };
  return await findNamedOrOwn(
    model,
    runtime,
    { suffix: CHUNKS_SUFFIX, read: readChunks, check: checkChunks, none },
    file,
  );
}
