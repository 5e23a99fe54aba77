/** From what `--model` names to a file on disk, fetched on first use. */
import { pullModel, resolveModel } from "../model/store.ts";
import type { Io } from "./io.ts";
import type { Progress } from "./progress.ts";

/** The path of a GGUF file: the one named, or the named model's, pulled when it isn't there yet. */
export async function obtainModel(nameOrPath: string, io: Io, progress: Progress, offline: boolean): Promise<string> {
  const found = await resolveModel(io.runtime, nameOrPath);
  if (found.path !== undefined) return found.path;
  try {
    return await pullModel(io.runtime, found.name, {
      offline,
      signal: io.signal,
      onProgress: ({ source, done, total }) => progress.update(`Fetching from ${source}`, done, total, "bytes"),
    });
  } finally {
    progress.clear();
  }
}
