/** `palisade cell`: cells for other people's schedulers. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { parseCell } from "../../evaluate/sweep/cell.ts";
import { readResults, type ResultLine } from "../../evaluate/results/results.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { runChild } from "../../tools/child.ts";
import { ROOT } from "../../tools/repository.ts";
import { type CliOptions, palisade } from "../_helper/io.ts";
import { skipped } from "../_helper/skip.ts";
import { proseFile, testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const folder = await testFolder("cell");
const haystack = await proseFile(folder);
const ENGINES = ["--backend", "wasm", "--dense", "web"];
const CASE = JSON.stringify({ context: "The sum is 42. ".repeat(20), question: "What is the sum?", answers: "42" });
const task = `jsonl:${join(folder, "cases.jsonl")}`;
await writeFile(join(folder, "cases.jsonl"), `${CASE}\n`);

/** Standard input. */
function piped(text: string, pieces = 1): CliOptions {
  const bytes = new TextEncoder().encode(text), size = Math.ceil(bytes.length / pieces);
  async function* readBytes() {
    for (let at = 0; at < bytes.length; at += size) yield bytes.slice(at, at + size);
  }
  return { runtime: { readBytes } };
}

function comparable({ ms: _, at: __, ...rest }: ResultLine): Omit<ResultLine, "ms" | "at"> {
  return rest;
}

Deno.test("palisade cell computes what eval computes, in the order asked for", async () => {
  const out = join(folder, "eval.jsonl");
  const sweep = [
    "--tasks",
    `${task},vt`,
    "--length",
    "1k",
    "--samples",
    "1",
    "--policies",
    "full,snapkv",
    "--keep",
    "20%,40",
  ];
  const done = await palisade([
    "eval",
    ...sweep,
    "--models",
    TINY_MODEL,
    "--haystack",
    haystack,
    "--out",
    out,
    ...ENGINES,
  ]);
  assert.equal(done.code, 0, done.err);
  const { lines } = await readResults(await currentRuntime(), out);
  assert.equal(lines.length, 6);
  const asked = [...lines].reverse().map(({ task: name, length, sample, asked, seed }) => {
    return { ...asked, sample, seed, haystack, ...(name === "vt" ? { task: "vt", length } : { task }) };
  });
  const text = asked.map((each) => `${JSON.stringify(each)}\n`).join("");
  const { code, out: given, err } = await palisade(["cell", "-", "--model", TINY_MODEL, ...ENGINES], piped(text, 7));
  assert.deepEqual([code, err], [0, ""]);
  const ours: ResultLine[] = given.trimEnd().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(ours.map(comparable), [...lines].reverse().map(comparable));
  await writeFile(join(folder, "cells.jsonl"), given);
  const report = await palisade(["report", join(folder, "cells.jsonl")]);
  assert.equal(report.code, 0, report.err);
  assert.match(report.out, /snapkv/);
});

Deno.test("palisade cell answers a bad line with its error, and goes on", async () => {
  const good = { model: TINY_MODEL, task, policy: "snapkv", keep: 30 };
  const bad: [string, string, RegExp][] = [
    ["{", "cell.syntax", /no JSON/],
    ["[1]", "cell.syntax", /want an object/],
    ["{}", "cell.field", /no task/],
    [JSON.stringify({ ...good, tusk: 1 }), "cell.field", /no field tusk: there are model, task/],
    [JSON.stringify({ ...good, sample: -1 }), "cell.field", /sample of a cell is -1: want a whole number/],
    [JSON.stringify({ ...good, sample: 1 }), "cell.field", /has 1 samples: there is no number 1/],
    [JSON.stringify({ ...good, cacheType: "q4" }), "cell.field", /one of f32/],
    [JSON.stringify({ ...good, keep: "20%,30%" }), "cell.field", /one policy and keep/],
    [JSON.stringify({ ...good, task: "ruler", length: "1k" }), "cell.field", /one task/],
    [JSON.stringify({ ...good, task: "vt" }), "cell.field", /needs a length/],
    [JSON.stringify({ ...good, task: "vt", length: "1k,2k" }), "cell.field", /one length/],
    [JSON.stringify({ ...good, policy: "snapkw" }), "policy.unknown", /snapkv/],
    [JSON.stringify({ ...good, model: join(folder, "no.gguf") }), "file.not-found", /no\.gguf/],
  ];
  const text = [...bad.map(([line]) => line), "", JSON.stringify({ ...good, model: null })].join("\n");
  const { code, out, err } = await palisade(["cell", "-", "--offline", "--model", TINY_MODEL, ...ENGINES], piped(text));
  assert.equal(code, 3);
  const lines = out.trimEnd().split("\n").map((line) => JSON.parse(line));
  assert.equal(lines.length, bad.length + 1);
  bad.forEach(([line, code, message], i) => {
    const { error } = lines[i];
    assert.deepEqual([error.kind, error.code], ["input", code], line);
    assert.match(error.message, message);
  });
  assert.equal(lines.at(-1).asked.keep, "30");
  assert.equal(err.split("\n").length, bad.length + 1);
  const quiet = await palisade(["cell", "-", "--quiet"], piped("{}"));
  assert.deepEqual([quiet.code, quiet.err], [3, ""]);
});

Deno.test("palisade cell refuses what is no text, and lines without an end", async () => {
  const refused = async (bytes: Uint8Array, message: RegExp) => {
    async function* readBytes() {
      yield bytes;
    }
    const { code, out, err } = await palisade(["cell", "-"], { runtime: { readBytes } });
    assert.deepEqual([code, out], [3, ""]);
    assert.match(err, message);
  };
  await refused(Uint8Array.of(0x7b, 0xff, 0x0a), /not UTF-8/);
  await refused(Uint8Array.of(0xc3), /not UTF-8/);
  await refused(new Uint8Array(2 ** 20 + 1).fill(0x20), /more than 1048576 characters/);
  const missing = await palisade(["cell", join(folder, "none.jsonl")]);
  assert.equal(missing.code, 3);
});

Deno.test("parseCell() fills in what a line doesn't say", () => {
  const cell = parseCell('{"task":"vt","length":1024,"keep":0.2,"gate":null}', { policy: "snapkv", keep: "20%" });
  const plain = { sample: 0, seed: 1, queryAware: false, beyondTrained: false, policy: "snapkv" };
  assert.deepEqual(cell, { ...plain, task: "vt", length: "1024", keep: "0.2" });
});

const PARALLEL = "GNU parallel drives cells, and goes on with those that are not in its log";
if ((await runChild("parallel", ["--version"], {})).code !== 0) skipped(PARALLEL, "no GNU parallel", "device");
else {
  Deno.test(PARALLEL, async () => {
    const cells = [["snapkv", 30], ["snapkv", 50], ["tova", 30], ["tovah", 30]].map(([policy, keep]) => {
      return JSON.stringify({ model: TINY_MODEL, task, policy, keep });
    });
    await writeFile(join(folder, "todo.jsonl"), cells.map((cell) => `${cell}\n`).join(""));
    const command = `${process.execPath} run -A --no-check ${join(ROOT, "cli/main.ts")}`;
    /** As in docs/scale.md. */
    const run = (todo: string, flag: string) =>
      runChild("sh", [
        "-c",
        `parallel --will-cite -j 2 --joblog log ${flag} -a ${todo} 'echo {} | palisade cell - ${
          ENGINES.join(" ")
        }' >> out.jsonl`.replace("palisade cell", `${command} cell`),
      ], {
        cwd: folder,
        timeout: 240,
        env: { HOME: folder },
      });
    await writeFile(join(folder, "first.jsonl"), cells.slice(0, 2).map((cell) => `${cell}\n`).join(""));
    const first = await run("first.jsonl", "--resume");
    assert.equal(first.code, 0, first.stderr);
    const all = await run("todo.jsonl", "--resume");
    assert.equal(all.code, 1, "one job failed");
    const log = (await readFile(join(folder, "log"), "utf8")).trimEnd().split("\n").slice(1).map((line) =>
      line.split("\t")
    );
    assert.deepEqual(log.map((line) => [line[0], line[6]]).sort(), [["1", "0"], ["2", "0"], ["3", "0"], ["4", "3"]]);
    const lines = (await readFile(join(folder, "out.jsonl"), "utf8")).trimEnd().split("\n").map((line) =>
      JSON.parse(line)
    );
    const done = lines.filter(({ id }) => id), keeps = done.map(({ asked }) => `${asked.policy} ${asked.keep}`).sort();
    assert.deepEqual(keeps, ["snapkv 30", "snapkv 50", "tova 30"]);
    assert.equal(new Set(done.map(({ id }) => id)).size, 3);
    assert.equal(lines.filter(({ error }) => error?.code === "policy.unknown").length, 1);
    const again = await run("todo.jsonl", "--resume");
    assert.equal(again.code, 0, again.stderr);
    assert.equal(
      (await readFile(join(folder, "out.jsonl"), "utf8")).trimEnd().split("\n").length,
      lines.length,
      "nothing again",
    );
  });
}
