/** From the lines of a results file to the rows of a report. */
import { bootstrapMean, type Interval, mean, median } from "./bootstrap.ts";
import type { ResultLine } from "./results.ts";
import { tellApart } from "./tell_apart.ts";
import { kindByStart, type OutputKind } from "../../runtime/output.ts";

/** A task counts as solved when the full cache scores this much on this many samples. */
export const SOLVED = { score: 60, samples: 20 } as const;

/** One policy at one budget on one task, or on several together. Scores are means, 0 … 100. */
export interface Row {
  readonly model: string;
  readonly protocol: string;
  readonly length: number | null;
  /** A task's name; `all` for the mean over all tasks, `solved` for the mean over the solved ones. */
  readonly task: string;
  readonly policy: string;
  readonly keep: string;
  readonly samples: number;
  readonly score: number;
  readonly full: number;
  /** full − score with its paired interval; undefined with less than two samples. */
  readonly loss: number;
  readonly interval: Interval | undefined;
  /** Samples the full cache gets at least partly right: `held` with the same score, `lost` with a lower one. */
  readonly held: number;
  readonly lost: number;
  /** Samples with a HIGHER score than the full cache's: accidents, counted apart from what is held. */
  readonly accidental: number;
  /** Nats; see `answer.ts`. */
  readonly kl: number;
  /** Live bytes of the evicted caches by those of the full ones. */
  readonly bytes: number;
  /** Live bytes of an evicted cache, and the most that a reading layer by layer holds: one whole layer more. */
  readonly live: number;
  readonly peak: number;
  /** Milliseconds of scoring and selecting, the middle one of the samples; measuring is shared by all policies. */
  readonly evict: number;
}

export interface Summary {
  /** Tasks first, then `solved` and `all` of the same setting. */
  readonly rows: readonly Row[];
  /** `task` or `task length`, for tasks run at several lengths or models one entry each. */
  readonly solved: readonly string[];
  /** The lines the rows are made of: one per setting, policy, budget and sample. */
  readonly lines: readonly ResultLine[];
  /** Lines left out because the same sample was measured again later, by other engines or an other version. */
  readonly superseded: number;
}

/** Groups and averages, namesakes apart ({@link tellApart}); rows come in the order their first line was written. */
export function summarise(all: readonly ResultLine[]): Summary {
  const lines = tellApart(latest(all));
  const settings = groupBy(lines, (line) => JSON.stringify([line.model.sha256, protocolOf(line), line.length]));
  const rows: Row[] = [], solved: string[] = [];
  for (const setting of settings.values()) {
    const solvedHere = solvedTasks(setting);
    const { length, model } = setting[0];
    solved.push(
      ...[...solvedHere].map((task) => [task, length ?? "", model.name].filter((part) => part !== "").join(" ")),
    );
    rows.push(...rowsOf(setting, solvedHere));
  }
  return { rows, solved, lines, superseded: all.length - lines.length };
}

/** Of several lines about the same sample, policy and budget the one written last. */
function latest(lines: readonly ResultLine[]): ResultLine[] {
  const kept = new Map<string, ResultLine>();
  for (const line of lines) {
    const { model, task, length, sampleHash, seed, sample } = line;
    kept.set(
      JSON.stringify([model.sha256, protocolOf(line), task, length, sampleHash, seed, sample, caseKey(line)]),
      line,
    );
  }
  return [...kept.values()];
}

/** How a line was measured: the protocol, and the type of the caches where it isn't f32. */
export function protocolOf({ protocol, cacheType }: Pick<ResultLine, "protocol" | "cacheType">): string {
  return cacheType ? `${protocol}, ${cacheType}` : protocol;
}

/** Equal for lines of the same policy, parameters and budget. */
export function caseKey({ policy, keep, bytesAsked }: ResultLine): string {
  const budget = bytesAsked === undefined ? Object.entries(keep) : bytesAsked;
  return JSON.stringify([policy.name, Object.entries(policy.parameters).sort(), budget]);
}

function solvedTasks(lines: readonly ResultLine[]): Set<string> {
  const solved = new Set<string>();
  for (const [task, some] of groupBy(lines, (line) => line.task)) {
    const full = new Map(some.map((line) => [line.sampleHash, line.full.score]));
    if (full.size >= SOLVED.samples && mean([...full.values()]) >= SOLVED.score) solved.add(task);
  }
  return solved;
}

function rowsOf(setting: readonly ResultLine[], solved: ReadonlySet<string>): Row[] {
  const rows: Row[] = [];
  const tasks = [...groupBy(setting, (line) => line.task).keys()];
  const together = [
    { name: "solved", of: tasks.filter((task) => solved.has(task)) },
    { name: "all", of: tasks },
  ].filter(({ of }) => of.length > 1);
  for (const lines of groupBy(setting, caseKey).values()) {
    const byTask = groupBy(lines, (line) => line.task);
    for (const [task, some] of byTask) rows.push(rowOf(task, [some]));
    for (const { name, of } of together) {
      if (of.every((task) => byTask.has(task))) rows.push(rowOf(name, of.map((task) => byTask.get(task)!)));
    }
  }
  return rows;
}

/** `tasks`: the lines of each task; every task weighs the same. */
function rowOf(task: string, tasks: readonly (readonly ResultLine[])[]): Row {
  const lines = tasks.flat();
  const [{ model, length, asked }] = lines;
  const over = (of: (line: ResultLine) => number) => mean(tasks.map((some) => mean(some.map(of))));
  const count = (wanted: (line: ResultLine) => boolean) => lines.filter(wanted).length;
  const score = over((line) => line.score), full = over((line) => line.full.score);
  return {
    model: model.name,
    protocol: protocolOf(lines[0]),
    length,
    task,
    policy: asked.policy,
    keep: asked.keep,
    samples: lines.length,
    score,
    full,
    loss: full - score,
    interval: bootstrapMean(tasks.map((some) => some.map((line) => line.full.score - line.score))),
    held: count((line) => line.full.score > 0 && line.score === line.full.score),
    lost: count((line) => line.score < line.full.score),
    accidental: count((line) => line.score > line.full.score),
    kl: over((line) => line.kl.mean),
    bytes: over((line) => line.bytes.live / line.bytes.full),
    live: over((line) => line.bytes.live),
    peak: over(peakOf),
    evict: median(lines.map(({ ms }) => ms.evict)),
  };
}

/** While a layer is read all of it is there, beside what stays of the others. */
function peakOf({ bytes: { live, full }, kept }: ResultLine): number {
  return Math.min(full, live + full / kept.length);
}

/** Map in order of first appearance. */
export function groupBy<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const at = key(item);
    const group = groups.get(at);
    if (group) group.push(item);
    else groups.set(at, [item]);
  }
  return groups;
}

const COLUMNS = [
  "model",
  "protocol",
  "length",
  "task",
  "policy",
  "keep",
  "samples",
  "score",
  "full",
  "loss",
  "loss_low",
  "loss_high",
  "held",
  "lost",
  "accidental",
  "kl",
  "bytes",
  "live",
  "peak",
  "evict",
];

/** A file that {@link csvOf} may take the place of. */
export const CSV_TABLE: OutputKind = kindByStart("a table of palisade report", [COLUMNS.slice(0, 8).join(",")]);

/** The rows as CSV (RFC 4180), numbers unrounded. */
export function csvOf(rows: readonly Row[]): string {
  const cells = rows.map(({ interval, ...row }) => {
    const all: Record<string, unknown> = { ...row, loss_low: interval?.low ?? "", loss_high: interval?.high ?? "" };
    return COLUMNS.map((name) => quoted(all[name] ?? ""));
  });
  return [COLUMNS, ...cells].map((line) => `${line.join(",")}\r\n`).join("");
}

function quoted(value: unknown): string {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
