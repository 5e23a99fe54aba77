/**
 * The thread in which a worker's model runs, so that the process's event loop stays free to renew BullMQ's locks.
 * It gets a {@link ThreadSetup}, then one {@link ThreadRequest} at a time, and posts {@link ThreadReply}s.
 */
import { PalisadeError } from "../../core/errors.ts";
import { loadModel, type LoadOptions, type Model } from "../../model/model.ts";
import { LINE } from "../../model/text/frames.ts";
import type { ThreadPort } from "../../runtime/interface.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { runGroup } from "../sweep/sweep.ts";
import type { ResultLine } from "../results/results.ts";
import type { Engines, GroupJob, SweepManifest } from "./protocol.ts";
import { restoreSweepInputs, type SweepInputs } from "./sweep_inputs.ts";

export interface ThreadSetup {
  readonly path: string;
  readonly sha256: string;
  readonly palisade: string;
  readonly load: Pick<LoadOptions, "backend" | "dense" | "threads">;
}

export type ThreadRequest =
  /** What the jobs from here on belong to. */
  | { readonly kind: "sweep"; readonly manifest: SweepManifest }
  | { readonly kind: "job"; readonly job: GroupJob };

export type ThreadReply =
  /** Bytes that the weights will take, before any is read. */
  | { readonly kind: "needed"; readonly weights: number }
  | { readonly kind: "ready"; readonly engines: Engines }
  | { readonly kind: "line"; readonly line: ResultLine }
  /** The last request is done; `cells` are the ids of the job's cells, none for a sweep. */
  | { readonly kind: "end"; readonly cells: readonly string[] }
  | { readonly kind: "failure"; readonly error: PlainError };

/** An error as plain data: `refusal` has what a PalisadeError has. */
export interface PlainError {
  readonly message: string;
  readonly stack?: string;
  readonly refusal?: ReturnType<PalisadeError["plain"]>;
}

/** What tests slow down: called before each line goes out. */
export interface ThreadHooks {
  readonly beforeLine?: (line: ResultLine) => void;
}

/** Loads the model, says so, and serves requests until the thread is ended. */
export default async function serve(setup: ThreadSetup, port: ThreadPort, hooks: ThreadHooks = {}): Promise<void> {
  const post = (reply: ThreadReply) => port.post(reply);
  const fail = (error: unknown) => post({ kind: "failure", error: plainError(error) });
  try {
    const runtime = await currentRuntime();
    // As `palisade eval` does: its cells and a worker's go into one table.
    const model = await loadModel(setup.path, runtime, {
      ...setup.load,
      oneEngine: true,
      frame: LINE,
      onNeeded: (weights) => post({ kind: "needed", weights }),
    });
    const jobs = new Jobs(model, setup, (line) => {
      hooks.beforeLine?.(line);
      post({ kind: "line", line });
    });
    port.listen((message) => {
      const request = message as ThreadRequest;
      const served = request.kind === "sweep" ? jobs.begin(request.manifest) : jobs.run(request.job);
      served.then((cells) => post({ kind: "end", cells }), fail);
    });
    post({ kind: "ready", engines: { backend: model.backend.detail, dense: model.dense.detail } });
  } catch (error) {
    fail(error);
  }
}

/** The jobs of one sweep after the other. */
class Jobs {
  readonly #model: Model;
  readonly #setup: ThreadSetup;
  readonly #onLine: (line: ResultLine) => void;
  #sweep?: { manifest: SweepManifest; inputs: SweepInputs };

  constructor(model: Model, setup: ThreadSetup, onLine: (line: ResultLine) => void) {
    this.#model = model;
    this.#setup = setup;
    this.#onLine = onLine;
  }

  async begin(manifest: SweepManifest): Promise<string[]> {
    const { tasks, haystack, files, policies, keep } = manifest;
    const named = { tasks, haystack: haystack.file, policies, keep };
    const inputs = await restoreSweepInputs(await currentRuntime(), named, files);
    if (inputs.haystack.sha256 !== haystack.sha256) {
      throw new PalisadeError("input", "queue.haystack", "The haystack's text is not the collector's");
    }
    this.#sweep = { manifest, inputs };
    return [];
  }

  /** Sends the lines of the missing cells; returns the ids of all cells. */
  async run(job: GroupJob): Promise<string[]> {
    const { manifest, inputs } = this.#sweep!;
    const task = inputs.tasks.find(({ name, source }) => name === job.task && source === job.source);
    if (!task) throw new PalisadeError("input", "queue.task", `The sweep has no task ${job.task}`);
    const { sha256, palisade } = this.#setup;
    const subject = { model: this.#model, runtime: await currentRuntime(), sha256, palisade };
    const done = new Set(job.done), cells: string[] = [];
    const lines = runGroup(subject, { task, length: job.length, sample: job.sample }, inputs.cases, {
      seed: manifest.seed,
      protocol: manifest.reading,
      haystack: inputs.haystack,
      cacheType: manifest.cacheType,
      beyondTrained: manifest.beyondTrained,
      isDone(id) {
        cells.push(id);
        return done.has(id);
      },
    });
    for await (const line of lines) this.#onLine(line);
    return cells;
  }
}

function plainError(error: unknown): PlainError {
  if (error instanceof PalisadeError) {
    return { message: error.message, refusal: error.plain() };
  }
  return error instanceof Error ? { message: error.message, stack: error.stack } : { message: String(error) };
}
