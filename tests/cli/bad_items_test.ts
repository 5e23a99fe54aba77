/** One bad item never costs the others. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { ResultLine } from "../../evaluate/results/results.ts";
import { chainModel, CHATML } from "../_helper/chain_model.ts";
import { palisade } from "../_helper/io.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("bad");
const at = (name: string) => join(folder, name);
const chain = ["\n", "42", "<|im_end|>"];
await writeFile(at("short.gguf"), chainModel({ chain, template: CHATML, context: 96 }));
await writeFile(at("ok.gguf"), chainModel({ chain, template: CHATML }));
await writeFile(at("book.txt"), "It is 42.");
const ENGINES = ["--backend", "ts", "--dense", "web"];
const caseOf = (context: string) => JSON.stringify({ context, question: "?", answers: "42", maxNewTokens: 4 });

async function linesOf(name: string): Promise<ResultLine[]> {
  return (await readFile(at(name), "utf8")).trim().split("\n").map((line) => JSON.parse(line));
}

Deno.test("eval with one case too long among three measures the others, names it, and resumes without stumbling", async () => {
  const tasks = at("cases.jsonl");
  await writeFile(tasks, `${caseOf("One 42.")}\n\n${caseOf("word ".repeat(60))}\n${caseOf("Two 42.")}\n`);
  const parameters = [
    ...["eval", "--tasks", `jsonl:${tasks}`, "--models", at("short.gguf"), "--policies", "full,snapkv"],
    ...["--keep", "50%", "--out", at("out.jsonl"), ...ENGINES],
  ];
  for (const [computed, found] of [[4, 0], [0, 4]]) {
    const { code, err } = await palisade(parameters);
    assert.equal(code, 3, err);
    assert.match(err, new RegExp(`${computed} cells computed.*${found} were there`));
    const last = err.trim().split("\n").at(-1)!;
    assert.match(
      last,
      /^palisade: not measured: jsonl:.*cases\.jsonl #2: The case in .*cases\.jsonl:3 takes \d+ tokens/,
    );
    assert.match(last, /shorten it, or pass --beyond-trained$/);
    assert.deepEqual((await linesOf("out.jsonl")).map(({ sample, score }) => [sample, score]), [
      ...[[0, 100], [0, 100], [2, 100], [2, 100]],
    ]);
  }
});

Deno.test("eval knows all lengths before it reads anything", async () => {
  const tasks = at("late.jsonl");
  await writeFile(tasks, `${caseOf("One 42.")}\n${caseOf("word ".repeat(60))}\n`);
  const { err } = await palisade([
    ...["eval", "--tasks", `jsonl:${tasks}`, "--models", at("short.gguf"), "--policies", "full"],
    ...["--out", at("late.out.jsonl"), ...ENGINES],
  ]);
  assert.ok(err.indexOf("late.jsonl:2 takes") < err.indexOf("#1: 1 of"), err);
});

Deno.test("eval goes on with the policies and budgets that a sample allows", async () => {
  await writeFile(
    at("two.jsonl"),
    `${caseOf("One 42.")}\n${caseOf("It is forty-two, they say, and no more. ".repeat(8))}\n`,
  );
  // kvzip repeats what it reads: the second case leaves no room for that.
  const { code, err } = await palisade([
    ...["eval", "--tasks", `jsonl:${at("two.jsonl")}`, "--models", at("ok.gguf"), "--policies", "full,kvzip,snapkv"],
    ...["--keep", "50%", "--out", at("two.out.jsonl"), ...ENGINES],
  ]);
  assert.equal(code, 3, err);
  const cells = (await linesOf("two.out.jsonl")).map(({ sample, policy }) => `${sample} ${policy.name}`);
  assert.deepEqual(cells, ["0 full", "0 kvzip", "0 snapkv", "1 full", "1 snapkv"]);
  assert.match(err, /not measured: jsonl:.*two\.jsonl #2: .*kvzip repeats.*\(kvzip at 50%\)/);
});

Deno.test("eval refuses a length beyond memory without making it", async () => {
  const { code, err } = await palisade([
    ...["eval", "--tasks", "vt", "--length", "9999999k", "--samples", "1", "--models", at("ok.gguf")],
    ...["--policies", "full", "--out", at("huge.jsonl"), ...ENGINES],
  ]);
  assert.equal(code, 3);
  assert.match(err, /takes 10239998976 tokens.*trained on 512/);
});

Deno.test("ask refuses a question that doesn't fit before it reads, and says which", async () => {
  const ask = (model: string, ...more: string[]) => {
    const questions = ["--question", "How much?", "--question", "word ".repeat(200)];
    return palisade([
      "ask",
      "--model",
      at(model),
      "--context",
      at("book.txt"),
      "--policy",
      "snapkv",
      ...questions,
      ...ENGINES,
      ...["--frame", "line"],
      ...more,
    ]);
  };
  for (const model of ["short.gguf", "ok.gguf"]) {
    const { code, out, err } = await ask(model);
    assert.deepEqual([code, out], [3, ""], err);
    assert.match(err, /^palisade: --question: Question 2 doesn't fit: it has \d+ tokens behind \d+ of the context/);
  }
  const { code, out } = await ask("ok.gguf", "--beyond-trained", "--max-tokens", "8");
  assert.deepEqual([code, out], [0, "42\n42\n"]);
});
