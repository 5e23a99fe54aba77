/** A sweep whose cells are computed by this process. */
import { inputError, option, PalisadeError } from "../../core/errors.ts";
import { presetOf, solvedByFull } from "../../evaluate/sweep/presets.ts";
import { SOLVED } from "../../evaluate/results/summary.ts";
import { type GroupOptions, measureSample, runGroup, type Subject } from "../../evaluate/sweep/sweep.ts";
import { NO_HAYSTACK, openHaystack } from "../../evaluate/tasks/haystack.ts";
import {
  type AskedCase,
  type CellGroup,
  cellGroups,
  cellsBefore,
  loadCases,
  parseLengths,
  partOf,
} from "../../evaluate/sweep/plan.ts";
import { nonEmpty, refuseRepeated, splitNames } from "../../evaluate/sweep/lists.ts";
import { readResults, ResultsFile } from "../../evaluate/results/results.ts";
import { openTasks } from "../../evaluate/tasks/registry.ts";
import { failureText } from "../failure.ts";
import { EVAL_NAMES, EVAL_OPTIONS, type EvalOptions } from "./options.ts";
import { formatMs } from "../print/format.ts";
import { EXIT, type Io } from "../io.ts";
import type { Evaluated } from "../json/outputs.ts";
import { printJson } from "../json/print.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import { type ModelFile, openModelFile, openSubject } from "./subject.ts";

/** Runs the sweep; returns the exit code. Refusals are thrown before any model is loaded where that is possible. */
export async function evaluateHere(options: EvalOptions, io: Io): Promise<number> {
  const { preset } = options;
  if (!preset) return await sweepHere(options, io);
  const wanted = presetOf(preset), { policies, tasks } = EVAL_OPTIONS;
  const filled = {
    ...options,
    policies: options.policies === policies.preset ? wanted.policies : options.policies,
    bytes: options.bytes ?? wanted.bytes,
  };
  if (options.tasks !== tasks.preset) return await sweepHere(filled, io);
  return await sweepHere({ ...filled, tasks: await solvedTasks(options, io) }, io);
}

/** Asks the full cache alone, into the same file, and names the tasks that it solves. */
async function solvedTasks(options: EvalOptions, io: Io): Promise<string> {
  const models = splitNames(options.models, "models");
  if (models.length !== 1) {
    throw inputError("preset.models", "A preset chooses tasks for one model: name one, or tasks", option("models"));
  }
  const samples = Math.min(options.samples, SOLVED.samples),
    asked = { ...options, bytes: undefined, part: undefined, json: undefined };
  const code = await sweepHere({ ...asked, policies: "full", keep: "100%", samples, preset: undefined }, io);
  if (code !== EXIT.ok) {
    throw inputError("preset.tasks", "Some tasks can't be measured: name those to take", option("tasks"));
  }
  const { lines } = await readResults(io.runtime, options.out);
  const lengths = parseLengths(options.length);
  const mine = lines.filter(({ length, seed }) =>
    seed === options.seed && (length === null || lengths.includes(length))
  );
  const solved = solvedByFull(mine, samples);
  if (!options.quiet) io.err(`solved by the full cache: ${solved.join(",")}\n`);
  return solved.join(",");
}

/** One sweep. */
async function sweepHere(options: EvalOptions, io: Io): Promise<number> {
  const cases = await loadCases(io.runtime, options.policies, options.keep, options.bytes);
  const lengths = parseLengths(options.length);
  const models = nonEmpty(splitNames(options.models, "models"), "models");
  const tasks = await openTasks(nonEmpty(splitNames(options.tasks, "tasks"), "tasks"), io.runtime);
  const groups = partOf(cellGroups(tasks, lengths, options.samples), options.part);
  const haystack = tasks.some((task) => task.sized) ? await openHaystack(io.runtime, options.haystack) : NO_HAYSTACK;
  await using results = await ResultsFile.open(io.runtime, options.out);
  const sweep = new SweepProgress(io, options, results, models.length * groups.length * cases.length);
  // Whole caches of the longest cells; how long those of files are isn't known yet.
  const expected = { tokens: Math.max(0, ...groups.map(({ length }) => length ?? 0)), cacheType: options.cacheType };
  try {
    for (const file of await findModels(models, options, io, sweep.progress)) {
      await using subject = await openSubject(file, options, io, sweep.progress, expected);
      sweep.expect(subject, groups, cases);
      const settings: GroupOptions = {
        seed: options.seed,
        protocol: options.queryAware ? "query-aware" : "context-first",
        haystack,
        cacheType: options.cacheType,
        isDone: (id) => results.has(id),
        beyondTrained: options.beyondTrained,
        signal: io.signal,
      };
      const bad = sweep.measure(subject, groups, settings);
      for (const group of groups) if (!bad.has(group)) await sweep.run(subject, group, cases, settings);
    }
  } finally {
    sweep.progress.clear();
  }
  if (!options.quiet) io.err(`${sweep.summary()}\n`);
  if (options.json) printJson(io, "eval", sweep.figures(options.out));
  return sweep.end();
}

/** All models, fetched where they aren't here. @throws PalisadeError `list.repeated` for two names of one model. */
async function findModels(names: string[], options: EvalOptions, io: Io, progress: Progress): Promise<ModelFile[]> {
  const files: ModelFile[] = [];
  for (const name of names) {
    files.push(await openModelFile(name, options, io, progress));
  }
  refuseRepeated(files, { key: ({ sha256 }) => sha256, name: ({ name }) => name, where: "models" });
  return files;
}

/** Samples named behind one reason. */
const MOST_LABELS = 10;

/** Counts cells and tells how it goes. The remaining time is what this run's cells took, times the cells to come. */
class SweepProgress {
  readonly progress: Progress;
  readonly #io: Io;
  readonly #quiet: boolean;
  readonly #results: ResultsFile;
  readonly #total: number;
  readonly #start = performance.now();
  #computed = 0;
  #found = 0;
  /** Cells of coming groups that look as if they were in the file. */
  #expected = 0;
  readonly #expectedByGroup = new Map<CellGroup, number>();
  #computeMs = 0;
  /** Groups that couldn't be measured, by the reason. */
  readonly #bad = new Map<string, string[]>();

  constructor(io: Io, options: EvalOptions, results: ResultsFile, total: number) {
    this.#io = io;
    this.#quiet = options.quiet ?? false;
    this.#results = results;
    this.#total = total;
    this.progress = createProgress(io.interactive && !this.#quiet);
  }

  /** Looks up which groups of this model have lines already, so that they don't count as work to come. */
  expect({ sha256 }: Subject, groups: readonly CellGroup[], cases: readonly AskedCase[]): void {
    this.#expected = 0;
    this.#expectedByGroup.clear();
    const lines = this.#results.before.filter(({ model }) => model.sha256 === sha256);
    for (const [group, count] of cellsBefore(lines, groups, cases)) {
      this.#expectedByGroup.set(group, count);
      this.#expected += count;
    }
  }

  async run(subject: Subject, group: CellGroup, cases: readonly AskedCase[], options: GroupOptions): Promise<void> {
    const start = performance.now();
    let computed = 0;
    const label = labelOf(group);
    const onStep = (step: string, done: number, total: number) =>
      this.progress.update(`${label} · ${this.#remaining()} · ${step}`, done, total);
    const lines = runGroup(subject, group, cases, { ...options, onStep });
    let whole = true;
    while (true) {
      const next = await this.#refused(group, () => lines.next());
      whole = next !== undefined;
      if (!next || next.done) break;
      await this.#results.append(next.value);
      computed++;
      options.signal?.throwIfAborted();
    }
    this.#computed += computed;
    this.#found += whole ? cases.length - computed : 0;
    this.#expected -= this.#expectedByGroup.get(group) ?? 0;
    this.#computeMs += performance.now() - start;
    if (computed > 0 && !this.#io.interactive && !this.#quiet) {
      this.#io.err(`${label}: ${this.#computed + this.#found} of ${this.#total} cells, ${this.#remaining()}\n`);
    }
  }

  /**
   * Counts the tokens of the samples whose length isn't chosen, and makes one of each length that is, before anything is
   * read; returns those that can't be measured.
   */
  measure(subject: Subject, groups: readonly CellGroup[], options: GroupOptions): Set<CellGroup> {
    const bad = new Set<CellGroup>();
    for (const group of groups) {
      if (group.length !== null && group.sample > 0) continue;
      options.signal?.throwIfAborted();
      try {
        measureSample(subject, group, options);
      } catch (error) {
        this.#note(group, error);
        bad.add(group);
      }
    }
    return bad;
  }

  /** The result of `work`; undefined when the group was refused, which the others don't pay for. */
  async #refused<T>(group: CellGroup, work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      this.#note(group, error);
      return undefined;
    }
  }

  /** Notes a refusal, and says so at its first time; anything else is thrown. */
  #note(group: CellGroup, error: unknown): void {
    if (!(error instanceof PalisadeError) || error.kind !== "input") throw error;
    const reason = failureText(error, EVAL_NAMES);
    const labels = this.#bad.get(reason) ?? [];
    this.#bad.set(reason, [...labels, labelOf(group)]);
    this.progress.clear();
    if (labels.length === 0 && !this.#quiet) this.#io.err(`palisade: ${labelOf(group)} can't be measured: ${reason}\n`);
  }

  /** Names what couldn't be measured; the exit code. */
  end(): number {
    for (const [reason, labels] of this.#bad) {
      const more = labels.length > MOST_LABELS ? ` and ${labels.length - MOST_LABELS} more` : "";
      this.#io.err(`palisade: not measured: ${labels.slice(0, MOST_LABELS).join(", ")}${more}: ${reason}\n`);
    }
    return this.#bad.size > 0 ? EXIT.input : EXIT.ok;
  }

  #remaining(): string {
    const left = Math.max(0, this.#total - this.#computed - this.#found - this.#expected);
    if (this.#computed === 0) return `${left} cells to go`;
    return `about ${formatMs(left * this.#computeMs / this.#computed)} left`;
  }

  figures(out: string): Evaluated {
    const refused = [...this.#bad].map(([reason, samples]) => ({ reason, samples }));
    const ms = performance.now() - this.#start;
    return { out, computed: this.#computed, found: this.#found, duplicates: 0, failed: 0, refused, ms };
  }

  summary(): string {
    const took = formatMs(performance.now() - this.#start);
    return `${this.#computed} cells computed in ${took}, ${this.#found} were there already`;
  }
}

function labelOf({ task, length, sample }: CellGroup): string {
  const name = task.file === undefined ? task.name : `${task.name.split(":")[0]}:${task.file}`;
  return `${name}${length === null ? "" : ` ${length}`} #${sample + 1}`;
}
