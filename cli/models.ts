/** `palisade models list|pull|path|rm`. */
import Table from "cli-table3";
import { inputError } from "../core/errors.ts";
import { cacheFolder, listModels as stored, modelPath, pullModel, removeModel } from "../model/store.ts";
import { formatBytes } from "./format.ts";
import { EXIT, type Io } from "./io.ts";
import { createProgress } from "./progress.ts";

/** Prints the named models and which of them are here. */
export async function listModels(options: { json?: boolean }, io: Io): Promise<number> {
  const models = await stored(io.runtime);
  if (options.json) {
    io.out(`${JSON.stringify(models, null, 2)}\n`);
    return EXIT.ok;
  }
  const table = new Table({ head: ["name", "file", "size", "here"], style: { head: [], border: [] } });
  for (const { name, file, bytes, present } of models) {
    table.push([name, file, formatBytes(bytes), present ? "yes" : "no"]);
  }
  io.out(`${table.toString()}\ncache folder: ${cacheFolder(io.runtime)}\n`);
  return EXIT.ok;
}

/** Fetches a model, or checks the copy that is here; prints its path. */
export async function pullCommand(
  name: string,
  options: { offline?: boolean; quiet?: boolean },
  io: Io,
): Promise<number> {
  const progress = createProgress(io.interactive && !options.quiet);
  try {
    const path = await pullModel(io.runtime, name, {
      offline: options.offline ?? false,
      signal: io.signal,
      onProgress: ({ source, done, total }) => progress.update(`Fetching from ${source}`, done, total, "bytes"),
    });
    progress.clear();
    io.out(`${path}\n`);
    return EXIT.ok;
  } finally {
    progress.clear();
  }
}

/** Prints the path of a model that is here. */
export async function modelPathCommand(name: string, io: Io): Promise<number> {
  const path = await modelPath(io.runtime, name);
  if (path === undefined) {
    throw inputError("model.absent", `${name} has not been fetched: run palisade models pull ${name}`, name);
  }
  io.out(`${path}\n`);
  return EXIT.ok;
}

/** Removes a model's file. */
export async function removeCommand(name: string, io: Io): Promise<number> {
  const freed = await removeModel(io.runtime, name);
  io.out(freed === 0 ? `${name} was not here\n` : `removed ${name}, ${formatBytes(freed)} freed\n`);
  return EXIT.ok;
}
