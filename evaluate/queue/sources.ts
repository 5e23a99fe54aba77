/** The user's files travel in the manifest: read once by the collector, seen by workers under the same names. */
import { inputError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { type Haystack, NO_HAYSTACK, openHaystack } from "../haystack.ts";
import type { Task } from "../tasks/interface.ts";
import { openTasks } from "../tasks/registry.ts";

/** Most characters of all files together. */
const MOST_CHARACTERS = 64 * 1024 * 1024;

export interface Sources {
  readonly tasks: readonly Task[];
  readonly haystack: Haystack;
  /** Text of every file that was read, by the name it was asked for. */
  readonly files: Readonly<Record<string, string>>;
}

/**
 * Opens tasks and haystack from files, noting their texts.
 * @throws PalisadeError as `openTasks` and `openHaystack`, and `queue.files-too-large`.
 */
export async function readSources(runtime: Runtime, tasks: readonly string[], haystack?: string): Promise<Sources> {
  const files: Record<string, string> = {};
  const noting = withReadText(runtime, async (path, options) => files[path] = await runtime.readText(path, options));
  const opened = await open(noting, tasks, haystack);
  const characters = Object.values(files).reduce((sum, text) => sum + text.length, 0);
  if (characters > MOST_CHARACTERS) {
    const message = `The files of this sweep have ${characters} characters: a queue carries ${MOST_CHARACTERS} at most`;
    throw inputError("queue.files-too-large", message, "--queue");
  }
  return { ...opened, files };
}

/** Opens tasks and haystack from the texts of a manifest. @throws PalisadeError as `openTasks` and `openHaystack`. */
export async function restoreSources(
  runtime: Runtime,
  tasks: readonly string[],
  haystack: string | undefined,
  files: Readonly<Record<string, string>>,
): Promise<Sources> {
  const restored = withReadText(runtime, (path) => {
    if (Object.hasOwn(files, path)) return Promise.resolve(files[path]);
    return Promise.reject(inputError("queue.file-missing", `The sweep doesn't carry ${path}`, path));
  });
  return { ...await open(restored, tasks, haystack), files };
}

async function open(runtime: Runtime, names: readonly string[], file?: string): Promise<Omit<Sources, "files">> {
  const tasks = await openTasks(names, runtime);
  return { tasks, haystack: tasks.some((task) => task.sized) ? await openHaystack(runtime, file) : NO_HAYSTACK };
}

/** `runtime` with another way to read texts; all else is as it was. */
function withReadText(runtime: Runtime, readText: Runtime["readText"]): Runtime {
  return Object.assign(Object.create(runtime) as Runtime, { readText });
}
