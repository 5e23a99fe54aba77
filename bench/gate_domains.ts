/**
 * How a gate does on kinds of text it was not fitted on: `deno task bench gate_domains [folder for the gates]`. One gate
 * is fitted on prose and dialogue, one on code and JSON; each is correlated with KVzip's importance on held-out texts of
 * both.
 */
import { writeFileSync } from "node:fs";
import process from "node:process";
import { calibrate } from "../model/gate/fit/calibrate.ts";
import { planCalibration } from "../model/gate/fit/plan.ts";
import type { Kind } from "../model/gate/fit/text.ts";
import { writeGate } from "../model/gate/file.ts";
import { modelHash } from "../model/store/identity.ts";
import { loadModel } from "../model/model.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";

const [folder] = process.argv.slice(2);
const DOMAINS: Record<string, Kind[]> = { prose: ["prose", "dialogue"], data: ["code", "json"] };
/** Tokens to fit on, and held-out texts of each domain. */
const TOKENS = 5120, HELD_OUT = 12;

const runtime = await currentRuntime(), path = await pullModel("smollm2-135m", runtime);
await using model = await loadModel(path, runtime, { precision: "float32", threads: 2 });
const sha256 = await modelHash(path, runtime);
const plans = Object.fromEntries(
  await Promise.all(
    Object.entries(DOMAINS).map(async ([name, kinds]) =>
      [name, await planCalibration(model, runtime, { tokens: TOKENS, seed: 7, kinds })] as const
    ),
  ),
);

console.log("| fitted on | correlation on prose, dialogue | on code, JSON |\n| --- | --- | --- |");
for (const name of Object.keys(DOMAINS)) {
  const means = [];
  for (const other of Object.keys(DOMAINS)) {
    const plan = { ...plans[name], heldOut: plans[other].heldOut.slice(0, HELD_OUT), shifted: [] };
    const { info, gate } = await calibrate(model, runtime, plan, { sha256 });
    const all = info.correlation.flat();
    means.push((all.reduce((a, b) => a + b, 0) / all.length).toFixed(3));
    if (folder) writeFileSync(`${folder}/${name}.gate.safetensors`, writeGate(info, gate));
  }
  console.log(`| ${name} | ${means.join(" | ")} |`);
}
