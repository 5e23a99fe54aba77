import assert from "node:assert/strict";
import { appendFile, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PalisadeError } from "../../core/errors.ts";
import { cellGroups, loadCases, parseCases, parseLengths } from "../../evaluate/sweep/plan.ts";
import { splitList, splitNames } from "../../evaluate/sweep/lists.ts";
import { cellId, type CellInputs, readResults, type ResultLine, ResultsFile } from "../../evaluate/results/results.ts";
import type { Task } from "../../evaluate/tasks/interface.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { testFolder } from "../_helper/workbench.ts";

const runtime = await currentRuntime();
const folder = await testFolder("results");

function line(id: string, answer = "twelve – ü"): ResultLine {
  return { format: 1, id, answer } as ResultLine;
}

async function refusal(work: () => unknown): Promise<PalisadeError> {
  try {
    await work();
  } catch (error) {
    assert.ok(error instanceof PalisadeError, `${error}`);
    return error;
  }
  throw new Error("not refused");
}

Deno.test("ResultsFile appends, knows what is there, and goes on in an old file", async () => {
  const path = join(folder, "append.jsonl");
  {
    await using file = await ResultsFile.open(runtime, path);
    await file.append(line("a"));
    assert.ok(file.has("a") && !file.has("b"));
  }
  {
    await using file = await ResultsFile.open(runtime, path);
    assert.ok(file.has("a"));
    await file.append(line("b"));
  }
  const { lines, torn, duplicates } = await readResults(runtime, path);
  assert.deepEqual([lines.map(({ id }) => id), torn, duplicates], [["a", "b"], false, 0]);
});

Deno.test("ResultsFile refuses a second writer, and a new file without a line is removed again", async () => {
  const path = join(folder, "single.jsonl");
  {
    await using file = await ResultsFile.open(runtime, path);
    const error = await refusal(() => ResultsFile.open(runtime, path));
    assert.deepEqual([error.kind, error.code, error.where], ["resources", "file.locked", path]);
    assert.deepEqual(file.before, []);
  }
  assert.equal(await runtime.host!.info(path), undefined);
  await writeFile(path, "");
  await (await ResultsFile.open(runtime, path))[Symbol.asyncDispose]();
  assert.equal((await runtime.host!.info(path))?.size, 0, "what was there stays");
});

Deno.test("ResultsFile cuts off a last line torn at any byte, and nothing else", async () => {
  const path = join(folder, "torn.jsonl");
  const first = `${JSON.stringify(line("a"))}\n`, second = `${JSON.stringify(line("b"))}\n`;
  const bytes = new TextEncoder().encode(first + second);
  const whole = new TextEncoder().encode(first).length;
  for (let cut = whole; cut <= bytes.length; cut++) {
    await writeFile(path, bytes);
    await truncate(path, cut);
    const kept = cut === bytes.length ? ["a", "b"] : ["a"];
    assert.deepEqual((await readResults(runtime, path)).lines.map(({ id }) => id), kept);
    await using file = await ResultsFile.open(runtime, path);
    assert.deepEqual(file.before.map(({ id }) => id), kept);
    assert.equal(await readFile(path, "utf8"), cut === bytes.length ? first + second : first);
    await file.append(line("c"));
    assert.equal((await readResults(runtime, path)).lines.at(-1)!.id, "c");
  }
});

Deno.test("readResults() keeps the first of equal ids and counts the others", async () => {
  const path = join(folder, "twice.jsonl");
  await writeFile(
    path,
    [line("a", "1"), line("b"), line("a", "2")].map((each) => `${JSON.stringify(each)}\n`).join(""),
  );
  const { lines, duplicates } = await readResults(runtime, path);
  assert.equal(duplicates, 1);
  assert.deepEqual(lines.map(({ answer }) => answer)[0], "1");
});

Deno.test("readResults() refuses a damaged line in the middle and other formats, and says which", async () => {
  const path = join(folder, "damaged.jsonl");
  await writeFile(path, `${JSON.stringify(line("a"))}\n{"half":\n`);
  await appendFile(path, `${JSON.stringify(line("b"))}\n`);
  const damaged = await refusal(() => readResults(runtime, path));
  assert.equal(damaged.code, "results.damaged");
  assert.match(damaged.message, /line 2 of .*damaged\.jsonl/);
  await writeFile(path, '{"id":"a","format":99}\n');
  assert.match((await refusal(() => readResults(runtime, path))).message, /format is 99/);
});

const INPUTS: CellInputs = {
  format: 1,
  model: { name: "m", sha256: "00" },
  frame: "f",
  sampleHash: "s",
  task: "vt",
  length: 1024,
  sample: 0,
  seed: 1,
  haystack: { name: "moby-dick", sha256: "11" },
  protocol: "context-first",
  maxNewTokens: 30,
  policy: { name: "snapkv", parameters: { window: 32, kernel: 5 } },
  keep: { fraction: 0.2 },
  budget: { length: 9, fraction: 0.2, perHead: 1, perLayer: 2, total: 4, sinks: 0, window: 1, windowAsked: 32 },
  engines: { palisade: "0.1.0", backend: "ts", dense: "web" },
};

Deno.test("cellId() changes with every input and not with the order of fields", () => {
  const id = cellId(INPUTS, runtime);
  assert.match(id, /^[0-9a-f]{32}$/);
  assert.equal(cellId(Object.fromEntries(Object.entries(INPUTS).reverse()) as unknown as CellInputs, runtime), id);
  /** Every input, one after the other, replaced by something else. */
  const walk = (value: unknown, replace: (other: unknown) => CellInputs): void => {
    if (value !== null && typeof value === "object") {
      for (const [name, inner] of Object.entries(value)) walk(inner, (other) => replace({ ...value, [name]: other }));
    } else assert.notEqual(cellId(replace("other"), runtime), id, `${value}`);
  };
  walk(INPUTS, (other) => other as CellInputs);
});

Deno.test("splitList() cuts at commas outside brackets", () => {
  assert.deepEqual(splitList("full, adakv(snapkv, safeguard=0.2),snapkv(window=16,kernel=3)"), [
    "full",
    "adakv(snapkv, safeguard=0.2)",
    "snapkv(window=16,kernel=3)",
  ]);
  assert.deepEqual(splitList(" , "), []);
});

Deno.test("splitNames() keeps commas, blanks and brackets in quotation marks", async () => {
  assert.deepEqual(splitNames('jsonl:"a, b.jsonl",vt,qa:" c"', "tasks"), ["jsonl:a, b.jsonl", "vt", "qa: c"]);
  assert.deepEqual(splitNames('"say \\"hi\\" (1.gguf","C:\\x\\y.gguf"', "models"), [
    'say "hi" (1.gguf',
    "C:\\x\\y.gguf",
  ]);
  assert.deepEqual(splitNames("a file (1).gguf,b (2,3).gguf", "models"), ["a file (1).gguf", "b (2,3).gguf"]);
  for (const bad of ['jsonl:"a.jsonl', "jsonl:a(b.jsonl,vt"]) {
    const error = await refusal(() => splitNames(bad, "tasks"));
    assert.deepEqual([error.code, error.where], ["list.syntax", "tasks"]);
  }
});

Deno.test("a list that names one thing twice is refused, by whatever words", async () => {
  for (const policies of ["snapkv,snapkv", "snapkv,snapkv(window=32)", "full,full"]) {
    assert.equal((await refusal(() => parseCases(policies, "20%"))).code, "list.repeated", policies);
  }
  for (const keep of ["20%,0.2", "50,50"]) {
    assert.match((await refusal(() => parseCases("full", keep))).message, /\bkeep\b/);
  }
  assert.match((await refusal(() => parseLengths("1k,1024"))).message, /1k and 1024/);
  const files: Record<string, string> = { a: "[[1,2],[3,4]]", b: "[[1, 2], [3, 4]]" };
  const reading = { ...runtime, readText: (path: string) => Promise.resolve(files[path]) };
  const same = await refusal(() => loadCases(reading, "headkv(file=a),headkv(file=b)", "20%"));
  assert.equal(same.code, "list.repeated");
});

Deno.test("a policy's file may have commas, blanks and quotation marks in its name", async () => {
  const names: string[] = [];
  const reading = {
    ...runtime,
    readText(path: string) {
      names.push(path);
      return Promise.resolve("[[1,2],[3,4]]");
    },
  };
  const [{ asked }] = await loadCases(reading, 'headkv(file="a, (b) \\"c\\".json")', "20%");
  assert.deepEqual([names, asked.policy], [['a, (b) "c".json'], 'headkv(file="a, (b) \\"c\\".json")']);
});

Deno.test("loadCases() knows a policy's file by what it holds", async () => {
  const files: Record<string, string> = { a: "[[1,2],[3,4]]", b: "[[1,2],[3,5]]", c: "[[1, 2], [3, 4]]" };
  const reading = { ...runtime, readText: (path: string) => Promise.resolve(files[path]) };
  const cases = await loadCases(reading, "headkv(file=a),headkv(file=b),adakv(headkv(file=c)),headkv,snapkv", "20%");
  const [a, b, c, ...none] = cases.map(({ policy }) => policy.parameters.file);
  assert.match(String(a), /^[0-9a-f]{16}$/);
  assert.ok(a === c && a !== b);
  assert.deepEqual(none, ["even", undefined]);
  assert.deepEqual(cases.map(({ asked }) => asked.policy).slice(0, 2), ["headkv(file=a)", "headkv(file=b)"]);
});

Deno.test("parseCases() takes every policy at every budget, full once and first", () => {
  const cases = parseCases("snapkv,full", "20%,10%");
  assert.deepEqual(cases.map(({ asked }) => `${asked.policy} ${asked.keep}`), [
    "full 100%",
    "snapkv 20%",
    "snapkv 10%",
  ]);
});

Deno.test("parseLengths() reads k as 1024", async () => {
  assert.deepEqual(parseLengths("1k, 2K,800"), [1024, 2048, 800]);
  for (const bad of ["1m", "0", "-1k", "1.5k", "k"]) {
    assert.equal((await refusal(() => parseLengths(bad))).code, "length.syntax");
  }
  assert.equal((await refusal(() => parseLengths(""))).code, "list.empty");
});

Deno.test("cellGroups() goes sample by sample and runs tasks with texts of their own once", () => {
  const task = (name: string, sized: boolean, available?: number) => ({ name, sized, available }) as Task;
  const groups = cellGroups([task("a", true), task("own", false, 1), task("b", true)], [1024, 2048], 2);
  assert.deepEqual(groups.map((group) => `${group.task.name} ${group.length} ${group.sample}`), [
    "own null 0",
    "a 1024 0",
    "b 1024 0",
    "a 1024 1",
    "b 1024 1",
    "a 2048 0",
    "b 2048 0",
    "a 2048 1",
    "b 2048 1",
  ]);
});
