/** What bench/step.ts and bench/wllama.ts share: engines in processes of their own, their requests, and the table. */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg } from "node:os";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { planCalibration } from "../../model/gate/fit/plan.ts";
import { loadModel } from "../../model/model.ts";
import { currentRuntime } from "../../runtime/mod.ts";

/** One line to an engine: read `ids` into an empty cache, or decode `steps` greedy tokens after `id` and forget them. */
export type Request =
  | { readonly what: "prefill"; readonly ids: readonly number[] }
  | { readonly what: "decode"; readonly id: number; readonly steps: number };

/** One line from an engine; its first says only what it is, or why it can't run. */
export interface Reply {
  readonly detail?: string;
  /** Milliseconds of loading the model; in the first line. */
  readonly loadMs?: number;
  /** Of a prefill; of each decoded token. */
  readonly ms: number | readonly number[];
  /** Processor milliseconds of the prefill, or of a token. */
  readonly cpu?: number;
  readonly rss?: number;
  readonly cacheBytes?: number;
  readonly error?: string;
}

/** Milliseconds of a prefill or, at the median, of a token. */
export interface Taken {
  readonly wall: number;
  readonly processor: number;
}

/** Value of the flag `--name`, or `otherwise` where it isn't given. */
export function option(name: string, otherwise: string): string {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : process.argv[at + 1];
}

/** The middle one; of two the upper. */
export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** An engine in a process of its own, spoken to line by line. */
export class Engine {
  readonly name: string;
  detail = "";
  /** Milliseconds that the model took to load. */
  loadMs = NaN;
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
    const reply = value === undefined ? { error: "it ended" } as Reply : JSON.parse(value) as Reply;
    const { detail, error, loadMs } = reply;
    this.detail = detail ?? "";
    this.loadMs = loadMs ?? NaN;
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

  /** Ends its input, on which every engine ends by itself. */
  stop(): void {
    this.#process.stdin!.end();
  }
}

/** Path of a file of bench/, named from there. */
export function benchPath(file: string): string {
  return fileURLToPath(new URL(`../${file}`, import.meta.url));
}

/** What a runtime's program wants before a script and its words. */
export function runs(program: string): readonly string[] {
  return /deno(\.exe)?$/.test(program) ? ["run", "-A"] : [];
}

/** Our kernels alone, at a share of keys kept, 0 to 1; `node`: the program of a Node that runs TypeScript, else here. */
export function palisade(model: string, policy: string, keep: number, threads = 1, node?: string): Engine {
  const parameters = [benchPath("engines/palisade.ts"), model, policy, String(keep), String(threads)];
  const name = `palisade keep ${keep * 100} %`, program = node ?? process.execPath, words = runs(program);
  return new Engine(words.length > 0 ? name : `${name}, Node`, program, [...words, ...parameters]);
}

/** Those of the engines that can run here, with the model loaded. */
export async function started(engines: readonly Engine[]): Promise<Engine[]> {
  const there = [];
  for (const engine of engines) if (await engine.starts()) there.push(engine);
  return there;
}

/** Decodes by turns, the first round untimed; each round's figure is the median of its steps. */
export async function decodeRounds(
  engines: readonly Engine[],
  id: number,
  rounds: number,
  steps: number,
): Promise<Map<Engine, Taken[]>> {
  const times = new Map(engines.map((engine) => [engine, [] as Taken[]]));
  for (let round = -1; round < rounds; round++) {
    for (const engine of engines) {
      const taken = await engine.ask({ what: "decode", id, steps });
      if (round >= 0) times.get(engine)!.push(taken);
    }
  }
  return times;
}

/** Tokens of a real text, as many as wanted. */
export async function someIds(path: string, count: number): Promise<number[]> {
  const runtime = await currentRuntime();
  await using model = await loadModel(path, runtime, { backend: "ts", dense: "wasm" });
  const plan = await planCalibration(model, runtime, { tokens: Math.max(1000, 2 * count), seed: 99 });
  return plan.fit.flat().slice(0, count);
}

/** When, where and how this bench runs. */
export async function printHeader(bench: string): Promise<void> {
  const runtime = await currentRuntime();
  const load = `${availableParallelism()} cores, load ${loadavg()[0].toFixed(1)}`;
  console.log(`${new Date().toISOString()}, ${runtime.name} ${runtime.version}, ${cpus()[0].model}, ${load}`);
  console.log(`deno task bench ${bench} ${process.argv.slice(2).join(" ")}\n`);
}

/** Medians of the rounds, `tokens` tokens each, and how many times as fast as the last engine, where that is another's. */
export function table(engines: readonly Engine[], times: Map<Engine, Taken[]>, unit: string, tokens: number): void {
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
