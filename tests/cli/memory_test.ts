/** Every command that opens a model tells what it will take before weights are read, and refuses what can't be had. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { currentRuntime } from "../../runtime/mod.ts";
import { palisade } from "../_helper/io.ts";
import { proseFile, testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const folder = await testFolder("memory"), haystack = await proseFile(folder), runtime = await currentRuntime();
const context = join(folder, "text.txt"), cells = join(folder, "cells.jsonl");
await writeFile(context, "The gate is shut at dusk. ".repeat(40));
await writeFile(cells, JSON.stringify({ task: "vt", length: "1k", haystack }));

const ENGINES = ["--backend", "wasm", "--dense", "wasm", "--threads", "1"];
const ONE = [...ENGINES, "--model", TINY_MODEL];
const POLICY = ["--policy", "snapkv", "--keep", "20%"];
const COMMANDS: Readonly<Record<string, readonly string[]>> = {
  ask: ["ask", "--context", context, "--question", "When?", "--max-tokens", "1", ...POLICY, ...ONE],
  read: ["read", "--context", context, "--out", join(folder, "read.snapshot"), ...POLICY, ...ONE],
  show: ["show", "--context", context, ...POLICY, ...ONE],
  eval: [
    ...["eval", "--tasks", "vt", "--length", "1k", "--policies", "full", "--samples", "1", "--haystack", haystack],
    ...["--out", join(folder, "eval.jsonl"), "--models", TINY_MODEL, ...ENGINES],
  ],
  cell: ["cell", cells, ...ONE],
  demo: ["demo", "--questions", "3", ...ONE],
  calibrate: ["calibrate", "--tokens", "1000", "--out", join(folder, "a.gate.safetensors"), ...ONE],
};

for (const [name, parameters] of Object.entries(COMMANDS)) {
  Deno.test(`palisade ${name} refuses what there is no memory for, and says so before where little is free`, async () => {
    // More than the weights, and less than the text.
    const short = () => ({ ...runtime.memory(), limitBytes: 150_000 });
    const refused = await palisade(parameters, { runtime: { memory: short } });
    const said = name === "cell" ? refused.out : refused.err;
    assert.deepEqual([refused.code, /keys and values of \d+ tokens .* in all/.test(said)], [4, true], said);
    // A note comes before weights are read: one that is stopped there has read none.
    const stop = new AbortController();
    const busy = () => {
      stop.abort(new Error("Seen enough"));
      return { ...runtime.memory(), freeBytes: 1000 };
    };
    const noted = await palisade(parameters, { runtime: { memory: busy }, signal: stop.signal });
    assert.match(noted.err, /note: this takes [\d.]+ [kM]B of memory at least, and 1(\.0)? kB are free/);
  });
}
