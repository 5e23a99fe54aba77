/** Two things of one name are two things, or an error. */
import assert from "node:assert/strict";
import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { ResultLine } from "../../evaluate/results/results.ts";
import { summarise } from "../../evaluate/results/summary.ts";
import { chainModel, CHATML } from "../_helper/chain_model.ts";
import { palisade } from "../_helper/io.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("namesakes");
const at = (name: string) => join(folder, name);
const caseOf = (context: string, answers = "42") => `${JSON.stringify({ context, question: "How much?", answers })}\n`;
for (const name of ["a", "b", "with, comma"]) await mkdir(at(name));
await writeFile(at("a/cases.jsonl"), caseOf("The sum is 42.") + "\n" + caseOf("It is 42, they say."));
await writeFile(at("b/cases.jsonl"), caseOf("The difference is 7.", "7"));
await writeFile(at("with, comma/my cases.jsonl"), caseOf("It is 42."));
for (const [name, say] of [["a/m.gguf", "42"], ["b/m.gguf", "7"]]) {
  await writeFile(at(name), chainModel({ chain: ["\n", say, "<|im_end|>"], template: CHATML }));
}
await copyFile(at("a/m.gguf"), at("same.gguf"));
const A = `jsonl:${at("a/cases.jsonl")}`, B = `jsonl:${at("b/cases.jsonl")}`;

function evaluate(out: string, tasks: readonly string[], models = at("a/m.gguf")) {
  return palisade([
    ...["eval", "--out", at(out), "--models", models, "--policies", "full", "--backend", "ts", "--dense", "web"],
    ...tasks.flatMap((each) => ["--tasks", each]),
  ]);
}

async function linesOf(out: string): Promise<ResultLine[]> {
  return (await readFile(at(out), "utf8")).trim().split("\n").map((line) => JSON.parse(line));
}

Deno.test("eval computes two jsonl files of one name, and report tells them apart", async () => {
  const both = await evaluate("both.jsonl", [`${A},${B}`]);
  assert.equal(both.code, 0, both.err);
  assert.match(both.err, /3 cells computed/);
  assert.equal((await evaluate("turns.jsonl", [A])).code, 0);
  assert.equal((await evaluate("turns.jsonl", [B])).code, 0);
  for (const out of ["both.jsonl", "turns.jsonl"]) {
    const { rows } = summarise(await linesOf(out));
    const found = rows.filter(({ task }) => task !== "all").map(({ task, samples, score }) => [task, samples, score]);
    assert.deepEqual(found.sort(), [
      [`jsonl:cases.jsonl (${at("a/cases.jsonl")})`, 2, 100],
      [`jsonl:cases.jsonl (${at("b/cases.jsonl")})`, 1, 0],
    ]);
    const { out: text } = await palisade(["report", at(out)]);
    for (const name of ["a/cases", "b/cases"]) assert.ok(text.includes(`(${at(`${name}.jsonl`)})`), text);
  }
});

Deno.test("a file that was changed between two runs is another task in the report; old lines join the only one", async () => {
  const lines = await linesOf("both.jsonl");
  const changed = lines.map((line) => ({ ...line, source: { ...line.source!, file: "cases.jsonl" } }));
  const names = (some: ResultLine[]) => [...new Set(summarise(some).lines.map(({ task }) => task))].sort();
  assert.deepEqual(names(changed).map((name) => /^jsonl:cases\.jsonl \([0-9a-f]{8}\)$/.test(name)), [true, true]);
  const { source: _, ...old } = lines[0];
  assert.deepEqual(names([old, lines[1]]), ["jsonl:cases.jsonl"]);
});

Deno.test("report tells models of one name apart, haystacks too, and policies by what their files hold", async () => {
  const { code, err } = await evaluate("models.jsonl", [A], `${at("a/m.gguf")},${at("b/m.gguf")}`);
  assert.equal(code, 0, err);
  const lines = await linesOf("models.jsonl");
  const { rows } = summarise(lines);
  assert.deepEqual(
    [...new Set(rows.map(({ model }) => model))].map((name) => /^m \([0-9a-f]{8}\)$/.test(name)),
    [
      true,
      true,
    ],
  );
  const [line] = lines;
  const hay = (name: string, sha256: string) => ({
    ...line,
    source: undefined,
    task: "vt",
    sampleHash: sha256,
    haystack: { name, sha256 },
  });
  const hays = summarise([hay("x.txt", "1".repeat(64)), hay("y.txt", "2".repeat(64))]).rows;
  assert.deepEqual(hays.slice(0, 2).map(({ task }) => task), ["vt (x.txt)", "vt (y.txt)"]);
  const gate = (hash: string) => ({
    ...line,
    policy: { name: "gate", parameters: { combine: "none", gate: hash } },
    asked: { policy: "gate", keep: "20%" },
  });
  const gates = summarise([gate("aa"), gate("bb")]).rows;
  assert.deepEqual(gates.map(({ policy }) => policy), ["gate (gate=aa)", "gate (gate=bb)"]);
});

Deno.test("a comma and a blank in a path have a way to be said", async () => {
  const { code, err } = await evaluate("comma.jsonl", [`jsonl:"${at("with, comma/my cases.jsonl")}"`]);
  assert.equal(code, 0, err);
  assert.equal((await linesOf("comma.jsonl"))[0].source!.file, at("with, comma/my cases.jsonl"));
});

/** Lists that name one thing twice, by whatever words. */
const TWICE: [string, string[], string?][] = [
  ["--tasks", [A, A]],
  ["--tasks", [`${A},jsonl:${folder}/b/../a/cases.jsonl`]],
  ["--tasks", ["ruler", "vt"]],
  ["--models", [A], `${at("a/m.gguf")},${at("same.gguf")}`],
];

for (const [option, tasks, models] of TWICE) {
  Deno.test(`eval refuses ${option} that names one thing twice: ${models ? "two copies" : tasks.map((each) => each.slice(-8))}`, async () => {
    const { code, err } = await evaluate("twice.jsonl", tasks, models);
    assert.equal(code, 3);
    assert.match(err, new RegExp(`${option} names .*twice`));
  });
}

Deno.test("report reads a file named twice once, and says so", async () => {
  const { code, out, err } = await palisade(["report", at("both.jsonl"), `${folder}/a/../both.jsonl`]);
  assert.equal(code, 0, err);
  assert.match(err, /it is read once/);
  assert.match(out, /^3 cells/m);
});

Deno.test("report reads past blank lines, and eval goes on behind them", async () => {
  await writeFile(at("blank.jsonl"), `\n${(await readFile(at("both.jsonl"), "utf8")).replaceAll("\n", "\n \n")}\n`);
  const { code, out, err } = await palisade(["report", at("blank.jsonl")]);
  assert.equal(code, 0, err);
  assert.match(out, /^3 cells/m);
  assert.match((await evaluate("blank.jsonl", [A, B])).err, /0 cells computed.*3 were there/);
});
