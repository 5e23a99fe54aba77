/** The user's files travel in the manifest: read once by the collector, seen by workers under the same names. */
import { inputError, option } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { type Haystack, NO_HAYSTACK, openHaystack } from "../tasks/haystack.ts";
import { type AskedCase, loadCases } from "../sweep/plan.ts";
import type { Task } from "../tasks/interface.ts";
import { openTasks } from "../tasks/registry.ts";

/** Most characters of all files together. */
const MOST_CHARACTERS = 64 * 1024 * 1024;

/** What may name files, as typed. */
export interface SweepFiles {
  readonly tasks: readonly string[];
  readonly haystack?: string;
  readonly policies: string;
  readonly keep: string;
}

export interface SweepInputs {
  readonly tasks: readonly Task[];
  readonly haystack: Haystack;
  readonly cases: readonly AskedCase[];
  /** Text of every file that was read, by the name it was asked for. */
  readonly files: Readonly<Record<string, string>>;
}

/**
 * Opens tasks, haystack and policies from files, noting their texts.
 * @throws PalisadeError as `openTasks`, `openHaystack` and `loadCases`, and `queue.files-too-large`.
 */
export async function readSweepInputs(runtime: Runtime, named: SweepFiles): Promise<SweepInputs> {
  const files: Record<string, string> = {};
  const noting = withReadText(runtime, async (path, options) => files[path] = await runtime.readText(path, options));
  const opened = await open(noting, named);
  const characters = Object.values(files).reduce((sum, text) => sum + text.length, 0);
  if (characters > MOST_CHARACTERS) {
    const message = `The files of this sweep have ${characters} characters: a queue carries ${MOST_CHARACTERS} at most`;
    throw inputError("queue.files-too-large", message, option("queue"));
  }
  return { ...opened, files };
}

/** The same from the texts of a manifest. @throws PalisadeError as {@link readSweepInputs}, `queue.file-missing`. */
export async function restoreSweepInputs(
  runtime: Runtime,
  named: SweepFiles,
  files: Readonly<Record<string, string>>,
): Promise<SweepInputs> {
  const restored = withReadText(runtime, (path) => {
    if (Object.hasOwn(files, path)) return Promise.resolve(files[path]);
    return Promise.reject(inputError("queue.file-missing", `The sweep doesn't carry ${path}`, path));
  });
  return { ...await open(restored, named), files };
}

async function open(runtime: Runtime, { tasks: names, haystack, policies, keep }: SweepFiles) {
  const cases = await loadCases(runtime, policies, keep);
  const tasks = await openTasks(names, runtime);
  return {
    cases,
    tasks,
    haystack: tasks.some((task) => task.sized) ? await openHaystack(runtime, haystack) : NO_HAYSTACK,
  };
}

/** `runtime` with another way to read texts; all else is as it was. */
function withReadText(runtime: Runtime, readText: Runtime["readText"]): Runtime {
  return Object.assign(Object.create(runtime) as Runtime, { readText });
}
