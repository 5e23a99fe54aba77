/**
 * A worker: takes groups of the open sweeps that want its model, one at a time, and sends every line back as soon as
 * it is there.
 *
 * A line goes out before the job notes its id, and the job is acknowledged last. So a worker that dies anywhere loses
 * no line; at worst the next one sends a line again, which the collector drops and counts.
 */
import type { Job, Queue, Worker } from "bullmq";
import { PalisadeError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { ResultLine } from "../results/results.ts";
import type { ModelRunner } from "./model_runner.ts";
import {
  type Delivery,
  type Engines,
  type GroupJob,
  type JobProgress,
  namesOf,
  refusalOf,
  sweepIdOf,
  type SweepManifest,
  type SweepNotice,
  SWEEPS_KEY,
} from "./protocol.ts";
import type { QueueServer } from "./server.ts";

export interface WorkOptions {
  readonly runtime: Runtime;
  readonly runner: Pick<ModelRunner, "engines" | "begin" | "run" | "ended">;
  /** SHA-256 of the model file. */
  readonly sha256: string;
  readonly palisade: string;
  /** How this worker is called in messages. */
  readonly name: string;
  readonly signal: AbortSignal;
  readonly onNote: (note: string) => void;
  /** How a failure is said to people, here and where the sweep is collected. Default: its message. */
  readonly messageOf?: (error: Error) => string;
  /** Ends when there was no work for this long, milliseconds. Default: never. */
  readonly idleMs?: number;
  /** A worker that doesn't renew its job's lock for so long has lost the job, milliseconds. Default 30000. */
  readonly lockMs?: number;
  /** How often this worker looks for such jobs of others, milliseconds. Default: as `lockMs`. */
  readonly stalledMs?: number;
  /** How often it looks for sweeps, milliseconds. Default 1000. */
  readonly pollMs?: number;
  /** Most lines that wait on the server for the collector; then this worker waits too. Default 256. */
  readonly mostWaiting?: number;
  /** For tests of dying workers. */
  readonly hooks?: WorkHooks;
}

function plainMessage({ message }: Error): string {
  return message;
}

export interface WorkHooks {
  /** A line was sent and not yet noted in the job. */
  readonly sent?: () => void;
  /** All lines are sent; the job is not yet acknowledged. */
  readonly computed?: () => void;
}

export interface WorkCounts {
  groups: number;
  lines: number;
}

/** How often a job may lose its worker before it counts as failed. */
const MOST_STALLED = 2;

/** Without a job for so long a worker looks at the other sweeps, milliseconds. */
const SWITCH_MS = 5000;

/**
 * Works until `signal` is aborted, then gives the running job back and rejects with the signal's reason; or until
 * there was no work for `idleMs`.
 * @throws Error when the model's thread has died, which counts as a failed attempt of its job.
 */
export async function workOnSweeps(server: QueueServer, options: WorkOptions): Promise<WorkCounts> {
  const { signal, idleMs = Infinity, pollMs = 1000, onNote } = options;
  const counts: WorkCounts = { groups: 0, lines: 0 };
  const refused = new Set<string>();
  const stopped = stopOf(options);
  let worked = Date.now();
  while (Date.now() - worked < idleMs) {
    const open = await Promise.race([stopped, findSweep(server, options, refused)]);
    if (open) {
      onNote(`working on sweep ${open.id}: ${open.manifest.tasks.join(",")} with ${open.manifest.model.name}`);
      worked = await new SweepWork(server, options, open, counts, stopped).run(worked);
    }
    await Promise.race([stopped, delay(pollMs)]);
  }
  signal.throwIfAborted();
  return counts;
}

/** Rejects when work has to stop. */
function stopOf({ signal, runner }: WorkOptions): Promise<never> {
  const stopped = new Promise<never>((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    runner.ended.then((error) => reject(new Error(`The model's thread died: ${error.message}`, { cause: error })));
  });
  stopped.catch(() => {});
  return stopped;
}

interface OpenSweep {
  readonly id: string;
  readonly manifest: SweepManifest;
}

/**
 * The oldest open sweep with waiting jobs that this worker can serve, or else with running ones, whose workers may have
 * died. Why it can't serve a sweep is said once.
 */
async function findSweep(
  server: QueueServer,
  options: WorkOptions,
  refused: Set<string>,
): Promise<OpenSweep | undefined> {
  const notices = Object.entries(await server.redis.hgetall(SWEEPS_KEY))
    .map(([id, text]) => ({ id, ...JSON.parse(text) as SweepNotice }))
    .sort((a, b) => a.since < b.since ? -1 : 1);
  const ids = notices.map(({ id }) => id).filter((id) => !refused.has(id));
  const jobs = await Promise.all(ids.map((id) => countJobs(server, id)));
  const waiting = ids.filter((_, i) => jobs[i].waiting > 0);
  const running = ids.filter((_, i) => jobs[i].waiting === 0 && jobs[i].running > 0);
  for (const id of [...waiting, ...running]) {
    const text = await server.redis.get(namesOf(id).manifest);
    if (text === null) continue;
    const manifest = JSON.parse(text) as SweepManifest;
    const reason = refusalOf(manifest, options) ?? damageOf(id, manifest, options) ??
      await otherEngines(server, id, options.runner.engines);
    if (reason === undefined) return { id, manifest };
    refused.add(id);
    options.onNote(`sweep ${id} is not for this worker: ${reason}`);
    await withQueue<Delivery, unknown>(server, namesOf(id).results, (results) => {
      const delivery: Delivery = { kind: "refusal", worker: options.name, reason };
      return results.add(delivery.kind, delivery, { removeOnComplete: true });
    });
  }
  return undefined;
}

function countJobs(server: QueueServer, id: string): Promise<{ waiting: number; running: number }> {
  return withQueue(server, namesOf(id).jobs, async (jobs) => ({
    waiting: await jobs.getJobCountByTypes("wait", "prioritized", "delayed"),
    running: await jobs.getActiveCount(),
  }));
}

/** Opens a queue for as long as `use` takes. */
async function withQueue<Data, Result>(
  server: QueueServer,
  name: string,
  use: (queue: Queue<Data>) => Promise<Result>,
): Promise<Result> {
  const queue = new server.bullmq.Queue<Data>(name, server.options);
  queue.on("error", () => {});
  try {
    return await use(queue);
  } finally {
    await queue.close();
  }
}

function damageOf(id: string, manifest: SweepManifest, { runtime }: WorkOptions): string | undefined {
  return sweepIdOf(manifest, runtime) === id ? undefined : "its manifest doesn't fit its id";
}

/** The first worker of a sweep decides what it is computed with: other engines would make other cells. */
async function otherEngines({ redis }: QueueServer, id: string, mine: Engines): Promise<string | undefined> {
  const text = JSON.stringify(mine);
  const { engines } = namesOf(id);
  await redis.set(engines, text, "NX");
  const first = await redis.get(engines);
  return first === text ? undefined : `it is computed with ${first}, this worker has ${text}: choose the same engines`;
}

/** One sweep, until it is over or has no jobs for this worker while others have. */
class SweepWork {
  readonly #server: QueueServer;
  readonly #options: WorkOptions;
  readonly #sweep: OpenSweep;
  readonly #counts: WorkCounts;
  readonly #stopped: Promise<never>;
  readonly #results: Queue<Delivery>;
  readonly #joined = Date.now();
  #busy = false;
  #worked = 0;

  constructor(
    server: QueueServer,
    options: WorkOptions,
    sweep: OpenSweep,
    counts: WorkCounts,
    stopped: Promise<never>,
  ) {
    this.#server = server;
    this.#options = options;
    this.#sweep = sweep;
    this.#counts = counts;
    this.#stopped = stopped;
    this.#results = new server.bullmq.Queue(namesOf(sweep.id).results, server.options);
    this.#results.on("error", () => {});
  }

  /** `worked` is when there was work last; returns the same afterwards. */
  async run(worked: number): Promise<number> {
    const { runner, pollMs = 1000 } = this.#options;
    this.#worked = worked;
    await Promise.race([this.#stopped, runner.begin(this.#sweep.manifest)]);
    const worker = this.#start();
    try {
      while (await this.#goesOn()) await Promise.race([this.#stopped, delay(pollMs)]);
    } finally {
      // Waits for the processor, which gives its job back when work has to stop.
      await Promise.race([worker.close(), delay(5000)]);
      await Promise.race([this.#results.close(), delay(1000)]);
    }
    return this.#worked;
  }

  #start(): Worker<GroupJob> {
    const { lockMs = 30_000, stalledMs = lockMs, name } = this.#options;
    const worker = new this.#server.bullmq.Worker<GroupJob>(this.#sweep.id, (job, token) => this.#take(job, token!), {
      ...this.#server.options,
      name,
      concurrency: 1,
      lockDuration: lockMs,
      stalledInterval: stalledMs,
      maxStalledCount: MOST_STALLED,
      drainDelay: 1,
    });
    worker.on("error", () => {}); // the server's own connection reports outages
    worker.on("lockRenewalFailed", (jobs) => this.#options.onNote(`lost the lock of ${jobs.join(", ")}`));
    return worker;
  }

  /** False when the sweep is over, when another one may have jobs while this one has none, or after `idleMs`. */
  async #goesOn(): Promise<boolean> {
    if (this.#busy) return true;
    const now = Date.now();
    if (now - this.#worked > (this.#options.idleMs ?? Infinity)) return false;
    const { redis } = this.#server;
    const [open, there] = await Promise.race([
      this.#stopped,
      Promise.all([redis.hlen(SWEEPS_KEY), redis.hexists(SWEEPS_KEY, this.#sweep.id)]),
    ]);
    return there === 1 && (open === 1 || now - Math.max(this.#joined, this.#worked) < SWITCH_MS);
  }

  async #take(job: Job<GroupJob>, token: string): Promise<void> {
    this.#busy = true;
    try {
      await Promise.race([this.#stopped, this.#compute(job)]);
    } catch (error) {
      const { signal, name, onNote, messageOf = plainMessage } = this.#options;
      if (signal.aborted) {
        await job.moveToWait(token);
        throw new this.#server.bullmq.WaitingError();
      }
      const message = messageOf(error as Error);
      onNote(`${labelOf(job.data)} not done: ${message}`);
      // A refusal is the same everywhere and every time; only what this machine lacks another one may have.
      if (error instanceof PalisadeError && error.kind === "input") {
        throw new this.#server.bullmq.UnrecoverableError(message);
      }
      throw new Error(`${message} (worker ${name})`, { cause: error });
    } finally {
      this.#busy = false;
      this.#worked = Date.now();
    }
  }

  async #compute(job: Job<GroupJob>): Promise<void> {
    const { runner, name, hooks } = this.#options;
    const sent = sentOf(job);
    const sending = new Sending(async (line) => {
      await this.#room();
      await this.#send({ kind: "line", line });
      hooks?.sent?.();
      sent.push(line.id);
      await job.updateProgress({ sent } satisfies JobProgress);
      this.#counts.lines++;
    });
    const cells = await runner.run({ ...job.data, done: [...job.data.done, ...sent] }, (line) => sending.add(line));
    await sending.end();
    await this.#send({ kind: "end", job: job.id!, cells, worker: name });
    hooks?.computed?.();
    this.#counts.groups++;
    this.#options.onNote(`${labelOf(job.data)}: ${cells.length} cells`);
  }

  /** Nothing goes to a sweep that is over: nobody would take it off the server again. */
  async #send(delivery: Delivery): Promise<void> {
    if (await this.#server.redis.hexists(SWEEPS_KEY, this.#sweep.id) === 0) throw new Error("the sweep is over");
    await this.#results.add(delivery.kind, delivery, { removeOnComplete: true });
  }

  /** Waits while the collector is far behind, or away. */
  async #room(): Promise<void> {
    const { mostWaiting = 256, pollMs = 1000 } = this.#options;
    while (await this.#results.getWaitingCount() >= mostWaiting) await Promise.race([this.#stopped, delay(pollMs)]);
  }
}

/** Sends lines one after the other while the model goes on. */
class Sending {
  readonly #send: (line: ResultLine) => Promise<void>;
  #last = Promise.resolve();

  constructor(send: (line: ResultLine) => Promise<void>) {
    this.#send = send;
  }

  add(line: ResultLine): void {
    this.#last = this.#last.then(() => this.#send(line));
    this.#last.catch(() => {}); // end() rejects with it
  }

  /** Returns when all are sent. */
  async end(): Promise<void> {
    await this.#last;
  }
}

/** Cells whose lines earlier workers have sent. */
function sentOf({ progress }: Job): string[] {
  const sent = (progress as Partial<JobProgress> | undefined)?.sent;
  return Array.isArray(sent) ? sent.filter((id) => typeof id === "string") : [];
}

function labelOf({ task, length, sample }: GroupJob): string {
  return `${task}${length === null ? "" : ` ${length}`} #${sample + 1}`;
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
