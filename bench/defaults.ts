/**
 * Which policy should be the default for a model, with and without a gate: answers kept, every sample the same for all.
 *
 *     deno task bench defaults FOLDER [--models smollm2-135m,FILE] [--lengths 1k,2k,4k] [--samples 50] [--seed 1]
 *       [--keep 20%,10%,5%] [--tasks niah_single_1,…] [--policies full,kvzip,…]
 *
 * Runs `palisade eval` for each model and length into a file of its own in FOLDER, and prints its report. Stopped at any
 * time it goes on where it was when it is started again. `self-gate` begins with nothing here, so what it does for
 * SmolLM2 is what it would do without the gate of the package. What reading takes: `deno task bench reading 4096 4 2048
 * "full;self-gate;kvzip"`, on an idle machine.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const option = (otherwise: string) => ({ type: "string", default: otherwise } as const);
const { values, positionals: [folder] } = parseArgs({
  args: process.argv.slice(2),
  allowPositionals: true,
  options: {
    models: option("smollm2-135m"),
    lengths: option("1k,2k,4k"),
    samples: option("50"),
    seed: option("1"),
    keep: option("20%,10%,5%"),
    // Those that SmolLM2 solves with the full cache (bench/results/answers.md).
    tasks: option("niah_single_1,niah_single_2,niah_multikey_1,niah_multivalue,niah_multiquery"),
    policies: option("full,kvzip,self-gate,self-gate(combine=risk, window=8),moved,layer-defensive"),
  },
});
if (folder === undefined) {
  console.error("Want a folder for the results: deno task bench defaults FOLDER");
  process.exit(2);
}

const CLI = fileURLToPath(new URL("../cli/main.ts", import.meta.url));

/** Ends with what the command ends with, if that is not 0. */
function palisade(...parameters: string[]): void {
  const { status } = spawnSync(process.execPath, ["run", "-A", CLI, ...parameters], { stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}

mkdirSync(folder, { recursive: true });
const { samples, seed, keep, tasks, policies } = values;
for (const model of values.models.split(",")) {
  for (const length of values.lengths.split(",")) {
    const out = join(folder, `${basename(model, ".gguf")}-${length}.jsonl`);
    const asked = { models: model, length, samples, seed, keep, tasks, policies, out };
    palisade("eval", ...Object.entries(asked).flatMap(([name, value]) => [`--${name}`, value]));
    palisade("report", out);
  }
}
