/** Two policies on the same samples: the paired difference of their scores. */
import { bootstrapMean, type Interval, mean } from "./bootstrap.ts";
import type { ResultLine } from "./results.ts";
import { caseKey, groupBy, protocolOf } from "./summary.ts";

/** One policy at one budget against the named one at the same budget. Scores are means over the shared samples. */
export interface Comparison {
  readonly model: string;
  readonly protocol: string;
  readonly length: number | null;
  /** A task's name, or `all` for the mean over those where both have samples. */
  readonly task: string;
  readonly policy: string;
  readonly keep: string;
  /** Samples that both have. */
  readonly samples: number;
  readonly score: number;
  readonly against: number;
  /** score − against, with its paired 95 % interval; undefined with less than two samples. */
  readonly difference: number;
  readonly interval: Interval | undefined;
  /** Samples with a higher and with a lower score than the named policy's. */
  readonly better: number;
  readonly worse: number;
}

type Pair = readonly [line: ResultLine, reference: ResultLine];

/**
 * Every policy of `lines` (one line per sample, policy and budget: `summarise(…).lines`) against `policy`, as it was
 * asked for (`gate(combine=risk)`). A whole cache is compared at every budget.
 */
export function compareTo(lines: readonly ResultLine[], policy: string): Comparison[] {
  const references = new Map<string, ResultLine>();
  for (const line of lines) if (line.asked.policy === policy) references.set(placeOf(line), line);
  const whole = (line: ResultLine) => references.get(placeOf(line, "100%"));
  const settings = groupBy(lines, (line) => JSON.stringify([line.model.sha256, protocolOf(line), line.length]));
  return [...settings.values()].flatMap((setting) =>
    [...groupBy(setting.filter((line) => line.asked.policy !== policy), caseKey).values()].flatMap((some) => {
      const pairs = some.flatMap((line): Pair[] => {
        const reference = references.get(placeOf(line)) ?? whole(line);
        return reference ? [[line, reference]] : [];
      });
      const tasks = [...groupBy(pairs, ([line]) => line.task)];
      const rows = tasks.map(([task, of]) => comparison(task, [of]));
      return tasks.length > 1 ? [...rows, comparison("all", tasks.map(([, of]) => of))] : rows;
    })
  );
}

/** Where a line stands: everything but its policy. */
function placeOf(line: ResultLine, keep = line.asked.keep): string {
  const { model, task, length, sampleHash, seed, sample } = line;
  return JSON.stringify([model.sha256, protocolOf(line), task, length, sampleHash, seed, sample, keep]);
}

/** `tasks`: the pairs of each task; every task weighs the same. */
function comparison(task: string, tasks: readonly (readonly Pair[])[]): Comparison {
  const pairs = tasks.flat();
  const [[{ model, length, asked }]] = pairs;
  const protocol = protocolOf(pairs[0][0]);
  const over = (of: (pair: Pair) => number) => mean(tasks.map((some) => mean(some.map(of))));
  const score = over(([line]) => line.score), against = over(([, reference]) => reference.score);
  return {
    ...{ model: model.name, protocol, length, task, policy: asked.policy, keep: asked.keep, samples: pairs.length },
    ...{ score, against, difference: score - against },
    interval: bootstrapMean(tasks.map((some) => some.map(([line, reference]) => line.score - reference.score))),
    better: pairs.filter(([line, reference]) => line.score > reference.score).length,
    worse: pairs.filter(([line, reference]) => line.score < reference.score).length,
  };
}
