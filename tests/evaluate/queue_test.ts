/** A sweep through a real Redis server on the loopback address: workers die, dawdle, refuse, and every cell comes once. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { collectSweep } from "../../evaluate/queue/collector.ts";
import { namesOf, QUEUE_PROTOCOL, refusalOf, sweepIdOf, type SweepManifest } from "../../evaluate/queue/protocol.ts";
import { openServer, parseQueueUrl, type QueueServer } from "../../evaluate/queue/server.ts";
import { workOnSweeps, type WorkOptions } from "../../evaluate/queue/worker.ts";
import type { CellGroup } from "../../evaluate/sweep/plan.ts";
import {
  cellId,
  type CellInputs,
  readResults,
  RESULT_FORMAT,
  type ResultLine,
} from "../../evaluate/results/results.ts";
import { rulerTasks } from "../../evaluate/tasks/registry.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { palisade } from "../_helper/io.ts";
import { findRedis, freePort, startRedis } from "../_helper/redis.ts";
import { skipped } from "../_helper/skip.ts";
import { proseFile, testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const runtime = await currentRuntime();
const folder = await testFolder("queue");
const prose = await proseFile(folder);
const program = await findRedis();

/** A test that needs the server's program; its absence is a failure in CI. */
function testWithRedis(name: string, fn: (program: string) => Promise<void>): void {
  if (program === undefined) skipped(name, "no redis-server and no way to install it", "file");
  else Deno.test({ name, fn: () => fn(program) });
}

// ---------------------------------------------------------------- a sweep of the real thing, on a tiny model

const WORKER = fileURLToPath(new URL("../_helper/queue_worker.ts", import.meta.url));
const SWEEP = ["--models", TINY_MODEL, "--haystack", prose, "--length", "1k", "--policies", "full,snapkv"];
const evalWith = (out: string, ...more: string[]) => ["eval", ...SWEEP, "--out", out, ...more];

interface WorkerProcess {
  readonly child: ChildProcess;
  readonly ended: Promise<void>;
  /** Resolves once the output matches. */
  says(pattern: RegExp): Promise<void>;
  output(): string;
}

function startWorker(url: string, fault: string, lockMs: number): WorkerProcess {
  const child = spawn(Deno.execPath(), ["run", "-A", "--no-check", WORKER, url, TINY_MODEL, fault, `${lockMs}`], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => output += chunk);
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  return {
    child,
    ended,
    output: () => output,
    async says(pattern) {
      const until = Date.now() + 180_000;
      while (!pattern.test(output)) {
        assert.ok(Date.now() < until && child.exitCode === null, `never said ${pattern}:\n${output}`);
        await delay(20);
      }
    },
  };
}

async function endWorkers(workers: readonly WorkerProcess[]): Promise<void> {
  for (const { child } of workers) child.kill("SIGKILL");
  await Promise.all(workers.map(({ ended }) => ended));
}

async function linesOf(path: string): Promise<{ lines: readonly ResultLine[]; duplicates: number }> {
  return await readResults(runtime, path);
}

/** What must be equal between two runs: everything but times, in any order. */
function comparable(lines: readonly ResultLine[]): unknown[] {
  return lines.map(({ ms: _, at: __, ...rest }) => rest).sort((a, b) => a.id < b.id ? -1 : 1);
}

function countsOf(err: string): { computed: number; found: number; duplicates: number; failed: number } {
  const found = /(\d+) cells computed.* (\d+) were there already, (\d+) duplicates dropped, (\d+) groups/.exec(err);
  assert.ok(found, err);
  const [computed, there, duplicates, failed] = found.slice(1).map(Number);
  return { computed, found: there, duplicates, failed };
}

testWithRedis("eval --queue gets every cell once from workers that die, dawdle, and are killed", async (program) => {
  const tasks = ["--tasks", "niah_single_1,vt,jsonl:" + await caseFile(), "--samples", "2"];
  const calm = join(folder, "calm.jsonl"), wild = join(folder, "wild.jsonl");
  const alone = await palisade(
    evalWith(calm, ...tasks, "--backend", "wasm", "--dense", "web", "--threads", "1", "--quiet"),
  );
  assert.equal(alone.code, 0, alone.err);

  await using redis = await startRedis(program);
  const lockMs = 400;
  const [slow, killed, ...dying] = ["slow", "none", "die-after-sending", "die-before-acknowledging"]
    .map((fault) => startWorker(redis.url, fault, lockMs));
  try {
    await Promise.all([slow, killed, ...dying].map((worker) => worker.says(/ready/)));
    const collecting = palisade(evalWith(wild, ...tasks, "--queue", redis.url));
    killed.says(/working on/).then(() => delay(150)).then(() => killed.child.kill("SIGKILL")).catch(() => {});
    const { code, err } = await collecting;
    assert.equal(code, 0, err);
    const counts = countsOf(err);
    const { lines, duplicates } = await linesOf(wild);
    assert.deepEqual(comparable(lines), comparable((await linesOf(calm)).lines));
    assert.equal(duplicates, 0, "the file holds no line twice");
    assert.deepEqual([counts.computed, counts.found, counts.failed], [12, 0, 0]);
    assert.ok(counts.duplicates >= 1, "the line that was sent and not noted came twice");
    for (const worker of [killed, ...dying]) assert.equal(worker.child.signalCode, "SIGKILL", worker.output());
    assert.match(slow.output(), /2 cells/, "the slow one worked too");
  } finally {
    await endWorkers([slow, killed, ...dying]);
  }
});

/** Two cases of a user's own, which travel to the workers inside the sweep. */
async function caseFile(): Promise<string> {
  const path = join(folder, "cases.jsonl");
  const cases = ["amber", "ivory"].map((word) => ({ context: `The gate is ${word}. `.repeat(30), question: "Which?" }));
  await Deno.writeTextFile(path, cases.map((each) => `${JSON.stringify({ ...each, answers: "amber" })}\n`).join(""));
  return path;
}

testWithRedis("a cell that takes twice the lock keeps its lock: the model has a thread", async (program) => {
  await using redis = await startRedis(program);
  const workers = [startWorker(redis.url, "slow", 1500)];
  try {
    await workers[0].says(/ready/);
    const parameters = ["--tasks", "niah_single_1", "--samples", "1", "--queue", redis.url];
    const collecting = palisade(evalWith(join(folder, "slow.jsonl"), ...parameters));
    await workers[0].says(/working on/);
    workers.push(startWorker(redis.url, "none", 1500)); // looks for jobs without a lock
    const { code, err } = await collecting;
    assert.equal(code, 0, err);
    assert.deepEqual(countsOf(err), { computed: 2, found: 0, duplicates: 0, failed: 0 });
    assert.match(workers[0].output(), /2 cells/);
    assert.doesNotMatch(workers[0].output(), /lost the lock/);
    assert.doesNotMatch(workers[1].output(), /cells/);
  } finally {
    await endWorkers(workers);
  }
});

testWithRedis("eval --queue gives up a group that kills its workers, and one no model can read", async (program) => {
  await using redis = await startRedis(program);
  const out = join(folder, "poisoned.jsonl");
  const parameters = ["--tasks", "niah_single_1", "--samples", "1", "--queue", redis.url];
  const collecting = palisade(evalWith(out, ...parameters));
  const dying = [1, 2, 3].map(() => startWorker(redis.url, "die-after-sending", 300));
  await Promise.all(dying.map(({ ended }) => ended));
  const healthy = startWorker(redis.url, "none", 300);
  try {
    const { code, err } = await collecting;
    assert.equal(code, 1, err);
    assert.match(err, /gave up niah_single_1 1024 #1: workers died or went silent/);
    assert.deepEqual(countsOf(err), { computed: 1, found: 0, duplicates: 2, failed: 1 });
    // The next run tries again what was given up.
    const again = await palisade(evalWith(out, ...parameters));
    assert.equal(again.code, 0, again.err);
    assert.deepEqual(countsOf(again.err), { computed: 1, found: 1, duplicates: 0, failed: 0 });
    const long = ["--tasks", "vt", "--length", "5000", "--samples", "1", "--queue", redis.url];
    const mixed = await palisade(evalWith(join(folder, "mixed.jsonl"), ...long));
    assert.equal(mixed.code, 1);
    assert.match(mixed.err, /gave up vt 5000 #1: .*trained on 4096.*--beyond-trained/);
    assert.deepEqual(countsOf(mixed.err), { computed: 2, found: 0, duplicates: 0, failed: 1 });
  } finally {
    await endWorkers([healthy]);
  }
});

testWithRedis("a worker stopped by Ctrl-C gives its job back at once", async (program) => {
  await using redis = await startRedis(program);
  const out = join(folder, "given-back.jsonl");
  const interrupt = new AbortController();
  const parameters = evalWith(out, "--tasks", "niah_single_1", "--samples", "1", "--queue", redis.url);
  const collecting = palisade(parameters, { signal: interrupt.signal });
  const worker = startWorker(redis.url, "slow", 30_000);
  try {
    await worker.says(/working on/);
    await using server = await openServer(redis.url, () => {});
    const jobs = new server.bullmq.Queue(await onlySweep(server), server.options);
    while (await jobs.getActiveCount() === 0) await delay(20);
    worker.child.kill("SIGINT");
    await worker.ended;
    assert.match(worker.output(), /interrupted/);
    assert.deepEqual(await jobs.getJobCounts("wait", "active", "failed"), { wait: 1, active: 0, failed: 0 });
    const [job] = await jobs.getWaiting();
    assert.equal(job.attemptsMade, 0, "giving back is no failed attempt");
    await jobs.close();
  } finally {
    interrupt.abort(new DOMException("Interrupted", "AbortError"));
    assert.equal((await collecting).code, 130);
    await endWorkers([worker]);
  }
});

async function onlySweep(server: QueueServer): Promise<string> {
  const [id, ...others] = await server.redis.hkeys("palisade:sweeps");
  assert.deepEqual(others, []);
  return id;
}

// ---------------------------------------------------------------- the protocol, with a model that is made up

const MANIFEST: SweepManifest = {
  protocol: QUEUE_PROTOCOL,
  palisade: "1.2.3",
  model: { name: "tiny.gguf", sha256: "ab".repeat(32) },
  policies: "full",
  keep: "20%",
  tasks: ["vt"],
  seed: 1,
  reading: "context-first",
  beyondTrained: false,
  haystack: { sha256: "" },
  files: {},
};
const ENGINES = { backend: "made up", dense: "made up" };

function groups(count: number): CellGroup[] {
  const task = rulerTasks.find(({ name }) => name === "vt")!;
  return Array.from({ length: count }, (_, sample) => ({ task, length: 1024, sample }));
}

/** A line whose id fits its inputs. */
function line(sample: number, keep: number): ResultLine {
  const inputs = {
    format: RESULT_FORMAT,
    model: { name: "tiny", sha256: MANIFEST.model.sha256 },
    task: "vt",
    length: 1024,
    sample,
    seed: 1,
    protocol: "context-first",
    keep: { fraction: keep },
    engines: { palisade: "1.2.3", ...ENGINES },
  } as unknown as CellInputs;
  return { ...inputs, id: cellId(inputs, runtime) } as ResultLine;
}

/** A worker's options with a made-up model: two cells a group, computed at once. */
function made(signal: AbortSignal, options: Partial<WorkOptions> = {}): WorkOptions & { notes: string[] } {
  const notes: string[] = [];
  return {
    runtime,
    runner: {
      engines: ENGINES,
      ended: new Promise(() => {}),
      begin: () => Promise.resolve(),
      run({ sample, done }, onLine) {
        const lines = [line(sample, 0.2), line(sample, 0.5)];
        lines.filter(({ id }) => !done.includes(id)).forEach(onLine);
        return Promise.resolve(lines.map(({ id }) => id));
      },
    },
    sha256: MANIFEST.model.sha256,
    palisade: MANIFEST.palisade,
    name: "made-up",
    signal,
    onNote: (note) => notes.push(note),
    lockMs: 1000,
    pollMs: 20,
    ...options,
    notes,
  };
}

/** Results in memory. */
function memory() {
  const ids = new Map<string, ResultLine>();
  return {
    ids,
    before: [] as ResultLine[],
    has: (id: string) => ids.has(id),
    append: (line: ResultLine) => Promise.resolve(void ids.set(line.id, line)),
  };
}

interface Table {
  readonly server: QueueServer;
  readonly signal: AbortSignal;
  readonly notes: string[];
  collect(count: number, results?: ReturnType<typeof memory>, signal?: AbortSignal): ReturnType<typeof collectSweep>;
  work(options?: Partial<WorkOptions>): Promise<unknown>;
}

/** A server and a way to stop the workers at the end. */
function testWithTable(name: string, fn: (table: Table) => Promise<void>): void {
  testWithRedis(name, async (program) => {
    await using redis = await startRedis(program);
    await using server = await openServer(redis.url, () => {});
    const stop = new AbortController(), notes: string[] = [];
    const working: Promise<unknown>[] = [];
    const collect: Table["collect"] = (count, results = memory(), signal = new AbortController().signal) =>
      collectSweep(server, {
        runtime,
        results,
        manifest: MANIFEST,
        groups: groups(count),
        signal,
        onNote: (note) => notes.push(note),
        tickMs: 50,
        placeMs: 1000,
      });
    const work: Table["work"] = (options) => {
      const ended = workOnSweeps(server, made(stop.signal, options)).catch((error) => error);
      working.push(ended);
      return ended;
    };
    try {
      await fn({ server, signal: stop.signal, notes, collect, work });
    } finally {
      stop.abort(new DOMException("Interrupted", "AbortError"));
      await Promise.all(working);
    }
  });
}

testWithTable("collectSweep() leaves nothing of a finished sweep on the server", async ({ server, collect, work }) => {
  work();
  const { computed, groupsDone, failed } = await collect(5);
  assert.deepEqual([computed, groupsDone, failed], [10, 5, []]);
  // A waiting worker holds its blocking list for a moment.
  for (let i = 0; i < 100 && (await server.redis.keys("palisade:*")).length > 0; i++) await delay(50);
  assert.deepEqual(await server.redis.keys("palisade:*"), []);
});

testWithTable("collectSweep() stopped and begun again finishes the rest, once", async ({ collect, work }) => {
  const results = memory();
  const stop = new AbortController();
  const first = collect(8, {
    ...results,
    append: async (line) => {
      await results.append(line);
      if (results.ids.size === 5) stop.abort(new DOMException("Interrupted", "AbortError"));
    },
  }, stop.signal);
  work();
  await assert.rejects(first, { name: "AbortError" });
  const before = results.ids.size;
  const second = await collect(8, { ...results, before: [...results.ids.values()] });
  assert.equal(results.ids.size, 16);
  assert.deepEqual([before + second.computed, second.duplicates], [16, 0]);
});

testWithTable("collectSweep() takes what waits on the server first, and queues none of it again", async (table) => {
  const { server, collect, work } = table;
  const stop = new AbortController();
  const first = collect(3, memory(), stop.signal);
  while (!await server.redis.exists("palisade:sweeps")) await delay(10);
  stop.abort(new DOMException("Interrupted", "AbortError"));
  await assert.rejects(first);
  let runs = 0;
  const model = made(table.signal).runner;
  const counting: WorkOptions["runner"] = {
    ...model,
    run: (job, onLine) => (runs++, model.run(job, onLine)),
  };
  await work({ runner: counting, idleMs: 500 });
  assert.equal(runs, 3, "all groups are computed while nobody collects");
  work({ runner: counting });
  const { computed, groupsDone, duplicates } = await collect(3);
  assert.deepEqual([computed, groupsDone, duplicates, runs], [6, 3, 0, 3]);
});

testWithTable("collectSweep() killed while it wrote a line has that line and its group back", async (table) => {
  const { server, collect, work, signal } = table;
  const stop = new AbortController();
  const first = collect(2, memory(), stop.signal);
  while (!await server.redis.exists("palisade:sweeps")) await delay(10);
  stop.abort(new DOMException("Interrupted", "AbortError"));
  await assert.rejects(first);
  let runs = 0;
  const model = made(signal).runner;
  const counting: WorkOptions["runner"] = { ...model, run: (job, onLine) => (runs++, model.run(job, onLine)) };
  await work({ runner: counting, idleMs: 500 });
  // A killed collector's lock on its line runs out by itself.
  const names = namesOf(sweepIdOf(MANIFEST, runtime));
  const killed = new server.bullmq.Worker(names.results, null, { ...server.options, lockDuration: 500 });
  assert.ok(await killed.getNextJob("token of a killed collector"));
  await killed.close();
  work({ runner: counting });
  const { computed, duplicates } = await collect(2);
  assert.deepEqual([computed, duplicates, runs], [4, 0, 2]);
});

testWithTable("a worker sends nothing to a sweep that is over", async ({ server, collect, work, signal }) => {
  const { runner } = made(signal), notes: string[] = [];
  let begun = (): void => {}, goOn = (): void => {};
  const computing = new Promise<void>((resolve) => begun = resolve),
    over = new Promise<void>((resolve) => goOn = resolve);
  const late: WorkOptions["runner"] = {
    ...runner,
    async run(job, onLine) {
      begun();
      await over;
      return await runner.run(job, onLine);
    },
  };
  const stop = new AbortController();
  const collecting = collect(1, memory(), stop.signal);
  while (!await server.redis.exists("palisade:sweeps")) await delay(10);
  const dawdling = work({ runner: late, onNote: (note) => notes.push(note), lockMs: 60_000, idleMs: 300 });
  await computing;
  await server.redis.hdel("palisade:sweeps", await onlySweep(server));
  goOn();
  await dawdling;
  assert.match(notes.join(), /not done: the sweep is over/);
  const results = new server.bullmq.Queue(namesOf(sweepIdOf(MANIFEST, runtime)).results, server.options);
  assert.equal(await results.getWaitingCount(), 0);
  await results.close();
  stop.abort(new DOMException("Interrupted", "AbortError"));
  await assert.rejects(collecting);
});

testWithTable("collectSweep() queues again what the server lost", async ({ server, collect, work, notes }) => {
  const results = memory();
  const collecting = collect(6, results);
  while (!await server.redis.exists("palisade:sweeps")) await delay(10);
  await server.redis.flushall();
  work();
  assert.equal((await collecting).groupsDone, 6);
  assert.equal(results.ids.size, 12);
  assert.match(notes.join(), /queued 6 groups again/);
});

testWithTable("collectSweep() computes again what went to another file", async ({ server, collect, work }) => {
  const stop = new AbortController();
  const other = memory();
  const first = collect(1, {
    ...other,
    append: async (line) => {
      await other.append(line);
      stop.abort(new DOMException("Interrupted", "AbortError"));
    },
  }, stop.signal);
  while (!await server.redis.exists("palisade:sweeps")) await delay(10);
  const worked = work({ idleMs: 500 });
  await assert.rejects(first, { name: "AbortError" });
  await worked;
  // On the server are now the other line and the worker's word that the group is done.
  assert.equal(other.ids.size, 1);
  const results = memory();
  const second = collect(1, results);
  while (results.ids.size === 0) await delay(10);
  await delay(100);
  work();
  assert.deepEqual([(await second).groupsDone, results.ids.size], [1, 2]);
});

testWithTable("collectSweep() rejects when the file can't be written, and loses no line", async ({ collect, work }) => {
  const results = memory();
  const full = new Error("disk full");
  work();
  await assert.rejects(
    collect(3, {
      ...results,
      append: (line) => results.ids.size < 2 ? results.append(line) : Promise.reject(full),
    }),
    full,
  );
  const { computed } = await collect(3, results);
  assert.deepEqual([computed, results.ids.size], [4, 6]);
});

testWithTable(
  "collectSweep() drops lines that are no results of the sweep",
  async ({ server, collect, work, notes }) => {
    const names = namesOf(sweepIdOf(MANIFEST, runtime));
    const results = new server.bullmq.Queue(names.results, server.options);
    const fake = { ...line(0, 0.2), sample: 7 };
    for (const data of [{ kind: "line", line: fake }, { kind: "line" }, { kind: "what" }, null]) {
      await results.add(
        "x",
        data,
      );
    }
    await results.add("x", { kind: "line", line: { ...line(0, 0.2), model: { name: "x", sha256: "00" } } });
    await results.close();
    work();
    const { refused, computed } = await collect(1);
    assert.deepEqual([refused, computed], [5, 2]);
    assert.match(notes.join(), /id doesn't fit.*format is undefined.*no delivery.*another model's/s);
  },
);

testWithTable("a second collector of the same sweep is refused", async ({ collect, work }) => {
  const first = collect(1);
  await assert.rejects(collect(1), { name: "PalisadeError", code: "queue.collector-busy", kind: "resources" });
  work();
  await first;
});

testWithTable("workers refuse other models, versions and engines, and the collector hears why", async (table) => {
  const { work, collect, notes } = table;
  const others: Partial<WorkOptions>[] = [{ sha256: "cd".repeat(32) }, { palisade: "9.9.9" }];
  for (const other of others) work(other);
  const collecting = collect(1);
  while (notes.length < 2) await delay(20);
  assert.match(notes.join(), /wants tiny\.gguf \(SHA-256 abababababab…\), this worker's model file has cdcdcdcdcdcd…/);
  assert.match(notes.join(), /wants palisade 1\.2\.3, this worker is 9\.9\.9/);
  await table.server.redis.set(namesOf(sweepIdOf(MANIFEST, runtime)).engines, '{"backend":"first"}');
  work();
  while (notes.length < 3) await delay(20);
  assert.match(notes[2], /computed with \{"backend":"first"\}.*choose the same engines/);
  await table.server.redis.del(namesOf(sweepIdOf(MANIFEST, runtime)).engines);
  work();
  assert.equal((await collecting).groupsDone, 1);
});

testWithTable("a worker waits while too many lines wait for the collector", async ({ server, collect, work }) => {
  const stop = new AbortController();
  const first = collect(4, memory(), stop.signal);
  while (!await server.redis.exists("palisade:sweeps")) await delay(10);
  stop.abort(new DOMException("Interrupted", "AbortError"));
  await assert.rejects(first);
  work({ mostWaiting: 3 });
  const results = new server.bullmq.Queue(namesOf(await onlySweep(server)).results, server.options);
  while (await results.getWaitingCount() < 3) await delay(20);
  await delay(300);
  assert.equal(await results.getWaitingCount(), 3);
  await results.close();
  assert.equal((await collect(4)).groupsDone, 4);
});

testWithTable(
  "a job whose model fails is tried three times on the way to its reason",
  async ({ collect, work, notes }) => {
    let tries = 0;
    const run = () => Promise.reject(new Error(`try ${++tries}`));
    work({ runner: { engines: ENGINES, ended: new Promise(() => {}), begin: () => Promise.resolve(), run } });
    const { failed } = await collect(1);
    assert.equal(tries, 3);
    assert.equal(failed[0].reason, "try 3 (worker made-up) (tried 3 times)");
    assert.match(notes.join(), /gave up vt 1024 #1: try 3/);
  },
);

testWithTable("a worker whose model thread died ends, and another one does its job", async ({ collect, work }) => {
  let die = (_: Error): void => {};
  const ended = new Promise<Error>((resolve) => die = resolve);
  const run = () => {
    die(new Error("out of memory"));
    return new Promise<never>(() => {});
  };
  const dead = work({ runner: { engines: ENGINES, ended, begin: () => Promise.resolve(), run } });
  const collecting = collect(1);
  assert.match(String(await dead), /The model's thread died: out of memory/);
  work();
  assert.equal((await collecting).groupsDone, 1);
});

testWithTable("a worker ends after --idle without work", async ({ work }) => {
  assert.deepEqual(await work({ idleMs: 100 }), { groups: 0, lines: 0 });
});

Deno.test("refusalOf() names the protocol when it is another one", () => {
  const mine = { palisade: MANIFEST.palisade, sha256: MANIFEST.model.sha256 };
  assert.equal(refusalOf(MANIFEST, mine), undefined);
  assert.match(refusalOf({ ...MANIFEST, protocol: 99 }, mine)!, /protocol 99/);
});

Deno.test("sweepIdOf() depends on what the cells depend on, not on the file's name", () => {
  const id = (change: Partial<SweepManifest>) => sweepIdOf({ ...MANIFEST, ...change }, runtime);
  assert.equal(id({ model: { ...MANIFEST.model, name: "other" } }), id({}));
  const changes = [{ seed: 2 }, { keep: "30%" }, { palisade: "2.0.0" }, { files: { "a.jsonl": "x" } }];
  assert.equal(new Set([{}, ...changes].map(id)).size, 5);
});

Deno.test("parseQueueUrl() reads host, port, database, user and TLS, and never shows a password", () => {
  const { options, shown } = parseQueueUrl("rediss://ada:s%3Acret@[::1]:7000/3");
  assert.deepEqual(options, { host: "::1", port: 7000, db: 3, username: "ada", password: "s:cret", tls: {} });
  assert.equal(shown, "rediss://ada@[::1]:7000/3");
  assert.deepEqual([parseQueueUrl("redis://host").options.port, parseQueueUrl("redis://host").shown], [
    6379,
    "redis://host",
  ]);
});

const QUEUE_OUT = ["--out", join(folder, "refused.jsonl")];
const closed = `redis://ada:secret@127.0.0.1:${await freePort()}`;
const REFUSED: [string, string[], number, RegExp][] = [
  [
    "another scheme",
    ["eval", ...QUEUE_OUT, "--queue", "http://x:secret@host"],
    2,
    /http:… as --queue: .*redis:\/\/HOST/,
  ],
  [
    "no URL",
    ["worker", "--queue", "localhost"],
    2,
    /Can't use "localhost", which is no URL, as --queue: .*redis:\/\/HOST/,
  ],
  ["no URL, maybe a password", ["worker", "--queue", "@x:secret@host"], 2, /Can't use what is no URL as --queue/],
  ["a database that is no number", ["worker", "--queue", "redis://x:secret@host/abc"], 2, /redis:\/\/x@host\/abc/],
  ["no queue", ["worker"], 2, /--queue/],
  ["engines with --queue", ["eval", ...QUEUE_OUT, "--queue", closed, "--backend", "ts"], 2, /palisade worker/],
  ["a server that isn't there", ["worker", "--queue", closed], 4, /Can't reach redis:\/\/ada@127.*ECONNREFUSED/],
  [
    "a server that isn't there",
    ["eval", ...SWEEP, ...QUEUE_OUT, "--queue", closed],
    4,
    /Can't reach redis:\/\/ada@127.*ECONNREFUSED/,
  ],
];

for (const [what, parameters, code, message] of REFUSED) {
  Deno.test(`${parameters[0]} refuses ${what} with exit code ${code}`, async () => {
    const result = await palisade(parameters);
    assert.equal(result.code, code, result.err);
    assert.match(result.err, message);
    assert.doesNotMatch(result.err, /secret/);
  });
}

testWithRedis("worker says that the server wants a password, with exit code 4", async (program) => {
  await using redis = await startRedis(program, ["--requirepass", "secret"]);
  const { code, err } = await palisade(["worker", "--queue", redis.url]);
  assert.equal(code, 4);
  assert.match(err, /refused the connection: NOAUTH/);
});
