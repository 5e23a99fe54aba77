/** Sweeps with a name. */
import { inputError, option } from "../../core/errors.ts";
import { mean } from "../results/bootstrap.ts";
import type { ResultLine } from "../results/results.ts";
import { groupBy, SOLVED } from "../results/summary.ts";

/** Names of {@link presetOf}. */
export const PRESET_NAMES = ["answers-per-byte", "neighbours"] as const;

/** What a preset puts in place of what was not asked for. */
export interface Preset {
  readonly policies: string;
  readonly bytes: string;
}

/** What is stored, from most bytes an entry to fewest; keys need more than values. */
const ROWS = ["f16", "int8", '"k=int8,v=int4"', "int4"];
const METHODS = ["layer-defensive", "moved", "kvzip", "kvzip(refit=both)"];

/** Policies that need no file of their own, each in the type that gives most answers a byte. */
const NEIGHBOURS = [
  ...["snapkv", "streaming-llm", "adakv", "tova", "h2o", "knorm", "keydiff", "lagkv", "expected-attention", "moved"],
  ...["dropkv", "capkv", "rkv", "qfilter", "triattention", "layer-defensive", "self-gate", "kvzip", "kvzip-plus"],
];
/** Selections behind which entries are merged and key channels left out: of no answers, of some, of most. */
const STAGED = ["snapkv", "capkv", "kvzip"];

/**
 * `answers-per-byte`: methods by types of what stays, with and without a refit, at 1/4 … 1/64 of the bytes that the whole
 * cache takes as float16. All of them share one reading of a sample.
 *
 * `neighbours`: the methods of other papers beside ours, alone, merging what goes, and with key channels left out.
 */
export function presetOf(name: typeof PRESET_NAMES[number]): Preset {
  const answersPerByte = () => ({
    policies: [
      ...ROWS.map((rows) => staged("full", rows)),
      ...METHODS.flatMap((each) => ROWS.map((rows) => staged(each, rows))),
    ],
    bytes: "1/4,1/8,1/16,1/32,1/64",
  });
  const neighbours = () => ({
    policies: [
      ...["full", ...NEIGHBOURS].map((each) => staged(each, "int4")),
      ...STAGED.flatMap((each) =>
        [`${each}(merge=mean)`, `${each}(merge=sum)`].map((merged) => staged(merged, "int4"))
      ),
      // Whole groups of channels are packed, so thin keys are not.
      ...STAGED.flatMap((each) => ["f16", "int8"].map((rows) => staged(`${each}(key-channels=60%)`, rows))),
    ],
    bytes: "1/8,1/16",
  });
  const { policies, bytes } = { "answers-per-byte": answersPerByte, neighbours }[name]();
  return { policies: ["full", ...policies].join(","), bytes };
}

function staged(method: string, rows: string): string {
  return method.endsWith(")") ? `${method.slice(0, -1)},rows=${rows})` : `${method}(rows=${rows})`;
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
