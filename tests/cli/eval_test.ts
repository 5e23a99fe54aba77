/** `palisade eval`, `report` and `show` end to end on a tiny model. */
import assert from "node:assert/strict";
import { appendFile, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { readResults, type ResultLine } from "../../evaluate/results/results.ts";
import { probeNode } from "../../model/dense/ort/node.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { findChromium, launchChromium, NO_CHROMIUM, watchPage } from "../_helper/chromium.ts";
import { killedSweeps } from "../_helper/eval_kills.ts";
import { palisade } from "../_helper/io.ts";
import { skipped } from "../_helper/skip.ts";
import { proseFile, testFolder, TINY_MODEL, tinyModel } from "../_helper/workbench.ts";

const folder = await testFolder("eval");
const prose = await proseFile(folder);
const ENGINES = ["--backend", "wasm", "--dense", "web"];
const SMALL = ["--models", TINY_MODEL, "--haystack", prose, ...ENGINES];
const SWEEP = ["--tasks", "niah_single_1,vt", "--length", "1k,1200", "--policies", "full,snapkv,layer-defensive"];

async function linesOf(path: string): Promise<readonly ResultLine[]> {
  return (await readResults(await currentRuntime(), path)).lines;
}

for (const command of ["eval", "report", "show"]) {
  Deno.test(`${command} --help fits a screen`, async () => {
    const { code, out } = await palisade([command, "--help"]);
    assert.equal(code, 0);
    const lines = out.trimEnd().split("\n");
    assert.ok(lines.length <= 24, `${lines.length} lines`);
    for (const line of lines) assert.ok(line.length <= 80, line);
  });
}

const OUT = ["--out", join(folder, "refused.jsonl")];
const REFUSED: [string, string[], number, RegExp][] = [
  ["a missing --out", ["eval"], 2, /--out/],
  ["an unknown task", ["eval", ...OUT, "--tasks", "niah_singel_1"], 3, /niah_single_1/],
  ["an unknown policy", ["eval", ...OUT, "--policies", "full,snapkw"], 3, /--policies: .*snapkv/],
  ["a policy's file that isn't there", ["eval", ...OUT, "--policies", "headkv(file=no.json)"], 3, /no\.json/],
  ["a bad budget", ["eval", ...OUT, "--keep", "20%,0"], 3, /--keep/],
  ["a bad length", ["eval", ...OUT, "--length", "1m"], 3, /--length.*1m/],
  ["no models", ["eval", ...OUT, "--models", ","], 3, /--models/],
  ["a haystack that isn't there", ["eval", ...OUT, "--haystack", join(folder, "no.txt")], 3, /no\.txt/],
  ["no samples", ["eval", ...OUT, "--samples", "0"], 2, /from 1 to/],
  ["results that aren't there", ["report", join(folder, "no.jsonl")], 3, /no\.jsonl/],
  ["a context that isn't there", ["show", "--context", join(folder, "no.txt")], 3, /no\.txt/],
];

for (const [what, parameters, code, message] of REFUSED) {
  Deno.test(`${parameters[0]} refuses ${what} with exit code ${code}`, async () => {
    const result = await palisade(parameters);
    assert.equal(result.code, code, result.err);
    assert.match(result.err, message);
    assert.equal(result.out, "");
  });
}

Deno.test("eval refuses samples longer than the model was trained on, unless told otherwise", async () => {
  const parameters = ["eval", ...SMALL, "--tasks", "niah_single_1", "--length", "5000", "--samples", "1"];
  const { code, err } = await palisade([...parameters, "--out", join(folder, "long.jsonl")]);
  assert.equal(code, 3);
  assert.match(err, /trained on 4096.*--beyond-trained/);
});

Deno.test("eval that fails before its first cell leaves no file", async () => {
  const names = (await readdir(folder)).filter((name) => /^(refused|long)\./.test(name));
  assert.deepEqual(names, []);
});

Deno.test("eval keeps to one dense engine unless told, so that results made before can be added to", async () => {
  const out = join(folder, "engines.jsonl"), auto = SMALL.slice(0, -2);
  const parameters = ["--tasks", "vt", "--length", "1k", "--samples", "1", "--policies", "full", "--threads", "2"];
  const { code, err } = await palisade(["eval", ...auto, ...parameters, "--out", out]);
  assert.equal(code, 0, err);
  const [{ engines }] = await linesOf(out);
  const node = await probeNode();
  const ours = /^own WebAssembly kernels, [^;]+$/;
  if (node.available) assert.equal(engines.dense, `onnxruntime-node ${node.version}, 2 threads, quantised weights`);
  else assert.match(engines.dense, ours);
});

Deno.test("eval reads a policy's file, and other content makes other cells", async () => {
  const scores = join(folder, "scores.json"), out = join(folder, "headkv.jsonl");
  const parameters = ["eval", ...SMALL, "--tasks", "niah_single_1", "--samples", "1", "--out", out];
  const policies = ["--policies", `headkv(file=${scores})`];
  const model = await tinyModel();
  const { layers, kvHeads } = model.config;
  await model[Symbol.asyncDispose]();
  for (const top of [1, 9]) {
    const rows = Array.from({ length: layers }, (_, l) => Array.from({ length: kvHeads }, (_, h) => 1 + top * (l + h)));
    await writeFile(scores, JSON.stringify(rows));
    const { code, err } = await palisade([...parameters, ...policies]);
    assert.equal(code, 0, err);
    assert.match(err, /1 cells computed/);
  }
  const [one, other] = await linesOf(out);
  assert.notDeepEqual(one.kept, other.kept);
  assert.match((await palisade([...parameters, ...policies])).err, /0 cells computed.*1 were there/);
  await writeFile(scores, "[[1]]");
  const wrong = await palisade([...parameters, ...policies]);
  assert.equal(wrong.code, 3);
  assert.match(wrong.err, /--policies: Head scores have 1 layers/);
});

Deno.test("eval writes one readable line per cell, and nothing twice", async () => {
  const out = join(folder, "whole.jsonl");
  const parameters = ["eval", ...SMALL, ...SWEEP, "--keep", "30%,50", "--samples", "2", "--out", out];
  const first = await palisade(parameters);
  assert.equal(first.code, 0, first.err);
  assert.match(first.err, /40 cells computed.*0 were there already/);
  const lines = await linesOf(out);
  assert.equal(new Set(lines.map(({ id }) => id)).size, 2 * 2 * 2 * 5);
  for (const line of lines) {
    assert.ok(line.tokens.context + line.tokens.question + line.maxNewTokens <= line.length!);
    assert.equal(line.kept.flat().reduce((a, b) => a + b, 0) * 2 * 16 * 4, line.bytes.live);
    assert.ok(line.kl.mean >= 0 && line.score >= 0 && line.score <= 100);
    if (line.policy.name === "full") assert.deepEqual([line.answer, line.kl.mean], [line.full.answer, 0]);
    else assert.ok(line.bytes.live < line.bytes.full && line.kl.mean > 0);
    assert.equal(line.shading !== undefined, line.sample === 0);
  }
  const again = await palisade(parameters);
  assert.match(again.err, /0 cells computed.*40 were there already/);
  const more = await palisade(parameters.map((each) => each === "30%,50" ? "30%,60" : each));
  assert.match(more.err, /16 cells computed.*24 were there already/);
});

Deno.test("eval --query-aware reads the question with the context and says so", async () => {
  const out = join(folder, "aware.jsonl");
  const one = ["--tasks", "niah_single_1", "--policies", "snapkv", "--samples", "1"];
  await palisade(["eval", ...SMALL, ...one, "--out", out]);
  await palisade(["eval", ...SMALL, ...one, "--out", out, "--query-aware"]);
  const [plain, aware] = await linesOf(out);
  assert.deepEqual([plain.protocol, aware.protocol], ["context-first", "query-aware"]);
  assert.ok(aware.tokens.context > plain.tokens.context && aware.tokens.question < plain.tokens.question);
});

Deno.test("eval goes on after an interruption, with the policies that read on their own", async () => {
  const out = join(folder, "own.jsonl");
  const parameters = ["eval", ...SMALL, "--tasks", "vt", "--policies", "snapkv", "--samples", "2", "--out", out];
  const interrupt = new AbortController();
  interrupt.abort(new DOMException("Interrupted", "AbortError"));
  const stopped = await palisade(parameters, { signal: interrupt.signal });
  assert.equal(stopped.code, 130);
  assert.equal((await palisade(parameters)).code, 0);
  assert.equal((await linesOf(out)).length, 2);
});

Deno.test("C6: eval killed again and again loses a cell a time at most, and ends as an undisturbed run does", async () => {
  const killing = { folder: join(folder, "kills"), kills: 10, runtime: await currentRuntime(), seed: 7 };
  const { kills, sweeps, mostLost, torn: _, ...wrong } = await killedSweeps(killing);
  assert.deepEqual(wrong, { gone: 0, twice: 0, others: 0, stale: 0 });
  assert.ok(kills === 10 && sweeps >= 1 && mostLost <= 1, `${kills} kills, ${sweeps} sweeps, ${mostLost} cells lost`);
});

Deno.test("report prints a table, writes CSV, and says when a line is torn", async () => {
  const path = join(folder, "whole.jsonl"), csv = join(folder, "whole.csv");
  await appendFile(path, '{"format":1,"id":"torn');
  const { code, out, err } = await palisade(["report", path, "--csv", csv]);
  assert.equal(code, 0, err);
  assert.match(err, /last line .* is torn/);
  assert.match(out, /layer-defensive .* 30%/);
  assert.match(out, /solved by the full cache .*: none yet/);
  for (const row of out.split("\n")) assert.ok(row.length <= 80, row);
  const twice = await palisade(["report", path, join(folder, "headkv.jsonl"), path]);
  assert.match(twice.out, new RegExp(`^${Number(/^(\d+) cells/m.exec(out)![1]) + 2} cells`, "m"));
  const rows = (await readFile(csv, "utf8")).trim().split("\r\n");
  const against = await palisade(["report", path, "--against", "snapkv"]);
  assert.match(against.out, /layer-defensive .* 30%/);
  assert.doesNotMatch(against.out, /^snapkv/m);
  for (const row of against.out.split("\n")) assert.ok(row.length <= 80, row);
  // two lengths × (full + 2 policies × 3 budgets) × (two tasks + all)
  assert.equal(rows.length, 1 + 2 * 7 * 3);
});

Deno.test("report refuses an empty file and a sample whose context is not stored", async () => {
  const empty = join(folder, "empty.jsonl");
  await writeFile(empty, "");
  assert.match((await palisade(["report", empty])).err, /No results/);
  const { code, err } = await palisade(["report", join(folder, "whole.jsonl"), "--sample", "vt#9"]);
  assert.equal(code, 3);
  assert.match(err, /niah_single_1#1/);
  const against = await palisade(["report", join(folder, "whole.jsonl"), "--against", "snapkw"]);
  assert.equal(against.code, 3);
  assert.match(against.err, /--against: .*snapkw.*layer-defensive/s);
});

const IN_BROWSER = "report --html opens in Chromium with every chart drawn and no complaint";
if (findChromium() === undefined) skipped(IN_BROWSER, NO_CHROMIUM, "file");
else {
  Deno.test({
    name: IN_BROWSER,
    // The driver keeps timers and pipes of its own.
    sanitizeOps: false,
    sanitizeResources: false,
    async fn() {
      const html = join(folder, "whole.html");
      assert.equal((await palisade(["report", join(folder, "whole.jsonl"), "--html", html])).code, 0);
      const browser = await launchChromium();
      try {
        const page = await browser.newPage();
        const complaints = watchPage(page);
        await page.goto(pathToFileURL(html).href);
        const drawn = await page.$$eval("figure.chart svg", (charts) =>
          charts.map((chart) => {
            const { width, height } = chart.getBoundingClientRect();
            return { width, height, marks: chart.querySelectorAll("path, rect").length };
          }));
        assert.equal(drawn.length, 3);
        for (const { width, height, marks } of drawn) assert.ok(width > 200 && height > 100 && marks > 20);
        assert.equal(await page.locator("table").count(), 2);
        assert.ok(await page.locator(".shading span").count() > 20);
        assert.ok(!(await page.content()).includes("<script"));
        assert.deepEqual(complaints, []);
      } finally {
        await browser.close();
      }
    },
  });
}

Deno.test("show shades every token in the terminal and as HTML", async () => {
  const html = join(folder, "show.html");
  const parameters = ["show", "--context", prose, "--model", TINY_MODEL, ...ENGINES, "--keep", "10%", "--html", html];
  const text = (await readFile(prose, "utf8")).slice(0, 2000);
  const runtime = { readText: () => Promise.resolve(text) };
  const plain = await palisade(parameters, { runtime });
  assert.equal(plain.code, 0, plain.err);
  assert.ok(!plain.out.includes("\x1b"), "no colours where standard output is no terminal");
  assert.match(plain.out, /self-gate at 10% of .* entries kept \(10\.0 %\)/);
  assert.ok((await palisade([...parameters, "--color", "truecolor"], { runtime })).out.includes("\x1b[97;48;2;"));
  const colours = { readText: runtime.readText, isTerminal: () => true };
  const environment = (values: Record<string, string>) => (name: string) => values[name];
  const asked = { ...colours, environment: environment({ TERM: "xterm-256color" }) };
  assert.ok((await palisade(parameters, { runtime: asked })).out.includes("48;5;"));
  const refused = { ...colours, environment: environment({ TERM: "xterm-256color", NO_COLOR: "1" }) };
  assert.ok(!(await palisade(parameters, { runtime: refused })).out.includes("\x1b"));
  assert.match(await readFile(html, "utf8"), /<span class="k\d+">/);
});
