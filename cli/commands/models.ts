/** `palisade models list|pull|path|rm`. */
import { inputError } from "../../core/errors.ts";
import {
  cacheFolder,
  listModels as stored,
  modelPath,
  removeModel,
  type StoredModel,
} from "../../model/store/store.ts";
import { formatBytes } from "../print/format.ts";
import { EXIT, type Io } from "../io.ts";
import { fetchNamed } from "../obtain.ts";
import { createProgress } from "../print/progress.ts";
import { tableText } from "../print/table.ts";

/** Prints the named models and which of them are here. */
export async function listModels(options: { json?: boolean }, io: Io): Promise<number> {
  const models = await stored(io.runtime);
  if (options.json) {
    io.out(`${JSON.stringify(models.map(({ model, ...here }) => ({ ...model, ...here })), null, 2)}\n`);
    return EXIT.ok;
  }
  const rows = models.map((each) => [
    each.model.name,
    each.model.summary,
    formatBytes(each.model.size),
    hereText(each),
  ]);
  io.out(`${tableText(["name", "what", "size", "here"], rows)}\ncache folder: ${cacheFolder(io.runtime)}\n`);
  return EXIT.ok;
}

function hereText({ present, verified }: StoredModel): string {
  if (!present) return "no";
  return verified ? "yes, SHA-256 checked" : "damaged: pull it again";
}

/** Fetches a model, or checks the copy that is here; prints its path. */
export async function pullCommand(
  name: string,
  options: { offline?: boolean; quiet?: boolean },
  io: Io,
): Promise<number> {
  const path = await fetchNamed(name, io, createProgress(io.interactive && !options.quiet), options);
  io.out(`${path}\n`);
  return EXIT.ok;
}

/** Prints the path of a model that is here. */
export async function modelPathCommand(name: string, io: Io): Promise<number> {
  const path = await modelPath(name, io.runtime);
  if (await io.runtime.host?.info(path) === undefined) {
    throw inputError("model.absent", `it has not been fetched: run palisade models pull ${name}`, name);
  }
  io.out(`${path}\n`);
  return EXIT.ok;
}

/** Removes a model's file. */
export async function removeCommand(name: string, io: Io): Promise<number> {
  const freed = await removeModel(name, io.runtime);
  io.out(freed === 0 ? `${name} was not here\n` : `removed ${name}, ${formatBytes(freed)} freed\n`);
  return EXIT.ok;
}
