/**
 * Bad model files, 100,000 of them: `deno task bench fuzz [--inputs N] [--seed S]`. Prints what they were refused for,
 * and fails where one was not refused by type; a share of them is in the suite.
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { fuzzModels } from "../tests/_helper/gguf_fuzz.ts";

const { values } = parseArgs({
  options: { inputs: { type: "string", default: "100000" }, seed: { type: "string", default: "15" } },
});
const seed = Number(values.seed), start = performance.now();
const { codes, failures, ...figures } = await fuzzModels({ inputs: Number(values.inputs), seed, runEach: 40 });
const refusals = Object.fromEntries([...codes].sort(([, a], [, b]) => b - a));
const ms = Math.round(performance.now() - start);
console.log(JSON.stringify({ ...figures, failures: failures.length, seed, ms, refusals }));
for (const failure of failures) console.error(failure);
process.exit(failures.length > 0 ? 1 : 0);
