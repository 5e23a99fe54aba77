/**
 * Whole decode steps and whole prefills of SmolLM2 on our kernels alone, against other engines on the same file: every
 * engine in a process of its own, taking turns in each round, one thread each. Processor time is all threads', and robust
 * on a shared machine. The others are dev tools outside the package: `npm install --ignore-scripts --prefix bench/peers`.
 *
 *     deno task bench step [--only decode|prefill] [--context 4096] [--prefill 2048] [--rounds 5] [--steps 24]
 *                          [--policy layer-defensive]
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync, statSync } from "node:fs";
import { availableParallelism, cpus, loadavg } from "node:os";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { RaggedCache } from "../cache/ragged.ts";
import { resolveBudget } from "../core/budget.ts";
import { resolvePolicy } from "../core/registry.ts";
import { planCalibration } from "../model/calibrate/plan.ts";
import { extend } from "../model/extend.ts";
import { loadModel, type Model } from "../model/model.ts";
import { readContext } from "../model/read.ts";
import { createSampler } from "../model/sampler.ts";
import { pullModel } from "../model/store.ts";
import { currentRuntime } from "../runtime/mod.ts";

type Request =
  | { readonly what: "prefill"; readonly ids: readonly number[] }
  | { readonly what: "decode"; readonly id: number; readonly steps: number };

interface Reply {
  readonly detail?: string;
  /** Of a prefill; of each decoded token. */
  readonly ms: number | readonly number[];
  /** Processor milliseconds of the prefill, or of a token. */
  readonly cpu?: number;
  readonly rss?: number;
  readonly cacheBytes?: number;
  readonly error?: string;
}

function option(name: string, otherwise: string): string {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : process.argv[at + 1];
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** Processor milliseconds of all threads since `from`. */
function processor(from: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(from);
  return (user + system) / 1000;
}

/** Our side of the pipe: answers each request of a line with a line. */
class Ours {
  readonly #model: Model;
  readonly #policy: string;
  readonly #keep: number;
  #cache?: RaggedCache;

  constructor(model: Model, policy: string, keep: number) {
    this.#model = model;
    this.#policy = policy;
    this.#keep = keep;
  }

  async prefill(ids: readonly number[]): Promise<Reply> {
    this.#cache?.[Symbol.dispose]();
    const { dense, backend, file, config } = this.#model;
    const policy = resolvePolicy(this.#keep === 1 ? "full" : this.#policy);
    const budget = resolveBudget(policy, { fraction: this.#keep }, ids.length, config);
    const outputWeights = (layer: number) => file.readFloat32(`blk.${layer}.attn_output.weight`);
    const start = performance.now(), cpu = process.cpuUsage();
    const { cache, lastHidden } = await readContext(dense, backend, ids, { policy, budget, outputWeights });
    await dense.logits(lastHidden, 1);
    this.#cache = cache;
    return { ms: performance.now() - start, cpu: processor(cpu) };
  }

  /** Greedy tokens after `id`; the cache as before. */
  async decode(first: number, steps: number): Promise<Reply> {
    const cache = this.#cache!, mark = cache.mark(), sampler = createSampler(), ms: number[] = [];
    const start = process.cpuUsage();
    for (let id = first; ms.length < steps;) {
      const start = performance.now();
      id = sampler.next(await extend(this.#model.dense, cache, [id]));
      ms.push(performance.now() - start);
    }
    const cpu = processor(start) / steps, cacheBytes = cache.bytes().allocated;
    cache.trim(mark);
    return { ms, cpu, cacheBytes };
  }
}

async function serve(path: string, policy: string, keep: number): Promise<void> {
  const runtime = await currentRuntime();
  await using model = await loadModel(path, runtime, { backend: "wasm", dense: "wasm", threads: 1 });
  const ours = new Ours(model, policy, keep);
  console.log(JSON.stringify({ detail: `palisade, keep ${keep * 100} %, ${model.dense.detail}` }));
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line) as Request;
    const reply = request.what === "prefill"
      ? await ours.prefill(request.ids)
      : await ours.decode(request.id, request.steps);
    console.log(JSON.stringify({ ...reply, rss: runtime.memory().rssBytes }));
  }
}

/** Milliseconds of a prefill or, at the median, of a token. */
interface Taken {
  readonly wall: number;
  readonly processor: number;
}

/** An engine in a process of its own, spoken to line by line. */
class Engine {
  readonly name: string;
  detail = "";
  rss = 0;
  cacheBytes = 0;
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(name: string, program: string, parameters: readonly string[]) {
    this.name = name;
    this.#process = spawn(program, parameters, { stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#process.stdout! })[Symbol.asyncIterator]();
  }

  /** Waits until it has loaded the model; false, with the reason printed, where it can't run here. */
  async starts(): Promise<boolean> {
    const { value } = await this.#lines.next();
    const { detail, error } = value === undefined ? { error: "it ended" } as Reply : JSON.parse(value) as Reply;
    this.detail = detail ?? "";
    if (error !== undefined) console.log(`(${this.name} is left out: ${error})`);
    return error === undefined;
  }

  async ask(request: Request): Promise<Taken> {
    this.#process.stdin!.write(`${JSON.stringify(request)}\n`);
    const { value } = await this.#lines.next();
    if (value === undefined) throw new Error(`${this.name} ended while it was to ${request.what}`);
    const { ms, cpu = NaN, rss = 0, cacheBytes = 0, error } = JSON.parse(value) as Reply;
    if (error !== undefined) throw new Error(`${this.name}: ${error}`);
    this.rss = Math.max(this.rss, rss);
    this.cacheBytes = cacheBytes;
    return { wall: median([ms].flat()), processor: cpu };
  }

  /** The most memory it was resident in, bytes. */
  peak(): number {
    const status = readFileSync(`/proc/${this.#process.pid}/status`, "utf8");
    return Number(/VmHWM:\s*(\d+)/.exec(status)?.[1] ?? 0) * 1024;
  }

  stop(): void {
    this.#process.kill("SIGKILL");
  }
}

/** Tokens of a real text, as many as wanted. */
async function someIds(path: string, count: number): Promise<number[]> {
  const runtime = await currentRuntime();
  await using model = await loadModel(path, runtime, { backend: "ts", dense: "wasm" });
  const plan = await planCalibration(model, runtime, { tokens: Math.max(1000, 2 * count), seed: 99 });
  return plan.fit.flat().slice(0, count);
}

async function startAll(path: string, context: number, keeps: readonly number[]): Promise<Engine[]> {
  const self = fileURLToPath(import.meta.url), peers = fileURLToPath(new URL("peers/", import.meta.url));
  const all = [
    ...keeps.map((keep) =>
      new Engine(`palisade keep ${keep * 100} %`, process.execPath, [
        ...["run", "-A", self, "--serve", path, option("policy", "layer-defensive"), String(keep)],
      ])
    ),
    new Engine("llama.cpp", "node", [`${peers}llama.mjs`, path, "1", String(context)]),
  ];
  const there = [];
  for (const engine of all) if (await engine.starts()) there.push(engine);
  return there;
}

function table(engines: readonly Engine[], times: Map<Engine, Taken[]>, unit: string, tokens: number): void {
  const wall = (engine: Engine) => median(times.get(engine)!.map((taken) => taken.wall));
  const cpu = (engine: Engine) => median(times.get(engine)!.map((taken) => taken.processor));
  const peer = engines.at(-1)!, others = engines.length > 1 && !peer.name.startsWith("palisade");
  const ratio = (of: (engine: Engine) => number, engine: Engine) =>
    others ? `${(of(peer) / of(engine)).toFixed(2)} ×` : "–";
  console.log(
    `| engine | ${unit} wall | processor | tokens/s of processor time | wall against ${peer.name} | processor |`,
  );
  console.log("| --- | --- | --- | --- | --- | --- |");
  for (const engine of engines) {
    const numbers = [wall(engine), cpu(engine), tokens * 1000 / cpu(engine)].map((x) => x.toFixed(1)).join(" | ");
    console.log(`| ${engine.detail || engine.name} | ${numbers} | ${ratio(wall, engine)} | ${ratio(cpu, engine)} |`);
  }
  console.log("");
}

/** Whole decode steps at one context length; each round's figure is the median of its steps. */
async function decode(path: string, ids: readonly number[], rounds: number, steps: number): Promise<void> {
  const engines = await startAll(path, ids.length + steps + 8, [0.2, 1]);
  // Not timed, so all at once.
  await Promise.all(engines.map((engine) => engine.ask({ what: "prefill", ids: ids.slice(0, -1) })));
  const times = new Map(engines.map((engine) => [engine, [] as Taken[]]));
  for (let round = -1; round < rounds; round++) {
    for (const engine of engines) {
      const taken = await engine.ask({ what: "decode", id: ids.at(-1)!, steps });
      if (round >= 0) times.get(engine)!.push(taken);
    }
  }
  console.log(`Decode, ${ids.length} tokens of context, ${steps} steps a round, ${rounds} rounds:\n`);
  table(engines, times, "ms/token", 1);
  const fileBytes = statSync(path).size, mb = (bytes: number) => (bytes / 1e6).toFixed(0);
  for (const engine of engines) {
    const floor = fileBytes + engine.cacheBytes;
    const share = engine.cacheBytes > 0 ? `, ${(engine.rss / floor).toFixed(2)} × (file + cache, ${mb(floor)} MB)` : "";
    console.log(`${engine.name}: resident ${mb(engine.rss)} MB${share}; at its peak ${mb(engine.peak())} MB`);
  }
  for (const engine of engines) engine.stop();
}

async function prefill(path: string, ids: readonly number[], rounds: number): Promise<void> {
  const engines = await startAll(path, ids.length + 8, [0.2]);
  const times = new Map(engines.map((engine) => [engine, [] as Taken[]]));
  for (const engine of engines) await engine.ask({ what: "prefill", ids: ids.slice(0, 256) });
  for (let round = 0; round < rounds; round++) {
    for (const engine of engines) times.get(engine)!.push(await engine.ask({ what: "prefill", ids }));
  }
  console.log(`\nPrefill, ${ids.length} tokens, ${rounds} rounds, eviction included:\n`);
  table(engines, times, "ms", ids.length);
  for (const engine of engines) engine.stop();
}

async function main(): Promise<void> {
  if (process.argv[2] === "--serve") return serve(process.argv[3], process.argv[4], Number(process.argv[5]));
  const runtime = await currentRuntime(), path = await pullModel("smollm2-135m", runtime);
  const [context, length, rounds, steps] = [["context", "4096"], ["prefill", "2048"], ["rounds", "5"], ["steps", "24"]]
    .map(([name, otherwise]) => Number(option(name, otherwise)));
  const only = option("only", "");
  const ids = await someIds(path, Math.max(context, length));
  const load = `${availableParallelism()} cores, load ${loadavg()[0].toFixed(1)}`;
  console.log(`${new Date().toISOString()}, ${runtime.name} ${runtime.version}, ${cpus()[0].model}, ${load}`);
  console.log(`deno task bench step ${process.argv.slice(2).join(" ")}\n`);
  if (only !== "prefill") await decode(path, ids.slice(0, context), rounds, steps);
  if (only !== "decode") await prefill(path, ids.slice(0, length), rounds);
}

await main();
