/**
 * Whole decode steps of SmolLM2 on our kernels alone, in Deno, against llama.cpp as WebAssembly (wllama, in a headless
 * Chromium) on the same file: taking turns in each round, one thread each. Over the f16 cache that wllama takes by
 * default, and over an f32 one, which is faster there. `npm install --ignore-scripts --prefix bench/peers` first.
 *
 *     deno task bench wllama [--context 4096] [--rounds 5] [--steps 16] [--cache f16,f32] [--policy layer-defensive]
 */
import process from "node:process";
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

const path = await pullModel("smollm2-135m", await currentRuntime());
const [context, rounds, steps] = [["context", "4096"], ["rounds", "5"], ["steps", "16"]]
  .map(([name, otherwise]) => Number(option(name, otherwise)));
await printHeader("wllama");
console.log("wllama runs in Chromium's V8, palisade in Deno's; wllama's processor time is the whole browser's.\n");

const ids = await someIds(path, context);
const wllama = (type: string) =>
  new Engine(`wllama ${type}`, process.execPath, [
    ...["run", "-A", benchPath("engines/wllama.ts"), path, String(context + 64), type],
  ]);
const policy = option("policy", "layer-defensive");
const engines = await started([
  ...[0.2, 1].map((keep) => palisade(path, policy, keep)),
  ...option("cache", "f16,f32").split(",").map(wllama),
]);

const prefills = new Map<Engine, Taken[]>();
for (const engine of engines) prefills.set(engine, [await engine.ask({ what: "prefill", ids: ids.slice(0, -1) })]);
const decodes = await decodeRounds(engines, ids.at(-1)!, rounds, steps);
console.log(`Decode, ${context} tokens of context, ${steps} steps a round, ${rounds} rounds:\n`);
table(engines, decodes, "ms/token", 1);
console.log(`Prefill of ${context - 1} tokens, once, eviction included:\n`);
table(engines, prefills, "ms", context - 1);
for (const engine of engines) engine.stop();
