/** All tasks by name. */
import { inputError } from "../../core/errors.ts";
import { nearestName } from "../../core/nearest.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { Task } from "./interface.ts";
import { niahTasks } from "./niah.ts";

/** The synthetic tasks of RULER, in its order. */
export const rulerTasks: readonly Task[] = [...niahTasks];

/**
 * Tasks by the names of `--tasks`: RULER's, `ruler` for all of them.
 * @throws PalisadeError `task.unknown`, and what reading a file can throw.
 */
// deno-lint-ignore require-await
export async function openTasks(names: readonly string[], _runtime: Runtime): Promise<Task[]> {
  const tasks: Task[] = [];
  for (const name of names) {
    const named = name === "ruler" ? rulerTasks : rulerTasks.filter((task) => task.name === name);
    if (named.length === 0) {
      const known = ["ruler", ...rulerTasks.map((task) => task.name)];
      const near = nearestName(name, known);
      const advice = near ? `did you mean ${near}?` : `there are ${known.join(", ")}`;
      throw inputError("task.unknown", `Unknown task ${name}: ${advice}`, "--tasks");
    }
    for (const task of named) if (!tasks.includes(task)) tasks.push(task);
  }
  return tasks;
}
