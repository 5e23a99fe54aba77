/**
 * What kvzip and gate add to reading a context: `deno task bench reading [tokens] [rounds] [chunk of kvzip] [policies]
 * [dense]`, policies separated by semicolons, `full` among them; dense layers by onnxruntime-node over float32 weights, or
 * as `--dense` says.
 * Policies take turns in every round; the table shows medians of processor time (all threads, robust on a shared
 * machine) and of wall time, and the processor time over that of `full`: of the medians, and of the least of all rounds.
 */
import process from "node:process";
import { type Keep, resolveBudget } from "../core/select/budget.ts";
import { resolvePolicy } from "../core/policy/registry.ts";
import { planCalibration } from "../model/gate/fit/plan.ts";
import type { DenseChoice } from "../model/dense/pick.ts";
import { loadModel } from "../model/model.ts";
import { readContext } from "../model/read/layers.ts";
import { readStreaming } from "../model/read/streaming.ts";
import { policyInputs } from "../model/read/policy_inputs.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";

const [tokens = 1024, rounds = 5, chunk = 2048] = process.argv.slice(2, 5).map(Number);
const ALL = ["full", "snapkv", "layer-defensive", "gate", "gate(read=stream)", `kvzip(chunk=${chunk})`];
const NAMES = process.argv[5]?.split(";") ?? ALL;
const DENSE = process.argv[6] as DenseChoice | undefined;
const keep: Keep = { fraction: 0.2 };

const runtime = await currentRuntime();
await using model = await loadModel(
  await pullModel("smollm2-135m", runtime),
  runtime,
  DENSE ? { dense: DENSE } : { precision: "float32" },
);
const plan = await planCalibration(model, runtime, { tokens: Math.max(1000, 2 * tokens), seed: 99 });
const ids = plan.fit.flat().slice(0, tokens);
const times = new Map(NAMES.map((name) => [name, [] as { cpu: number; wall: number }[]]));

async function read(name: string): Promise<void> {
  const policy = resolvePolicy(name), budget = resolveBudget(policy, keep, ids.length, model.config);
  const inputs = await policyInputs(model, policy, ids);
  const outputWeights = (layer: number) => model.file.readFloat32(`blk.${layer}.attn_output.weight`);
  const { cache } = policy.evicts === "early"
    ? await readStreaming(model, ids, { policy, budget, gate: inputs.gate! })
    : await readContext(model, ids, { ...inputs, policy, budget, outputWeights });
  cache[Symbol.dispose]();
}

for (let round = -1; round < rounds; round++) {
  for (const name of NAMES) {
    const cpu = process.cpuUsage(), wall = performance.now();
    await read(name);
    const { user, system } = process.cpuUsage(cpu);
    // The first round warms up.
    if (round >= 0) times.get(name)!.push({ cpu: (user + system) / 1000, wall: performance.now() - wall });
  }
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

const base = median(times.get("full")!.map(({ cpu }) => cpu));
console.log(`${ids.length} tokens, ${rounds} rounds, ${model.dense.detail}, ${model.backend.detail}\n`);
const least = (name: string) => Math.min(...times.get(name)!.map(({ cpu }) => cpu)), leastBase = least("full");
console.log("| policy | processor ms | wall ms | processor time over full | least over least |");
console.log("| --- | --- | --- | --- | --- |");
for (const [name, each] of times) {
  const cpu = median(each.map(({ cpu }) => cpu)), wall = median(each.map(({ wall }) => wall));
  const over = (ratio: number) => `${(100 * (ratio - 1)).toFixed(1)} %`;
  console.log(
    `| ${name} | ${cpu.toFixed(0)} | ${wall.toFixed(0)} | ${over(cpu / base)} | ${over(least(name) / leastBase)} |`,
  );
}

// What the gate adds, by itself: smaller than the noise between two rounds.
const policy = resolvePolicy("gate"), { gate } = await policyInputs(model, policy, ids);
const budget = resolveBudget(policy, keep, ids.length, model.config);
const now = () => (({ user, system }) => (user + system) / 1000)(process.cpuUsage());
const outputWeights = () => Promise.reject(new Error("not needed"));
const hidden = await model.dense.embed(ids), parts: { score: number; evict: number; rest: number }[] = [];
for (let round = 0; round < Math.max(3, rounds); round++) {
  const start = now();
  for (let layer = 0; layer < model.config.layers; layer++) await gate!.score(layer, hidden, ids.length);
  const score = now() - start;
  const { cache, ms } = await readContext(model, ids, {
    policy,
    budget,
    gate,
    now,
    outputWeights,
  });
  cache[Symbol.dispose]();
  parts.push({ score, evict: ms.evict, rest: ms.prefill - score });
}
const part = (name: keyof typeof parts[number]) => median(parts.map((each) => each[name]));
for (const name of ["score", "evict"] as const) {
  console.log(
    `gate, ${name} alone: ${part(name).toFixed(0)} ms, ${(100 * part(name) / part("rest")).toFixed(2)} % of the rest`,
  );
}
