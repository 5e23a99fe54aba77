/** Which chunks belong to a model file: found by its SHA-256 beside its gate, in the folder for gates. */
import { inputError, option, say } from "../../core/errors.ts";
import { hostOf } from "../../runtime/host.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { gateFolder, type GateSubject } from "../gate/find.ts";
import { checkChunks, type Chunks, readChunks } from "./file.ts";

export const CHUNKS_SUFFIX = ".chunks.safetensors";

/**
 * The chunks in the named file, or those found for this model.
 * @throws PalisadeError `chunks.none`, `chunks.*` of {@link readChunks}.
 */
export async function findChunks(model: GateSubject, runtime: Runtime, file?: string): Promise<Chunks> {
  const chunks = file === undefined ? await own(model, runtime) : await readChunks(file, runtime);
  checkChunks(chunks, model.config, await model.identity());
  return chunks;
}

async function own(model: GateSubject, runtime: Runtime): Promise<Chunks> {
  if (runtime.host) {
    const host = hostOf(runtime, "look for chunks"), folder = gateFolder(runtime), sha256 = await model.identity();
    for (const name of (await host.list(folder)).sort().filter((each) => each.endsWith(CHUNKS_SUFFIX))) {
      const chunks = await readChunks(host.join(folder, name), runtime).catch(() => undefined);
      if (chunks?.info.model.sha256 === sha256) return chunks;
    }
  }
  const advice = `find them with palisade calibrate --kind fasa --model ${model.name}`;
  const message = say`No frequency chunks are known of ${model.config.name}: ${advice}`;
  throw inputError("chunks.none", message, option("policy"));
}
