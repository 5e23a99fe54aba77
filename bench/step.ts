/**
 * Whole decode steps and whole prefills of SmolLM2 on our kernels alone, against other engines on the same file: every
 * engine in a process of its own, taking turns in each round, one thread each. Processor time is all threads', and robust
 * on a shared machine. The others are dev tools outside the package: `npm install --ignore-scripts --prefix bench/peers`.
 *
 *     deno task bench step [--only decode|prefill] [--context 4096] [--prefill 2048] [--rounds 5] [--steps 24]
 *                          [--policy layer-defensive]
 */
import { statSync } from "node:fs";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";
import {
  benchPath,
  decodeRounds,
  Engine,
  option,
  palisade,
  printHeader,
  someIds,
  started,
  table,
  type Taken,
} from "./engines/engine.ts";

async function startAll(path: string, context: number, keeps: readonly number[]): Promise<Engine[]> {
  return await started([
    ...keeps.map((keep) => palisade(path, option("policy", "layer-defensive"), keep)),
    new Engine("llama.cpp", "node", [benchPath("peers/llama.mjs"), path, "1", String(context)]),
  ]);
}

/** Whole decode steps at one context length; each round's figure is the median of its steps. */
async function decode(path: string, ids: readonly number[], rounds: number, steps: number): Promise<void> {
  const engines = await startAll(path, ids.length + steps + 8, [0.2, 1]);
  // Not timed, so all at once.
  await Promise.all(engines.map((engine) => engine.ask({ what: "prefill", ids: ids.slice(0, -1) })));
  const times = await decodeRounds(engines, ids.at(-1)!, rounds, steps);
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
  const path = await pullModel("smollm2-135m", await currentRuntime());
  const [context, length, rounds, steps] = [["context", "4096"], ["prefill", "2048"], ["rounds", "5"], ["steps", "24"]]
    .map(([name, otherwise]) => Number(option(name, otherwise)));
  const only = option("only", "");
  const ids = await someIds(path, Math.max(context, length));
  await printHeader("step");
  if (only !== "prefill") await decode(path, ids.slice(0, context), rounds, steps);
  if (only !== "decode") await prefill(path, ids.slice(0, length), rounds);
}

await main();
