/** Real SIGKILLs while a sweep runs: for the suite a few, for `deno task bench reliability` five hundred. */
import { spawn } from "node:child_process";
import { mkdir, readdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";
import { randomSource } from "../../core/measure/random.ts";
import { readResults, type ResultLine } from "../../evaluate/results/results.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { proseFile, TINY_MODEL } from "./workbench.ts";

const RUNNER = fileURLToPath(new URL("eval_runner.ts", import.meta.url));

export interface EvalKills {
  readonly folder: string;
  readonly kills: number;
  readonly runtime: Runtime;
  readonly seed: number;
}

export interface EvalKillFigures {
  readonly kills: number;
  /** Sweeps that were run to their end through kills, and then begun anew. */
  readonly sweeps: number;
  /** The most cells that one kill cost: computed, and not in the file. */
  readonly mostLost: number;
  /** Kills that left a torn line. */
  readonly torn: number;
  /** What must not be: lines gone that were on the disk, ids twice, another result than undisturbed, files left over. */
  readonly gone: number;
  readonly twice: number;
  readonly others: number;
  readonly stale: number;
}

/** What must be equal between two runs: everything but times, in any order. */
function comparable(lines: readonly ResultLine[]): unknown[] {
  return lines.map(({ ms: _, at: __, ...rest }) => rest).sort((a, b) => (a.id < b.id ? -1 : 1));
}

/** Starts a sweep, kills it, looks at what is there, and starts it again; from the beginning where one has come to its end. */
export async function killedSweeps({ folder, kills: wanted, runtime, seed }: EvalKills): Promise<EvalKillFigures> {
  const place = join(folder, "out"), out = join(place, "killed.jsonl"), calm = join(folder, "calm.jsonl");
  await mkdir(place, { recursive: true });
  const prose = await proseFile(folder), random = randomSource(seed);
  const start = (to: string) => new Sweep([...SWEEP, "--haystack", prose, "--out", to]);
  const began = performance.now(), undisturbed = start(calm);
  if (await undisturbed.ended !== 0) throw new Error(`the sweep fails undisturbed: ${undisturbed.errors}`);
  const whole = performance.now() - began, right = comparable((await readResults(runtime, calm)).lines);
  let kills = 0, sweeps = 0, mostLost = 0, torn = 0, gone = 0, twice = 0, others = 0, stale = 0, before: string[] = [];
  /** How many of the sweep's lines are there. */
  const look = async (sweep: Sweep) => {
    const read = await readResults(runtime, out).catch(() => ({ lines: [], duplicates: 0, torn: false }));
    const ids = read.lines.map(({ id }) => id), added = ids.length - before.length;
    mostLost = Math.max(mostLost, sweep.count("w") - added);
    if (read.torn) torn++;
    twice += read.duplicates;
    if (before.some((id, i) => ids[i] !== id) || added < sweep.count("s")) gone++;
    before = ids;
    return read.lines;
  };
  while (kills < wanted) {
    const sweep = start(out);
    // Kills fall into starting, reading, answering and writing.
    if (random() < 0.5) await sweep.says("w");
    await sweep.endedWithin(random() * whole * (sweep.count("w") > 0 ? 0.2 : 0.9));
    if (sweep.kill()) kills++;
    const code = await sweep.ended, lines = await look(sweep);
    if (code === null && kills < wanted) continue;
    if (code !== 0 && await finish(start(out), look) !== 0) others++;
    const last = code === 0 ? lines : (await readResults(runtime, out)).lines;
    if (!isDeepStrictEqual(comparable(last), right)) others++;
    stale += (await readdir(dirname(out))).length - 1;
    sweeps++;
    before = [];
    await rm(out);
  }
  return { kills, sweeps, mostLost, torn, gone, twice, others, stale };
}

async function finish(sweep: Sweep, look: (sweep: Sweep) => Promise<unknown>): Promise<number | null> {
  const code = await sweep.ended;
  await look(sweep);
  return code;
}

const SWEEP = [
  ...["eval", "--models", TINY_MODEL, "--backend", "wasm", "--dense", "web", "--tasks", "niah_single_1,vt"],
  ...["--samples", "2", "--length", "1100", "--policies", "full,streaming-llm,adakv(snapkv, safeguard=0.3)"],
  ...["--keep", "40%,20%", "--quiet"],
];

/** A process that runs a sweep. */
class Sweep {
  /** The exit code; null when it was killed. */
  readonly ended: Promise<number | null>;
  errors = "";
  #said = "";
  #heard: () => void = () => {};
  readonly #child;

  constructor(parameters: readonly string[]) {
    this.#child = spawn(process.execPath, ["run", "-A", "--no-check", RUNNER, ...parameters], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.ended = new Promise((done) => this.#child.once("close", (code) => done(code)));
    this.#child.stdout.on("data", (data) => {
      this.#said += data;
      this.#heard();
    });
    this.#child.stderr.on("data", (data) => this.errors += data);
  }

  /** How often it said this letter. */
  count(letter: string): number {
    return this.#said.split(letter).length - 1;
  }

  /** Until it has said a letter, or ended. */
  async says(letter: string): Promise<void> {
    const said = new Promise<void>((done) => {
      this.#heard = () => this.count(letter) > 0 && done();
      this.#heard();
    });
    await Promise.race([said, this.ended]);
  }

  /** Waits so many milliseconds, or less where it ends. */
  async endedWithin(ms: number): Promise<void> {
    let timer: ReturnType<typeof setTimeout>;
    await Promise.race([new Promise<void>((done) => timer = setTimeout(done, ms)), this.ended]);
    clearTimeout(timer!);
  }

  /** Whether there was anything to kill. */
  kill(): boolean {
    return this.#child.exitCode === null && this.#child.kill("SIGKILL");
  }
}
