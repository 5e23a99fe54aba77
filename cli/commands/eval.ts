/** `palisade eval`: a sweep over models, tasks, lengths, samples, policies and budgets into a results file. */
import { RESULTS } from "../../evaluate/results/results.ts";
import { splitList, splitNames } from "../../evaluate/sweep/lists.ts";
import { taskFiles } from "../../evaluate/tasks/registry.ts";
import { checkOutputs } from "../../runtime/output.ts";
import { command } from "../command.ts";
import type { Io } from "../io.ts";
import { inputsOf, modelInputs, outputsOf, policyInputs } from "../outputs.ts";
import { evaluateHere } from "../sweep/here.ts";
import { EVAL_NAMES, EVAL_OPTIONS, type EvalOptions } from "../sweep/options.ts";
import { evaluateByQueue } from "../sweep/queue.ts";

/** `palisade eval`. */
export const evalCommand = command({
  options: EVAL_OPTIONS,
  names: EVAL_NAMES,
  // How a name with a comma is said.
  notes: [`Lists: parts between commas, or repeat the option; jsonl:"a, b.jsonl" is one.`],
  run: evaluate,
});

/** Runs the command; returns the exit code. Refusals are thrown before any model is loaded where that is possible. */
async function evaluate(options: EvalOptions, io: Io): Promise<number> {
  await checkResultsPlace(options, io);
  const { queue } = options;
  return await (queue === undefined ? evaluateHere(options, io) : evaluateByQueue({ ...options, queue }, io));
}

/** The results go where nothing is harmed: known before any of the inputs is read. */
async function checkResultsPlace(options: EvalOptions, io: Io): Promise<void> {
  const { out, tasks, models, policies, haystack, gate } = options;
  await checkOutputs(io.runtime, outputsOf([["--out", out, RESULTS]]), [
    ...taskFiles(splitNames(tasks, "tasks")).map((path) => ({ path, what: "a task" })),
    ...modelInputs(splitNames(models, "models"), io),
    ...policyInputs(splitList(policies, "policies")),
    ...inputsOf([["the haystack", haystack], ["the gate", gate]]),
  ]);
}
