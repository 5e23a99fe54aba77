/**
 * What evicting while reading changes: `deno task bench gate_stream [tokens] [samples a task]`. Contexts of the needle
 * tasks are read with `gate` (score everything, then evict) and with `gate(read=stream)`; the table shows how much of the
 * kept sets is common, |both| / |either| over all layers and heads of a context.
 */
import process from "node:process";
import type { RaggedCache } from "../core/cache/ragged.ts";
import { type Keep, resolveBudget } from "../core/select/budget.ts";
import { resolvePolicy } from "../core/policy/registry.ts";
import { makeSample } from "../evaluate/sweep/sweep.ts";
import { openHaystack } from "../evaluate/tasks/haystack.ts";
import { cellGroups } from "../evaluate/sweep/plan.ts";
import { openTasks } from "../evaluate/tasks/registry.ts";
import { loadModel } from "../model/model.ts";
import { contextIds } from "../model/text/prompt.ts";
import { readContext } from "../model/read/layers.ts";
import { readStreaming } from "../model/read/streaming.ts";
import { policyInputs } from "../model/read/policy_inputs.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";

const [tokens = 1024, samples = 4] = process.argv.slice(2).map(Number);
const TASKS = ["niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery"];
const KEEPS: readonly Keep[] = [{ fraction: 0.2 }, { fraction: 0.1 }];

const runtime = await currentRuntime();
await using model = await loadModel(await pullModel("smollm2-135m", runtime), runtime);
const { dense, backend, config, frame, tokenizer } = model;
const sampling = { seed: 1, haystack: await openHaystack(runtime) };
const policy = resolvePolicy("gate"), streaming = resolvePolicy("gate(read=stream)");
const outputWeights = () => Promise.reject(new Error("not needed"));

/** True positions that stay, `[layers · kvHeads]`. */
function keptBy(cache: RaggedCache): Set<number>[] {
  const { layers, kvHeads } = cache.shape;
  return Array.from({ length: layers * kvHeads }, (_, i) => {
    return new Set(cache.positions(Math.floor(i / kvHeads), i % kvHeads));
  });
}

/** |both| / |either|. */
function jaccard(a: readonly Set<number>[], b: readonly Set<number>[]): number {
  let both = 0, either = 0;
  a.forEach((one, i) => {
    const common = [...one].filter((position) => b[i].has(position)).length;
    both += common;
    either += one.size + b[i].size - common;
  });
  return both / either;
}

const found = KEEPS.map((): number[] => []);
for (const group of cellGroups(await openTasks(TASKS, runtime), [tokens], samples)) {
  const ids = contextIds(frame, tokenizer, makeSample(model, group, sampling).context);
  const { gate } = await policyInputs(model, policy, ids);
  for (const [i, keep] of KEEPS.entries()) {
    const budget = resolveBudget(policy, keep, ids.length, config);
    using late = (await readContext({ dense, backend }, ids, { policy, budget, gate, outputWeights })).cache;
    using early = (await readStreaming({ dense, backend }, ids, { policy: streaming, budget, gate: gate! })).cache;
    found[i].push(jaccard(keptBy(late), keptBy(early)));
  }
}
console.log(`${tokens} tokens, ${found[0].length} contexts, ${dense.detail}, ${backend.detail}\n`);
console.log("| keep | common: mean | least | most |\n| --- | --- | --- | --- |");
for (const [i, keep] of KEEPS.entries()) {
  const mean = found[i].reduce((sum, x) => sum + x, 0) / found[i].length;
  const share = (x: number) => x.toFixed(3);
  console.log(
    `| ${JSON.stringify(keep)} | ${share(mean)} | ${share(Math.min(...found[i]))} | ${share(Math.max(...found[i]))} |`,
  );
}
