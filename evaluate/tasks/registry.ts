/** All tasks by name. */
import { inputError, option } from "../../core/errors.ts";
import { adviceFor } from "../../core/policy/nearest_name.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { cwe } from "./cwe.ts";
import { openJsonl, openQa } from "./files.ts";
import { fwe } from "./fwe.ts";
import { refuseRepeated } from "../sweep/lists.ts";
import type { Task } from "./interface.ts";
import { niahTasks } from "./niah.ts";
import { vt } from "./vt.ts";

/** The synthetic tasks of RULER, in its order. */
export const rulerTasks: readonly Task[] = [...niahTasks, vt, cwe, fwe];

/**
 * Tasks by name: RULER's, `ruler` for all of them, `qa:FILE` and `jsonl:FILE`.
 * Tasks of two files may have one name; their sources tell them apart.
 * @throws PalisadeError `task.*`, `list.repeated` for one thing named twice, and as `Runtime.readText`.
 */
export async function openTasks(names: readonly string[], runtime: Runtime): Promise<Task[]> {
  const tasks: { name: string; task: Task }[] = [];
  for (const name of names) for (const task of await open(name, runtime)) tasks.push({ name, task });
  refuseRepeated(tasks, {
    key: ({ task }) => JSON.stringify([task.name, task.source]),
    name: ({ name, task }) => name === "ruler" ? `${task.name} (in ruler)` : name,
    where: "tasks",
  });
  return tasks.map(({ task }) => task);
}

/** The files among names of tasks. */
export function taskFiles(names: readonly string[]): string[] {
  return names.flatMap((name) => /^(?:qa|jsonl):(.*)$/s.exec(name)?.[1] ?? []);
}

async function open(name: string, runtime: Runtime): Promise<readonly Task[]> {
  if (name === "ruler") return rulerTasks;
  if (name.startsWith("qa:")) return [await openQa(runtime, name.slice(3))];
  if (name.startsWith("jsonl:")) return [await openJsonl(runtime, name.slice(6))];
  const task = rulerTasks.find((each) => each.name === name);
  if (task) return [task];
  const known = [...rulerTasks.map((each) => each.name), "ruler", "qa:FILE", "jsonl:FILE"];
  const advice = adviceFor(name, known, `there are ${known.join(", ")}`);
  throw inputError("task.unknown", `Unknown task ${name}: ${advice}`, option("tasks"));
}
