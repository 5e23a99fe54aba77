/** Sweeps with a name. */
import { inputError, option } from "../../core/errors.ts";
import { mean } from "../results/bootstrap.ts";
import type { ResultLine } from "../results/results.ts";
import { groupBy, SOLVED } from "../results/summary.ts";

/** Names of {@link presetOf}. */
export const PRESET_NAMES = ["answers-per-byte"] as const;

/** What a preset puts in place of what was not asked for. */
export interface Preset {
  readonly policies: string;
  readonly bytes: string;
}

/** What is stored, from most bytes an entry to fewest; keys need more than values. */
const ROWS = ["f16", "int8", '"k=int8,v=int4"', "int4"];
const METHODS = ["layer-defensive", "moved", "kvzip", "kvzip(refit=both)"];

/**
 * `answers-per-byte`: methods by types of what stays, with and without a refit, at 1/4 … 1/64 of the bytes that the whole
 * cache takes as float16. All of them share one reading of a sample.
 */
export function presetOf(_name: typeof PRESET_NAMES[number]): Preset {
  const staged = (method: string, rows: string) =>
    method.endsWith(")") ? `${method.slice(0, -1)},rows=${rows})` : `${method}(rows=${rows})`;
  const all = METHODS.flatMap((method) => ROWS.map((rows) => staged(method, rows)));
  return {
    policies: ["full", ...ROWS.map((rows) => staged("full", rows)), ...all].join(","),
    bytes: "1/4,1/8,1/16,1/32,1/64",
  };
}

/**
 * Tasks that the full cache solves by itself, in the order of the lines: a mean score of {@link SOLVED} or more over the
 * samples there are, at least `samples` of them or {@link SOLVED}'s number.
 * @throws PalisadeError input `preset.unsolved` when there is none.
 */
export function solvedByFull(
  lines: readonly Pick<ResultLine, "task" | "sampleHash" | "full">[],
  samples: number,
): string[] {
  const tasks = [...groupBy(lines, (line) => line.task)].filter(([, some]) => {
    const scores = new Map(some.map((line) => [line.sampleHash, line.full.score]));
    return scores.size >= Math.min(samples, SOLVED.samples) && mean([...scores.values()]) >= SOLVED.score;
  });
  if (tasks.length > 0) return tasks.map(([task]) => task);
  const message =
    `The full cache scores ${SOLVED.score} or more on none of the tasks: take a shorter length or another model`;
  throw inputError("preset.unsolved", message, option("tasks"));
}
