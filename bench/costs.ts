/**
 * What policies cost in time and memory: `palisade ask` for each, in a process of its own, taking turns in every round.
 *
 *     deno task bench costs --context FILE [--policies "snapkv(rows=int4);kvzip(rows=int4)"] [--keep 20% | --bytes 1/8]
 *       [--model NAME] [--rounds 3] [--program node] [--json FILE]
 *
 * `full` is always there; `default` is what is done where no policy is named, nor, without `--keep` and `--bytes`, a
 * budget. The text is read, evicted, and continued by 32 tokens, on one thread. Medians: reading with all that a policy
 * does until the first question, also over `full`'s of the same round; a token; keys and values while
 * reading and at rest, in float16's bytes of all of them; resident memory.
 * `--program`: where palisade runs, else here.
 */
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { median, runs } from "./engines/engine.ts";
import type { Report } from "../model/report.ts";

const { values } = parseArgs({
  options: {
    context: { type: "string" },
    policies: { type: "string", default: "snapkv;layer-defensive;kvzip" },
    keep: { type: "string" },
    bytes: { type: "string" },
    model: { type: "string", default: "smollm2-135m" },
    rounds: { type: "string", default: "3" },
    program: { type: "string", default: process.execPath },
    json: { type: "string" },
  },
});
const { context, model, program } = values;
if (context === undefined) throw new Error("--context FILE: a text to read");
const budget = values.bytes ? ["--bytes", values.bytes] : ["--keep", values.keep ?? "20%"];
const names = ["full", ...values.policies.split(";").map((name) => name.trim()).filter((name) => name !== "full")];
const CLI = fileURLToPath(new URL("../cli/main.ts", import.meta.url));

function ask(policy: string): Report {
  // `fasa` keeps all; `kvzap`, and the default where nothing is asked for, say what stays by themselves.
  const itself = /^kvzap\b/.test(policy) || policy === "default" && values.keep === undefined && !values.bytes;
  const share = itself ? [] : /^(full|fasa)\b/.test(policy) ? ["--keep", "100%"] : budget;
  const engine = ["--threads", "1", "--dense", "wasm", "--backend", "wasm", "--snapshots", "off", "--no-learn"];
  const text = ["--model", model, "--context", context!, "--question", "", "--max-tokens", "32"];
  const named = policy === "default" ? [] : ["--policy", policy];
  const words = ["--config", "none", ...named, ...share, ...text, ...engine, "--json"];
  const { status, stdout } = spawnSync(program, [...runs(program), CLI, "ask", ...words], {
    stdio: ["ignore", "pipe", "inherit"],
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`${policy} ended with ${status}`);
  return JSON.parse(stdout);
}

const taken = new Map(names.map((name) => [name, [] as Report[]]));
console.log(`${cpus()[0]?.model.trim()}, ${program}, load ${loadavg()[0].toFixed(2)}`);
for (let round = 0; round < Number(values.rounds); round++) {
  for (const name of names) taken.get(name)!.push(ask(name));
}
if (values.json) writeFileSync(values.json, JSON.stringify(Object.fromEntries(taken)));

const full = taken.get("full")!, tokens = full[0].tokens.context;
/** Keys and values of all tokens in float16: half of float32, in which `full` holds them. */
const whole = full[0].cache.fullBytes / 2;
console.log(`${tokens} tokens, ${names.length} policies, ${values.rounds} rounds, load ${loadavg()[0].toFixed(2)}\n`);
console.log(
  "| policy | reading s | over full's | ms a token | cache while reading, % | at rest, % | peak resident MB |",
);
console.log("| --- | --- | --- | --- | --- | --- | --- |");
for (const [name, reports] of taken) {
  const of = (figure: (report: Report, round: number) => number) => median(reports.map(figure));
  const reading = of(({ ms }) => ms.prefill / 1000), over = of(({ ms }, round) => ms.prefill / full[round].ms.prefill);
  const share = (bytes: number) => (100 * bytes / whole).toFixed(1);
  const cells = [
    reading.toFixed(2),
    over.toFixed(2),
    of(({ ms }) => ms.decodePerToken!).toFixed(1),
    share(of(({ cache }) => cache.peakBytes)),
    share(of(({ cache }) => cache.bytes)),
    (of(({ memory }) => memory.peakRss!) / 1e6).toFixed(0),
  ];
  console.log(`| ${name} | ${cells.join(" | ")} |`);
}
