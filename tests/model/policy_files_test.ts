import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { loadModel } from "../../model/model.ts";
import { parseHeadScores } from "../../model/policy_files/head_scores.ts";
import { fileHash, loadPolicy, loadPolicyFile, POLICY_FILES } from "../../model/policy_files/policy_files.ts";
import { writeSoftTokens } from "../../model/policy_files/soft_tokens.ts";
import { evictDump } from "../../core/dump/evict.ts";
import { openContext } from "../../model/session.ts";
import { modelHash } from "../../model/store/identity.ts";
import { failureText } from "../../cli/failure.ts";
import { currentRuntime, type Runtime } from "../../runtime/mod.ts";
import { makeDump } from "../_helper/dumps.ts";
import { anyStatistics } from "../_helper/statistics.ts";
import { randomGate } from "../_helper/gate.ts";
import { palisade } from "../_helper/io.ts";
import { randomSoftTokens, softTokensInfo } from "../_helper/soft_tokens.ts";

const MODEL = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  3,
);

/** A runtime whose files are these texts. */
async function files(texts: Record<string, string>): Promise<Runtime & { readonly read: string[] }> {
  const read: string[] = [];
  const readText = (path: string): Promise<string> => {
    read.push(path);
    return Promise.resolve(texts[path]);
  };
  return Object.assign(Object.create(await currentRuntime()) as Runtime, { read, readText });
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
  const runtime = await files({ "a/b_c.json": "[[1]]" });
  assert.equal((await loadPolicy("headkv(file=a/b_c.json)", runtime)).parameters["file"], "a/b_c.json");
  assert.equal((await loadPolicy("chunkkv(headkv(file=a/b_c.json), chunk=4)", runtime)).name, "chunkkv(headkv)");
  await loadPolicy("snapkv", runtime);
  await loadPolicy("headkv", runtime);
  assert.deepEqual(runtime.read, ["a/b_c.json", "a/b_c.json"]);
  assert.equal(await code(loadPolicy("headkv(file=a/b_c.json", runtime)), "policy.syntax");
  assert.equal(await code(loadPolicy("headkv(file=none.json)", await currentRuntime())), "file.not-found");
});

Deno.test("resolvePolicy() names the file a policy needs; headkv scores nothing while nobody has read it", () => {
  const policy = resolvePolicy("chunkkv(headkv(file=a.json))");
  assert.deepEqual(policy.needs.file, { kind: "head-scores", name: "a.json" });
  assert.equal(resolvePolicy("headkv").needs.file, undefined);
  assert.deepEqual(resolvePolicy("judge-q(file=b)").needs.file, { kind: "soft-tokens", name: "b" });
  assert.equal(resolvePolicy("judge-q").needs.file, undefined);
  const dump = makeDump(1, { length: 50, kvHeads: 1, group: 1, layers: 1 });
  assert.throws(() => evictDump(policy, { tokens: 40 }, dump.shape, dump.layers), { code: "policy.file" });
});

Deno.test("loadPolicy() points at the file in the text when it can't be read", async () => {
  const runtime = await files({ "bad.json": "[[1," });
  for (
    const [text, at, wanted] of [
      ["headkv(file=bad.json)", 8, "head-scores.syntax"],
      ["chunkkv(chunk=4, headkv(beta=2, file=bad.json))", 33, "head-scores.syntax"],
      ["judge-q(window=8, file=nowhere)", 19, "file.not-found"],
    ] as const
  ) {
    const error = await loadPolicy(text, runtime).then(() => undefined, (reason) => reason);
    assert.ok(error instanceof PalisadeError, `${text}: ${error}`);
    assert.deepEqual([error.kind, error.code], ["input", wanted]);
    assert.ok(error.message.endsWith(`(character ${at} of "${text}")`), error.message);
  }
});

Deno.test("fileHash() follows what a file holds, for every kind", async () => {
  const runtime = await files({ a: "[[1, 2]]", b: " [[1,2]] ", c: "[[2, 1]]" });
  const hash = async (name: string) => (await loadPolicyFile(`headkv(file=${name})`, runtime)).hash;
  assert.match(await hash("a") ?? "", /^[0-9a-f]{16}$/);
  assert.equal(await hash("a"), await hash("b"));
  assert.notEqual(await hash("a"), await hash("c"));
  assert.deepEqual(Object.keys(POLICY_FILES), ["head-scores", "soft-tokens", "gate", "chunks", "statistics"]);
  await using model = await loadModel(MODEL, runtime, { dense: "web", backend: "ts", precision: "float32" });
  const gate = randomGate(model.config), soft = randomSoftTokens(model.config);
  const other = { ...gate, bias: gate.bias.map((each) => each + 1) };
  assert.notEqual(fileHash("gate", gate, runtime), fileHash("gate", other, runtime));
  const known = anyStatistics(model.config), longer = { ...known, lengths: known.lengths.map((each) => each + 1) };
  assert.notEqual(fileHash("statistics", known, runtime), fileHash("statistics", longer, runtime));
  const turned = { ...soft, embeddings: soft.embeddings.toReversed() };
  assert.notEqual(fileHash("soft-tokens", soft, runtime), fileHash("soft-tokens", turned, runtime));
  assert.equal(fileHash("soft-tokens", { ...soft, name: "another" }, runtime), fileHash("soft-tokens", soft, runtime));
});

Deno.test("the library and the command line take the same texts, and refuse the same", async () => {
  const runtime = await currentRuntime();
  await using model = await loadModel(MODEL, runtime, { dense: "web", backend: "ts", precision: "float32" });
  const { layers, heads, name } = model.config;
  const folder = await mkdtemp(join(tmpdir(), "palisade-policies-"));
  const path = (file: string) => join(folder, file);
  try {
    const scores = Array.from({ length: layers }, (_, l) => Array.from({ length: heads }, () => l + 1));
    await writeFile(path("heads.json"), JSON.stringify(scores));
    await writeFile(path("short.json"), JSON.stringify(scores.slice(1)));
    await writeFile(path("bad.json"), "{");
    const sha256 = await modelHash(MODEL, runtime), { embeddings } = randomSoftTokens(model.config);
    await writeFile(path("soft"), writeSoftTokens(softTokensInfo(model.config, sha256), embeddings));
    await writeFile(
      path("other"),
      writeSoftTokens(softTokensInfo({ ...model.config, name: `no ${name}` }), embeddings),
    );
    await writeFile(path("book.txt"), TEXT);
    const texts = [
      `headkv(file=${path("heads.json")}, window=8)`,
      `chunkkv(headkv(window=8, file=${path("heads.json")}), chunk=4)`,
      `judge-q(file=${path("soft")}, window=8)`,
      "snapkv(window=8)",
      `headkv(file=${path("short.json")}, window=8)`,
      `adakv(headkv(file=${path("bad.json")}))`,
      `headkv(file=${path("none")})`,
      `judge-q(file=${path("other")})`,
      `judge-q(file=${path("bad.json")})`,
      "judge-q",
      "headkv(files=x)",
    ];
    for (const text of texts) {
      const library = await inLibrary(text);
      const commandLine = await onCommandLine(text);
      if (typeof library === "number") assert.equal(commandLine, library, text);
      else assert.ok(`${commandLine}`.endsWith(library), `${commandLine}, but ${library}`);
      assert.equal(typeof library === "number", texts.indexOf(text) < 4, `${text}: ${library}`);
    }
  } finally {
    await rm(folder, { recursive: true });
  }

  /** Entries kept, or what is said against it, options as on the command line. */
  async function inLibrary(policy: string): Promise<number | string> {
    try {
      using context = await openContext(model, TEXT, { policy, keep: "60%" });
      return context.cache.entries();
    } catch (error) {
      assert.ok(error instanceof PalisadeError, String(error));
      return failureText(error);
    }
  }

  async function onCommandLine(policy: string): Promise<number | string> {
    const { code, out, err } = await palisade([
      ...["ask", "--context", path("book.txt"), "--question", "How many?", "--model", MODEL, "--dense", "web"],
      ...["--backend", "ts", "--policy", policy, "--keep", "60%", "--max-tokens", "1", "--json", "--quiet"],
    ]);
    if (code === 0) return JSON.parse(out).cache.kept;
    assert.equal(code, 3, err);
    return err.trim();
  }
});

Deno.test("openContext() gives heads what a score file says they are worth, and refuses a file of another model", async () => {
  const runtime = await currentRuntime();
  await using model = await loadModel(MODEL, runtime, {
    dense: "web",
    backend: "ts",
    precision: "float32",
    frame: "line",
  });
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
