/** What every command prints under --json, where it works and where it fails, fits the published schema. */
import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { leaves } from "../../cli/command.ts";
import { allCommands } from "../../cli/list.ts";
import { sectionOf } from "../../cli/settings/keys.ts";
import { embedPackageData } from "../../runtime/package_data.ts";
import { MODELS } from "../../model/store/registry.ts";
import { type CliOptions, palisade } from "../_helper/io.ts";
import { findRedis, startRedis } from "../_helper/redis.ts";
import { fitting, SCHEMA, schemaProblems } from "../_helper/schema.ts";
import { skipped } from "../_helper/skip.ts";
import { proseFile, testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const folder = await testFolder("json");
const at = (name: string) => join(folder, name);
const book = at("book.txt"), kept = at("kept"), results = at("results.jsonl"), cases = at("cases.jsonl");
const prose = (await readFile(await proseFile(folder), "utf8")).slice(0, 600);
await writeFile(book, prose);
await writeFile(cases, `${JSON.stringify({ context: prose, question: "What is near?", answers: "gates" })}\n`);
const cell = JSON.stringify({ task: `jsonl:${cases}`, policy: "snapkv" });
await writeFile(at("cells.jsonl"), `${cell}\n{"task":"none-such"}\nno JSON\n`);
const DUMP = fileURLToPath(new URL("../data/golden/tiny-L97.safetensors", import.meta.url));

const MODEL = ["--model", TINY_MODEL, "--dense", "web", "--backend", "wasm", "--threads", "1"];
const SWEEP = ["--models", TINY_MODEL, "--dense", "web", "--backend", "wasm", "--threads", "1", "--out", results];
const ASK = ["ask", ...MODEL, "--question", "How many?", "--max-tokens", "4"];
const EXPLAIN = ["--explain", "--policy", "defensive"];

/** Models of a cache folder of its own, with a file where the first of them belongs. */
const cache = at("cache");
await mkdir(join(cache, "models"), { recursive: true });
await writeFile(join(cache, "models", MODELS[0].file), "no model");
process.env["PALISADE_CACHE"] = cache;
// Chapters of the demo that the tiny model can read.
const chapter = () => Promise.resolve(new TextEncoder().encode(prose));
embedPackageData({
  "demo/moby-dick-2.txt": chapter,
  "demo/moby-dick-7.txt": chapter,
  "schema/palisade.schema.json": () => readFile(new URL("../../cli/schema/palisade.schema.json", import.meta.url)),
});

/** What works, by command: lines in this order, since later ones use what earlier ones wrote. */
const WORKING: readonly (readonly [command: string, parameters: readonly string[], options?: CliOptions])[] = [
  ["ask", [...ASK, "--context", book, ...EXPLAIN]],
  ["ask", [...ASK, "--context", book, "--policy", "kvzip", "--refit", "both", "--max-cache", "200", "--keep", "20%"]],
  ["ask", [...ASK, "--context", book, "--risk", "0.2", "--policy", "defensive", "--quiet"]],
  ["ask", [...ASK, "--context", book, "--policy", "snapkv(merge=sum, key-channels=60%)"]],
  ["read", ["read", ...MODEL, "--context", book, "--out", at("book.palisade"), ...EXPLAIN]],
  ["read", ["read", ...MODEL, "--context", book, "--snapshots", kept, "--policy", "snapkv", "--keep", "25%"]],
  ["snapshots list", ["snapshots", "list", "--snapshots", kept]],
  ["snapshots show", ["snapshots", "show", at("book.palisade")]],
  ["snapshots verify", ["snapshots", "verify", "--snapshots", kept]],
  ["snapshots prune", ["snapshots", "prune", "--snapshots", kept, "--to", "0"]],
  ["snapshots key", ["snapshots", "key", at("key")]],
  ["demo", ["demo", ...MODEL]],
  ["show", ["show", ...MODEL, "--context", book, "--policy", "snapkv"]],
  ["evict", ["evict", DUMP, "--write", at("kept.npy"), "--policy", "knorm"]],
  ["eval", ["eval", ...SWEEP, "--tasks", `jsonl:${cases}`, "--policies", "full,snapkv", "--keep", "20%,50"]],
  ["report", ["report", results]],
  ["report", ["report", results, "--against", "snapkv"]],
  ["calibrate", ["calibrate", ...MODEL, "--tokens", "1000", "--kinds", "prose,json", "--out", at("a.safetensors")]],
  [
    "calibrate",
    ["calibrate", ...MODEL, "--tokens", "1000", "--kind", "judge-q", "--steps", "1", "--out", at("b.safetensors")],
  ],
  ["models list", ["models", "list"]],
  ["models path", ["models", "path", MODELS[0].name]],
  ["models rm", ["models", "rm", MODELS[0].name]],
  ["policies", ["policies"]],
  ["policies", ["policies", "--steps"]],
  ["doctor", ["doctor"]],
  ["doctor", ["doctor", "--model", TINY_MODEL]],
  ["config show", ["config", "show"], { variables: ["PALISADE_KEPP"], runtime: { environment: settings } }],
  ["config show", ["config", "show", "ask"]],
  ["completion", ["completion", "zsh"]],
  ["schema", ["schema"]],
  ["schema", ["schema", "models", "list"]],
];

function settings(name: string): string | undefined {
  return { PALISADE_CONFIG: "none", PALISADE_KEEP: "10%", PALISADE_QUIET: "1" }[name];
}

const tried = new Set<string>();
for (const [command, parameters, options] of WORKING) {
  const shown = parameters.map((each) => each.replace(folder, "").replace(TINY_MODEL, "MODEL")).join(" ");
  Deno.test(`${shown} --json prints one value of the schema`, async () => {
    const { code, out, err } = await palisade([...parameters, "--json"], options);
    assert.equal(code, 0, err);
    fitting(sectionOf(command), out);
    assert.deepEqual(schemaProblems("failure", JSON.parse(out)).length > 0, true);
  });
  tried.add(command);
}

Deno.test("snapshots rm names what is gone", async () => {
  const read = [
    "read",
    ...MODEL,
    "--context",
    book,
    "--snapshots",
    at("others"),
    "--policy",
    "snapkv",
    "--keep",
    "25%",
  ];
  const { name, bytes } = JSON.parse((await palisade([...read, "--json"])).out);
  const { out } = await palisade(["snapshots", "rm", name, "--snapshots", at("others"), "--json"]);
  assert.deepEqual(fitting("snapshots-rm", out), { removed: [{ name, bytes }] });
  tried.add("snapshots rm");
});

Deno.test("lines of evict, cell and results files fit the schema", async () => {
  const evict = await palisade(["evict", DUMP, "--explain", "--policy", "defensive"]);
  const lines = evict.out.trimEnd().split("\n");
  for (const line of lines) fitting("evict", line);
  assert.ok(lines.length > 1 && lines[0].includes('"certificate"'), evict.err);
  const cells = await palisade(["cell", at("cells.jsonl"), ...MODEL, "--json"]);
  assert.equal(cells.code, 3, cells.err);
  const printed = cells.out.trimEnd().split("\n").map((line) => fitting("cell", line)) as Record<string, unknown>[];
  assert.deepEqual(printed.map((each) => "error" in each), [false, true, true]);
  for (const line of (await readFile(results, "utf8")).trimEnd().split("\n")) fitting("results", line);
  tried.add("cell");
});

const QUEUE = "eval --queue and worker say as JSON what they did";
const redis = await findRedis();
if (!redis) skipped(QUEUE, "no redis-server: tools/install_test_tools.sh");
else {
  Deno.test(QUEUE, async () => {
    await using server = await startRedis(redis);
    const out = at("queued.jsonl"), tasks = ["--tasks", `jsonl:${cases}`, "--policies", "full", "--keep", "20%"];
    const [sweep, worker] = await Promise.all([
      palisade(["eval", "--models", TINY_MODEL, "--out", out, ...tasks, "--queue", server.url, "--json"]),
      palisade(["worker", ...MODEL, "--queue", server.url, "--idle", "2", "--json"]),
    ]);
    assert.deepEqual([sweep.code, worker.code], [0, 0], `${sweep.err}${worker.err}`);
    const { computed } = fitting("eval", sweep.out) as { computed: number };
    assert.equal(computed, (fitting("worker", worker.out) as { lines: number }).lines);
  });
}
tried.add("worker");

/** What fails, by command: one line of standard output says why, as standard error does. */
const FAILING: Readonly<Record<string, readonly [parameters: readonly string[], code: number, name: string]>> = {
  ask: [[...ASK, "--context", at("none.txt")], 3, "file.not-found"],
  read: [["read", "--context", book, "--out", at("x.palisade"), "--keep", "0"], 3, "keep.range"],
  "snapshots list": [["snapshots", "list", "--snapshots", "off"], 2, "snapshots.off"],
  "snapshots show": [["snapshots", "show", at("none.palisade")], 3, "file.not-found"],
  "snapshots verify": [
    ["snapshots", "verify", "--key-file", "a", "--passphrase-file", "b"],
    2,
    "line.conflicting-option",
  ],
  "snapshots rm": [["snapshots", "rm", "none-such", "--snapshots", kept], 3, "snapshot.missing"],
  "snapshots prune": [["snapshots", "prune", "--to", "much"], 2, "line.invalid-argument"],
  "snapshots key": [["snapshots", "key", book], 3, "secret.exists"],
  demo: [["demo", "--keep", "200%"], 3, "keep.range"],
  show: [["show", "--context", at("none.txt")], 3, "file.not-found"],
  evict: [["evict", at("none.npz")], 3, "file.not-found"],
  eval: [["eval", "--out", at("x.jsonl"), "--tasks", "none-such"], 3, "task.unknown"],
  worker: [["worker", "--queue", "http://there"], 2, "queue.url"],
  cell: [["cell", at("none.jsonl")], 3, "file.not-found"],
  report: [["report", at("none.jsonl")], 3, "file.not-found"],
  calibrate: [["calibrate", ...MODEL, "--kinds", "poems", "--out", at("c")], 3, "calibrate.kinds"],
  "models list": [["models", "list", "--none-such"], 2, "line.unknown-option"],
  "models pull": [["models", "pull", "none-such", "--offline"], 3, "model.unknown"],
  "models path": [["models", "path", "none-such"], 3, "model.unknown"],
  "models rm": [["models", "rm"], 2, "line.missing-argument"],
  policies: [["policies", "none-such"], 2, "line.excess-arguments"],
  doctor: [["doctor", "--none-such"], 2, "line.unknown-option"],
  "config show": [["config", "show", "none-such"], 2, "config.command"],
  completion: [["completion", "none-such"], 3, "completion.shell"],
  schema: [["schema", "none-such"], 3, "schema.command"],
};

for (const [command, [parameters, code, name]] of Object.entries(FAILING)) {
  Deno.test(`${command} --json says why it fails as one line of the schema`, async () => {
    const { code: ended, out, err } = await palisade([...parameters, "--json"]);
    assert.equal(ended, code, err);
    const { error } = fitting("failure", out) as { error: { code: string; message: string } };
    assert.equal(error.code, name, out);
    assert.equal(out.trimEnd().split("\n").length, 1);
    assert.match(err, /^palisade: /);
    assert.ok(err.includes(error.message), `${err} does not say ${error.message}`);
  });
}

Deno.test("every command has --json, an output of its own in the schema, and a test of both ways", async () => {
  const names = leaves(await allCommands()).map(({ name }) => name);
  for (const { name, options } of leaves(await allCommands())) assert.ok("json" in options, name);
  assert.deepEqual(Object.keys(FAILING).sort(), [...names].sort());
  // What fetching prints is what `models path` prints.
  const alike = new Map([["models pull", "models path"]]);
  for (const name of names) {
    assert.ok(tried.has(alike.get(name) ?? name), name);
    assert.ok(SCHEMA.$defs[sectionOf(name)], name);
  }
  for (const [one, other] of alike) assert.deepEqual(SCHEMA.$defs[sectionOf(one)], SCHEMA.$defs[sectionOf(other)]);
});

Deno.test("the schema is closed: what isn't in it is refused, as is what is missing", async () => {
  const { out } = await palisade(["models", "list", "--json"]), [first] = JSON.parse(out);
  assert.match(schemaProblems("models-list", [{ ...first, more: 1 }])[0], /additional properties/);
  const { bytes: _, ...less } = first;
  assert.match(schemaProblems("models-list", [less])[0], /required property 'bytes'/);
  assert.notDeepEqual(schemaProblems("failure", { error: { kind: "odd", code: "", where: "", message: "" } }), []);
  const open = Object.entries<{ type?: string; properties?: object; additionalProperties?: unknown }>(SCHEMA.$defs)
    .filter(([, node]) => node.properties && node.additionalProperties !== false).map(([name]) => name);
  assert.deepEqual(open, ["JsonSchema"]);
  assert.match(SCHEMA.$schema, /2020-12/);
  assert.match(SCHEMA.$id, /^urn:/);
});

Deno.test("palisade schema prints the file, and of one command all that it needs and no more", async () => {
  assert.deepEqual(JSON.parse((await palisade(["schema"])).out), SCHEMA);
  const one = JSON.parse((await palisade(["schema", "models", "list"])).out);
  assert.deepEqual(Object.keys(one.$defs).sort(), [
    "ErrorKind",
    "FailureText",
    "ListedModel",
    "failure",
    "models-list",
  ]);
  assert.match((await palisade(["schema", "models", "lits"])).err, /did you mean models-list\?/);
});

Deno.test("without --json nothing but standard error tells a failure; a setting says it as well as the line", async () => {
  assert.equal((await palisade(["models", "path", "none-such"])).out, "");
  const environment = (name: string) => ({ PALISADE_JSON: "1", PALISADE_CONFIG: "none" })[name];
  const { out } = await palisade(["models", "path", "none-such"], { runtime: { environment } });
  fitting("failure", out);
  const off = await palisade(["models", "path", "none-such", "--no-json"], { runtime: { environment } });
  assert.equal(off.out, "");
});

Deno.test("an interrupted command says so as JSON", async () => {
  const stop = AbortSignal.abort(new DOMException("Interrupted", "AbortError"));
  const { code, out } = await palisade([...ASK, "--context", book, "--json"], { signal: stop });
  assert.equal(code, 130);
  assert.deepEqual(JSON.parse(out).error.kind, "interrupted");
  fitting("failure", out);
});
