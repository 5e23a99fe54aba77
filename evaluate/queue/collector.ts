/**
 * The collector: puts a sweep's groups on the queue and owns the results file.
 *
 * Nothing is believed lost or done without the file: a group counts as done when a worker has named all its cells and
 * the file holds each of them. Whatever the queue has forgotten meanwhile is queued again, and what comes twice is
 * dropped by its id and counted. Stopping the collector loses nothing: jobs and lines wait on the server.
 */
import type { Job, Queue, Worker } from "bullmq";
import { option, PalisadeError, resourceError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { CellGroup } from "../sweep/plan.ts";
import { cellId, RESULT_FORMAT, type ResultLine } from "../results/results.ts";
import {
  type Delivery,
  type GroupJob,
  jobIdOf,
  namesOf,
  sweepIdOf,
  type SweepManifest,
  type SweepNotice,
  SWEEPS_KEY,
} from "./protocol.ts";
import type { QueueServer } from "./server.ts";

/** The results file as the collector needs it (`ResultsFile`). */
export interface ResultsSink {
  readonly before: readonly ResultLine[];
  has(id: string): boolean;
  append(line: ResultLine): Promise<void>;
}

export interface CollectOptions {
  readonly runtime: Runtime;
  readonly results: ResultsSink;
  readonly manifest: SweepManifest;
  readonly groups: readonly CellGroup[];
  readonly signal: AbortSignal;
  /** Something a person should know. */
  readonly onNote: (note: string) => void;
  /** After each change of the counts. */
  readonly onProgress?: (counts: CollectCounts, group?: CellGroup) => void;
  /** How often a group is tried before it counts as failed. Default 3. */
  readonly attempts?: number;
  /** How often the queue is looked over, milliseconds. Default 1000. */
  readonly tickMs?: number;
  /** A collector that doesn't renew its place for so long has lost it, milliseconds. Default 10000. */
  readonly placeMs?: number;
}

export interface CollectCounts {
  /** Lines written. */
  computed: number;
  /** Cells of finished groups that were in the file before. */
  found: number;
  /** Lines that came although the file held their id. */
  duplicates: number;
  /** Deliveries that were no result of this sweep. */
  refused: number;
  groupsDone: number;
}

export interface FailedGroup {
  readonly group: CellGroup;
  readonly reason: string;
}

export interface CollectOutcome extends CollectCounts {
  readonly failed: readonly FailedGroup[];
}

/** Lock of a line that is being written, milliseconds. */
const WRITE_MS = 10_000;

/** States of what is still to be done. */
const UNDONE = ["wait", "active", "delayed", "prioritized"] as const;

/** Jobs queued in one command. */
const BULK = 200;

/** Pause before a failed group is tried again, milliseconds; doubled each time. */
const BACKOFF_MS = 1000;

/** Looks at an empty queue before pending groups are queued again: a job is between two states for a moment. */
const EMPTY_LOOKS = 3;

/**
 * Collects one sweep to its end. Aborting `signal` rejects with its reason and leaves everything on the server.
 * @throws PalisadeError resources `queue.collector-busy`; those of `results.append`.
 */
export async function collectSweep(server: QueueServer, options: CollectOptions): Promise<CollectOutcome> {
  const collector = new Collector(server, options);
  try {
    return await collector.run();
  } finally {
    await collector.close();
  }
}

class Collector {
  readonly #server: QueueServer;
  readonly #options: CollectOptions;
  readonly #sweep: string;
  readonly #names: ReturnType<typeof namesOf>;
  readonly #token = crypto.randomUUID();
  readonly #placeMs: number;
  readonly #pending = new Map<string, CellGroup>();
  readonly #failed: FailedGroup[] = [];
  readonly #counts: CollectCounts = { computed: 0, found: 0, duplicates: 0, refused: 0, groupsDone: 0 };
  readonly #computedBy = new Map<string, number>();
  /** Ids that the file holds, by {@link groupKey}; lines of other policies among them don't matter. */
  readonly #held: Map<string, string[]>;
  /**
   * Cells of groups that a worker has ended and the file doesn't hold: their lines come later (a collector that was
   * killed had one), went to another file, or were lost with the server.
   */
  readonly #unproved = new Map<string, readonly string[]>();
  readonly #jobs: Queue<GroupJob>;
  readonly #results: Queue<Delivery>;
  #worker?: Worker<Delivery>;
  #timer?: ReturnType<typeof setInterval>;
  #emptyLooks = 0;
  #looking = false;
  /** The groups are on the queue, or were once. */
  #queued = false;
  #over = false;
  #finish!: (error?: unknown) => void;
  readonly #finished: Promise<void>;

  constructor(server: QueueServer, options: CollectOptions) {
    this.#server = server;
    this.#options = options;
    this.#sweep = sweepIdOf(options.manifest, options.runtime);
    this.#names = namesOf(this.#sweep);
    this.#placeMs = options.placeMs ?? 10_000;
    for (const group of options.groups) this.#pending.set(jobIdOf(group, options.runtime), group);
    this.#held = linesByGroup(options);
    this.#jobs = new server.bullmq.Queue(this.#names.jobs, server.options);
    this.#results = new server.bullmq.Queue(this.#names.results, server.options);
    // The server's own connection reports outages.
    for (const queue of [this.#jobs, this.#results]) queue.on("error", () => {});
    this.#finished = new Promise((resolve, reject) => {
      this.#finish = (error) => {
        this.#over = true;
        return error === undefined ? resolve() : reject(error);
      };
    });
    this.#finished.catch(() => {});
  }

  async run(): Promise<CollectOutcome> {
    const { signal, tickMs = 1000 } = this.#options;
    signal.throwIfAborted();
    const abort = () => this.#finish(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    try {
      await Promise.race([this.#takePlace(), this.#finished]);
      this.#timer = setInterval(() => this.#look(), tickMs);
      await Promise.race([this.#takeWaiting(), this.#finished]);
      await Promise.race([this.#open(), this.#finished]);
      await this.#finished;
      await this.#clear();
      return { ...this.#counts, failed: this.#failed };
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  /** There is one collector of a sweep: two would split its lines between two files. */
  async #takePlace(): Promise<void> {
    const { redis } = this.#server;
    // One that was killed holds its place until it runs out.
    const give = Date.now() + this.#placeMs + 1000;
    while (await redis.set(this.#names.collector, this.#token, "PX", this.#placeMs, "NX") === null) {
      if (Date.now() > give) {
        const message =
          `Another palisade eval collects this sweep from ${this.#server.shown}: stop it, or let it finish`;
        throw resourceError("queue.collector-busy", message, option("queue"));
      }
      await delay(500);
    }
  }

  /** Begins to receive, and waits until all that an earlier run left is taken: it must not be computed again. */
  async #takeWaiting(): Promise<void> {
    const waiting = new Set(await this.#deliveries());
    this.#worker = this.#receive();
    while (!this.#over && (await this.#deliveries()).some((id) => waiting.has(id))) await delay(50);
  }

  /** Ids of the deliveries on the server. */
  async #deliveries(): Promise<string[]> {
    return await this.#results.getRanges([...UNDONE], 0, -1);
  }

  /**
   * Queues the groups that are not done and tells workers of the sweep. Groups that are queued already stay as they are;
   * what an earlier run gave up is tried anew.
   */
  async #open(): Promise<void> {
    if (this.#over) return;
    const { redis } = this.#server;
    const { manifest } = this.#options;
    await redis.set(this.#names.manifest, JSON.stringify(manifest));
    for (const job of await this.#jobs.getFailed()) await job.remove();
    for (const [id, cells] of this.#unproved) this.#endGroup(id, cells);
    await this.#enqueue([...this.#pending.keys()]);
    const notice: SweepNotice = { model: manifest.model, since: new Date().toISOString() };
    await redis.hsetnx(SWEEPS_KEY, this.#sweep, JSON.stringify(notice));
    this.#queued = true;
    if (this.#pending.size === 0) this.#finish();
  }

  async #enqueue(ids: readonly string[]): Promise<void> {
    const { attempts = 3 } = this.#options;
    for (let at = 0; at < ids.length; at += BULK) {
      await this.#jobs.addBulk(
        ids.slice(at, at + BULK).map((jobId) => {
          const group = keyOf(this.#pending.get(jobId)!);
          // Lines of earlier versions don't say their task's file.
          const done = [group, { ...group, source: undefined }].flatMap((each) => this.#held.get(groupKey(each)) ?? []);
          const data = { ...group, done: [...new Set(done)] };
          const backoff = { type: "exponential", delay: BACKOFF_MS };
          return { name: "group", data, opts: { jobId, attempts, backoff, removeOnComplete: true } };
        }),
      );
    }
  }

  #receive(): Worker<Delivery> {
    const { bullmq, options } = this.#server;
    const worker = new bullmq.Worker<Delivery>(this.#names.results, (job, token) => this.#take(job, token!), {
      ...options,
      concurrency: 1,
      lockDuration: WRITE_MS,
      stalledInterval: WRITE_MS / 2,
      // A delivery is never given up: it is what a collector that died was about to write.
      maxStalledCount: Number.MAX_SAFE_INTEGER,
    });
    worker.on("error", () => {});
    return worker;
  }

  /** One delivery. What can't be written now stays on the server. */
  async #take(job: Job<Delivery>, token: string): Promise<void> {
    try {
      this.#options.signal.throwIfAborted();
      await this.#deliver(job.data);
    } catch (error) {
      this.#finish(error);
      await this.#worker?.pause(true);
      await job.moveToWait(token);
      throw new this.#server.bullmq.WaitingError();
    }
  }

  async #deliver(delivery: Delivery): Promise<void> {
    switch (delivery?.kind) {
      case "line":
        return await this.#addLine(delivery.line);
      case "end":
        return this.#endGroup(delivery.job, delivery.cells);
      case "refusal":
        return this.#options.onNote(`worker ${delivery.worker} doesn't serve this sweep: ${delivery.reason}`);
      default:
        this.#counts.refused++;
        this.#options.onNote("dropped a message that is no delivery of a worker");
    }
  }

  async #addLine(line: ResultLine): Promise<void> {
    const { results, manifest, runtime } = this.#options;
    const problem = problemOf(line, manifest, runtime);
    if (problem) {
      this.#counts.refused++;
      return this.#options.onNote(`dropped a line of a worker: ${problem}`);
    }
    if (results.has(line.id)) this.#counts.duplicates++;
    else {
      await results.append(line);
      this.#counts.computed++;
      const group = groupKey(groupOfLine(line));
      this.#held.set(group, [...this.#held.get(group) ?? [], line.id]);
      this.#computedBy.set(group, (this.#computedBy.get(group) ?? 0) + 1);
    }
    this.#options.onProgress?.(this.#counts);
  }

  #endGroup(id: string, cells: readonly string[]): void {
    const group = this.#pending.get(id);
    if (!group) return; // a second worker's word for a group that is done
    if (cells.some((cell) => !this.#options.results.has(cell))) {
      this.#unproved.set(id, cells);
      return;
    }
    this.#unproved.delete(id);
    this.#pending.delete(id);
    this.#counts.groupsDone++;
    this.#counts.found += cells.length - (this.#computedBy.get(groupKey(keyOf(group))) ?? 0);
    this.#options.onProgress?.(this.#counts, group);
    if (this.#pending.size === 0) this.#finish();
  }

  /** Now and then: renews the place, takes note of failed groups, queues again what the queue has forgotten. */
  async #look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    try {
      await this.#keepPlace();
      await this.#takeFailed();
      if (this.#queued) await this.#queueForgotten();
    } catch (error) {
      if (error instanceof PalisadeError) this.#finish(error);
      // Others come from an outage of the server, which is waited for.
    } finally {
      this.#looking = false;
    }
  }

  async #keepPlace(): Promise<void> {
    const { redis, shown } = this.#server;
    const holder = await redis.get(this.#names.collector);
    if (holder !== null && holder !== this.#token) {
      throw resourceError(
        "queue.collector-busy",
        `Another palisade eval took over this sweep on ${shown}`,
        option("queue"),
      );
    }
    await redis.set(this.#names.collector, this.#token, "PX", this.#placeMs);
  }

  async #takeFailed(): Promise<void> {
    for (const job of await this.#jobs.getFailed()) {
      const group = this.#pending.get(job.id!);
      if (!group) continue;
      this.#pending.delete(job.id!);
      const reason = reasonOf(job);
      this.#failed.push({ group, reason });
      this.#options.onNote(`gave up ${labelOf(group)}: ${reason}`);
    }
    if (this.#pending.size === 0) this.#finish();
  }

  async #queueForgotten(): Promise<void> {
    const [jobs, results] = await Promise.all([
      this.#jobs.getJobCountByTypes(...UNDONE),
      this.#results.getJobCountByTypes(...UNDONE),
    ]);
    this.#emptyLooks = jobs + results === 0 && this.#pending.size > 0 ? this.#emptyLooks + 1 : 0;
    if (this.#emptyLooks < EMPTY_LOOKS) return;
    this.#emptyLooks = 0;
    this.#options.onNote(`queued ${this.#pending.size} groups again that the server no longer has`);
    await this.#open();
  }

  /** The sweep is over: takes everything of it off the server. */
  async #clear(): Promise<void> {
    clearInterval(this.#timer);
    await this.#server.redis.hdel(SWEEPS_KEY, this.#sweep);
    await this.#worker?.close();
    // Workers that said "end" are about to acknowledge.
    for (let i = 0; i < 20 && await this.#jobs.getActiveCount() > 0; i++) await delay(50);
    await this.#jobs.obliterate({ force: true });
    await this.#results.obliterate({ force: true });
    await this.#server.redis.del(this.#names.manifest, this.#names.engines);
  }

  /** Gives the place back. Without a server this doesn't wait for one. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    await within(2000, async () => {
      await this.#worker?.close();
      if (await this.#server.redis.get(this.#names.collector) === this.#token) {
        await this.#server.redis.del(this.#names.collector);
      }
      await this.#jobs.close();
      await this.#results.close();
    });
  }
}

/** Ids that the file holds, by job; lines of other models, seeds, protocols and cache types don't matter. */
function linesByGroup({ results, manifest }: CollectOptions): Map<string, string[]> {
  const byKey = new Map<string, string[]>();
  for (const line of results.before) {
    const { model, seed, protocol, cacheType } = line;
    if (model.sha256 !== manifest.model.sha256 || seed !== manifest.seed || protocol !== manifest.reading) continue;
    if (cacheType !== manifest.cacheType) continue;
    const key = groupKey(groupOfLine(line));
    const ids = byKey.get(key);
    if (ids) ids.push(line.id);
    else byKey.set(key, [line.id]);
  }
  return byKey;
}

function keyOf({ task: { name, source }, length, sample }: CellGroup): Omit<GroupJob, "done"> {
  return { task: name, ...(source && { source }), length, sample };
}

function groupKey({ task, source, length, sample }: Omit<GroupJob, "done">): string {
  return JSON.stringify([task, source, length, sample]);
}

function groupOfLine({ task, source, length, sample }: ResultLine): Omit<GroupJob, "done"> {
  return { task, source: source?.sha256, length, sample };
}

/** Why a line can't be a result of this sweep, or nothing. Its id must be the hash of what it says it depends on. */
function problemOf(line: Partial<ResultLine>, manifest: SweepManifest, runtime: Runtime): string | undefined {
  if (line?.format !== RESULT_FORMAT) return `its format is ${line?.format}, not ${RESULT_FORMAT}`;
  if (line.model?.sha256 !== manifest.model.sha256) return "it is another model's";
  const { format, model, frame, sampleHash, task, length, sample, seed, haystack, protocol, maxNewTokens } =
    line as ResultLine;
  const { policy, keep, budget, engines, cacheType } = line as ResultLine;
  const shared = {
    ...{ format, model, frame, sampleHash, task, length, sample, seed, haystack, protocol, maxNewTokens },
    ...(cacheType && { cacheType }),
  };
  const id = cellId({ ...shared, policy, keep, budget, engines }, runtime);
  return id === line.id ? undefined : "its id doesn't fit what it says";
}

function reasonOf({ failedReason, attemptsMade }: Job): string {
  if (/stalled more than/.test(failedReason)) return "workers died or went silent while computing it";
  return `${failedReason}${attemptsMade > 1 ? ` (tried ${attemptsMade} times)` : ""}`;
}

function labelOf({ task, length, sample }: CellGroup): string {
  return `${task.name}${length === null ? "" : ` ${length}`} #${sample + 1}`;
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Runs `what`, but waits for it no longer than `ms`. */
async function within(ms: number, what: () => Promise<void>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const enough = new Promise<void>((resolve) => timer = setTimeout(resolve, ms));
  await Promise.race([what().catch(() => {}), enough]);
  clearTimeout(timer);
}
