/** A sweep whose cells workers compute: this process collects their lines. */
import { inputError, option, say } from "../../core/errors.ts";
import { type CollectCounts, type CollectOutcome, collectSweep } from "../../evaluate/queue/collector.ts";
import { QUEUE_PROTOCOL, type SweepManifest, usageError } from "../../evaluate/queue/protocol.ts";
import { openServer, parseQueueUrl } from "../../evaluate/queue/server.ts";
import { readSweepInputs } from "../../evaluate/queue/sweep_inputs.ts";
import { type CellGroup, cellGroups, parseLengths } from "../../evaluate/sweep/plan.ts";
import { nonEmpty, refuseRepeated, splitNames } from "../../evaluate/sweep/lists.ts";
import { type ResultLine, ResultsFile } from "../../evaluate/results/results.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import { MODELS } from "../../model/store/store.ts";
import type { EvalOptions } from "./options.ts";
import { formatMs } from "../print/format.ts";
import { modelHash } from "../../model/store/identity.ts";
import { EXIT, type Io } from "../io.ts";
import { obtainModel } from "../obtain.ts";
import type { Evaluated } from "../json/outputs.ts";
import { printJson } from "../json/print.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import { VERSION } from "../../runtime/version.ts";

export type QueueOptions = EvalOptions & { readonly queue: string };

/** Runs the command; returns the exit code: 1 when groups were given up. */
export async function evaluateByQueue(options: QueueOptions, io: Io): Promise<number> {
  refuseEngines(options);
  if (options.bytes !== undefined || options.preset || options.part) {
    const message = say`A queue takes ${
      option("keep")
    }, no bytes, preset or part: run several processes with --part instead`;
    throw inputError("queue.bytes", message, option("queue"));
  }
  parseQueueUrl(options.queue);
  const lengths = parseLengths(options.length);
  const models = nonEmpty(splitNames(options.models, "models"), "models");
  const tasks = nonEmpty(splitNames(options.tasks, "tasks"), "tasks");
  const { policies, keep, haystack, cacheType = DEFAULTS.cacheType } = options;
  const inputs = await readSweepInputs(io.runtime, { tasks, haystack, policies, keep });
  const groups = cellGroups(inputs.tasks, lengths, options.samples);
  using progress = createProgress(io.interactive && !options.quiet);
  const manifests: SweepManifest[] = [];
  for (const name of models) {
    manifests.push({
      protocol: QUEUE_PROTOCOL,
      palisade: VERSION,
      model: await modelOf(name, options, io, progress),
      policies,
      keep,
      tasks,
      seed: options.seed,
      reading: options.queryAware ? "query-aware" : "context-first",
      ...(cacheType !== "f32" && { cacheType }),
      beyondTrained: options.beyondTrained ?? false,
      haystack: { file: haystack, sha256: inputs.haystack.sha256 },
      files: inputs.files,
    });
  }
  refuseRepeated(manifests, { key: ({ model }) => model.sha256, name: ({ model }) => model.name, where: "models" });
  const display = new QueueProgress(options, io, progress, models.length * groups.length, inputs.cases.length);
  await using server = await openServer(options.queue, (note) => display.note(note));
  await using results = await ResultsFile.open(io.runtime, options.out);
  const sink = oneByOne(results);
  const outcomes = await Promise.all(manifests.map((manifest, i) =>
    collectSweep(server, {
      runtime: io.runtime,
      results: sink,
      manifest,
      groups,
      signal: io.signal,
      onNote: (note) => display.note(note),
      onProgress: (counts, group) => display.progress(i, counts, group),
    })
  ));
  progress.clear();
  display.end(outcomes);
  if (options.json) printJson(io, "eval", display.figures(outcomes));
  return outcomes.some(({ failed }) => failed.length > 0) ? EXIT.failed : EXIT.ok;
}

/** Engines are the workers' choice: naming one here would be without effect. */
function refuseEngines({ backend, dense, threads }: QueueOptions): void {
  if ([backend, dense, threads].every((each) => each === undefined || each === "auto")) return;
  const message = "The workers compute: give --backend, --dense and --threads to palisade worker";
  throw usageError("queue.engines", message, option("queue"));
}

/** Named models are known by their pinned hash and needn't be here. */
async function modelOf(
  name: string,
  options: QueueOptions,
  io: Io,
  progress: Progress,
): Promise<SweepManifest["model"]> {
  const known = MODELS.find((model) => model.name === name);
  if (known) return { name, sha256: known.sha256 };
  const path = await obtainModel(name, io, progress, options);
  return { name: path.split(/[\\/]/).at(-1)!, sha256: await modelHash(path, io.runtime, io) };
}

/** Sweeps of several models share the file: their lines are written one after the other. */
function oneByOne(results: ResultsFile) {
  let last = Promise.resolve();
  return {
    before: results.before,
    has: (id: string) => results.has(id),
    append(line: ResultLine): Promise<void> {
      const written = last.then(() => results.append(line));
      last = written.catch(() => {});
      return written;
    },
  };
}

/** Says how it goes. The remaining time is what the lines so far took, by the clock, times the cells to come. */
class QueueProgress {
  readonly #io: Io;
  readonly #quiet: boolean;
  readonly #out: string;
  readonly #progress: Progress;
  readonly #groups: number;
  readonly #cases: number;
  readonly #counts: CollectCounts[] = [];
  readonly #start = performance.now();

  constructor(options: QueueOptions, io: Io, progress: Progress, groups: number, cases: number) {
    this.#io = io;
    this.#quiet = options.quiet ?? false;
    this.#out = options.out;
    this.#progress = progress;
    this.#groups = groups;
    this.#cases = cases;
  }

  note(note: string): void {
    this.#progress.clear();
    this.#io.err(`palisade: ${note}\n`);
  }

  progress(sweep: number, counts: CollectCounts, group?: CellGroup): void {
    this.#counts[sweep] = counts;
    const { cells, computed } = this.#sums();
    const total = this.#groups * this.#cases;
    const took = performance.now() - this.#start;
    const left = computed === 0 ? "" : `, about ${formatMs((total - cells) * took / computed)} left`;
    this.#progress.update(`collecting${left}`, cells, total);
    if (group && !this.#io.interactive && !this.#quiet) this.#io.err(`${cells} of ${total} cells${left}\n`);
  }

  end(outcomes: readonly CollectOutcome[]): void {
    if (this.#quiet) return;
    const { computed, found, duplicates, failed, ms } = this.figures(outcomes);
    this.#io.err(
      `${computed} cells computed in ${formatMs(ms)}, ${found} were there already, ` +
        `${duplicates} duplicates dropped, ${failed} groups given up\n`,
    );
  }

  figures(outcomes: readonly CollectOutcome[]): Evaluated {
    const sum = (of: (outcome: CollectOutcome) => number) => outcomes.reduce((all, each) => all + of(each), 0);
    return {
      out: this.#out,
      computed: sum((each) => each.computed),
      found: sum((each) => each.found),
      duplicates: sum((each) => each.duplicates),
      failed: sum((each) => each.failed.length),
      refused: [],
      ms: performance.now() - this.#start,
    };
  }

  #sums(): { cells: number; computed: number } {
    const known = this.#counts.filter((counts) => counts !== undefined);
    const computed = known.reduce((all, each) => all + each.computed, 0);
    return { computed, cells: computed + known.reduce((all, each) => all + each.found, 0) };
  }
}
