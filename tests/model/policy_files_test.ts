import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { loadModel } from "../../model/model.ts";
import { loadPolicy, parseHeadScores } from "../../model/policy_files/policy_files.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";

const MODEL = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  3,
);

/** A runtime whose files are these texts. */
function files(texts: Record<string, string>) {
  const read: string[] = [];
  return {
    read,
    readText(path: string): Promise<string> {
      read.push(path);
      return Promise.resolve(texts[path]);
    },
  };
}

async function code(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(() => undefined, (reason) => reason);
  assert.ok(error instanceof PalisadeError, `not refused: ${error}`);
  return error.code;
}

function refused(text: string, what: string, message: RegExp): void {
  assert.throws(() => parseHeadScores(text, "a.json"), (error) => {
    assert.ok(error instanceof PalisadeError, String(error));
    assert.deepEqual([error.kind, error.code, error.where], ["input", `head-scores.${what}`, "a.json"]);
    assert.match(error.message, message);
    return true;
  });
}

Deno.test("parseHeadScores() reads layers of heads", () => {
  assert.deepEqual(parseHeadScores("[[1, 0.5], [0, 2e-3]]", "a.json"), [[1, 0.5], [0, 0.002]]);
});

Deno.test("parseHeadScores() reads heads by name in any order, and means their lists", () => {
  assert.deepEqual(parseHeadScores('{"1-0": [1, 2], "0-1": 4, "0-0": [0], "1-1": [3]}', "a.json"), [[0, 4], [1.5, 3]]);
});

Deno.test("parseHeadScores() refuses what holds no scores, and says where", () => {
  refused("[[1,", "syntax", /a\.json: it is no JSON/);
  for (const text of ["3", "null", '"x"', "[]", "[1]", "{}"]) refused(text, "shape", /no list of layers|no heads/);
  refused("[[1, 2], [3]]", "shape", /layer 1 has 1 heads, layer 0 has 2/);
  refused("[[], []]", "shape", /layer 0 has 0 heads/);
  refused('{"0-0": 1, "x": 2}', "shape", /"x" is no "layer-head"/);
  refused('{"0-0": 1, "2-0": 2}', "shape", /layer 1 has 0 heads/);
  for (const bad of ["-1", "null", '"1"', "1e999", "[1]"]) refused(`[[1, ${bad}]]`, "value", /layer 0, head 1 is/);
  refused('{"0-1": 1}', "value", /layer 0, head 0 is/);
  refused('{"0-0": ["a"]}', "value", /layer 0, head 0 is/);
  refused('{"0-0": []}', "value", /layer 0, head 0 is/);
  refused("[[0, 0]]", "value", /no head scores above 0/);
});

Deno.test("loadPolicy() reads the file that headkv names, also inside another policy, once", async () => {
  const runtime = files({ "a/b_c.json": "[[1]]" });
  assert.equal((await loadPolicy("headkv(file=a/b_c.json)", runtime)).parameters["file"], "a/b_c.json");
  assert.equal((await loadPolicy("chunkkv(headkv(file=a/b_c.json), chunk=4)", runtime)).name, "chunkkv(headkv)");
  await loadPolicy("snapkv", runtime);
  await loadPolicy("headkv", runtime);
  assert.deepEqual(runtime.read, ["a/b_c.json", "a/b_c.json"]);
  assert.equal(await code(loadPolicy("headkv(file=a/b_c.json", runtime)), "policy.syntax");
  assert.equal(await code(loadPolicy("headkv(file=none.json)", await currentRuntime())), "file.not-found");
});

Deno.test("resolvePolicy() refuses headkv with a file nobody read", () => {
  assert.throws(() => resolvePolicy("headkv(file=a.json)"), { code: "policy.file" });
});

Deno.test("openContext() gives heads what a score file says they are worth, and refuses a file of another model", async () => {
  const runtime = await currentRuntime();
  await using model = await loadModel(MODEL, runtime, { dense: "web", backend: "ts", precision: "float32" });
  const { layers, heads, kvHeads } = model.config;
  const folder = await mkdtemp(join(tmpdir(), "palisade-heads-"));
  try {
    const path = join(folder, "heads.json");
    const scores = Array.from({ length: layers }, (_, l) => Array.from({ length: heads }, () => l === 1 ? 1 : 0));
    await writeFile(path, JSON.stringify(scores));
    const policy = await loadPolicy(`headkv(file=${path}, beta=1)`, runtime);
    using context = await openContext(model, TEXT, { policy, keep: "60%" });
    const { cache, budget } = context;
    assert.equal(cache.entries(), kvHeads * layers * budget.perHead);
    assert.ok(cache.length(1, 0) > budget.perHead);
    assert.equal(cache.length(0, 0), budget.sinks + budget.window);

    await writeFile(path, JSON.stringify(scores.slice(1)));
    const other = await loadPolicy(`headkv(file=${path})`, runtime);
    assert.equal(await code(openContext(model, TEXT, { policy: other, keep: "60%" })), "policy.heads");
  } finally {
    await rm(folder, { recursive: true });
  }
});
