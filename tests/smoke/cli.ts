/** What the command line must do the same way in every runtime. Runtimes differ only in how they start it. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ChildResult, runChild } from "../../tools/child.ts";
import { ROOT } from "../../tools/repository.ts";
import { skipped } from "../_helper/skip.ts";
import { NO_SWIFTSHADER, noDawn, SWIFTSHADER, swiftShaderOnly } from "../_helper/swiftshader.ts";

/** Starts palisade with these arguments, from a folder that is not the checkout. */
export type Cli = (args: readonly string[], input?: Uint8Array) => Promise<ChildResult>;

/** Longest one command may take, seconds. */
const COMMAND_TIMEOUT = 120;

/** Makes a {@link Cli} that runs `program` with `before` in front of the arguments. */
export function commandLine(
  program: string,
  before: readonly string[] = [],
  env: Record<string, string | undefined> = {},
): Cli {
  const cwd = mkdtempSync(join(tmpdir(), "palisade-smoke-"));
  const environment = { NO_COLOR: "1", XDG_CACHE_HOME: join(cwd, "cache"), ...env };
  const options = { cwd, env: environment, timeout: COMMAND_TIMEOUT };
  return (args, input) => runChild(program, [...before, ...args], { ...options, input });
}

/** A committed GGUF of random weights, or nothing while there is none. */
export function tinyModel(): string | undefined {
  const folder = join(ROOT, "tests/data/models");
  const files = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith(".gguf")).sort() : [];
  const file = files.find((name) => name.includes("llama")) ?? files[0];
  return file && join(folder, file);
}

/** Runs a command that must succeed, silently but for standard output. */
export async function succeed(cli: Cli, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr, killed } = await cli(args);
  assert.equal(killed, "", `palisade ${args.join(" ")}: ${killed}\n${stderr}`);
  assert.equal(code, 0, `palisade ${args.join(" ")} ended with ${code}\n${stdout}\n${stderr}`);
  return stdout;
}

const WORDS = ["the", "whale", "rose", "under", "a", "grey", "sky", "and", "no", "one", "spoke"];

/** A text of `count` words, always the same. */
function text(count: number): string {
  return Array.from({ length: count }, (_, index) => WORDS[(index * index + 3 * index) % WORDS.length]).join(" ") + ".";
}

interface AskReport {
  readonly answer: string;
  readonly answers: readonly { question: string; answer: string; finish: string }[];
  readonly backend: string;
  readonly dense: string;
  readonly engines: { readonly backend: string };
  readonly policy: { name: string };
  readonly window: { asked: number; used: number };
  readonly tokens: { context: number; question: number; generated: number };
  readonly cache: {
    kept: number;
    evicted: number;
    bytes: number;
    allocatedBytes: number;
    fullBytes: number;
    peakBytes: number;
    perLayer: readonly unknown[];
  };
  readonly ms: Record<"load" | "prefill" | "evict" | "decodePerToken", number>;
  readonly memory: Record<"rss" | "peakRss" | "weights" | "cache", number>;
}

/** Fields every report has; it may have more. */
const REPORT_KEYS = "answer answers backend cache dense keep memory model ms policy tokens window".split(" ");

/** Asks the tiny model with the joint policy; `--json`, offline. */
export async function askTiny(
  cli: Cli,
  model: string,
  { keep = "20%", backend = "ts", dense = "web" } = {},
): Promise<AskReport> {
  const folder = mkdtempSync(join(tmpdir(), "palisade-ask-"));
  const context = join(folder, "context.txt");
  writeFileSync(context, text(60));
  const question = ["--context", context, "--question", "Who spoke?", "--keep", keep, "--policy", "layer-defensive"];
  const engine = ["--model", model, "--backend", backend, "--dense", dense, "--max-tokens", "4", "--offline", "--json"];
  return JSON.parse(await succeed(cli, ["ask", ...question, ...engine]));
}

/** What a joint budget of 20 % means to the entry, whatever the model's shape is. */
export function assertJointBudget(report: AskReport, share: number, dense = "web"): void {
  for (const key of REPORT_KEYS) assert.ok(key in report, `the report has no ${key}`);
  const { cache, tokens } = report;
  const all = cache.kept + cache.evicted;
  assert.equal(cache.kept, Math.floor(share * all + 1e-9), "kept entries");
  assert.equal(all % tokens.context, 0, "entries are tokens × heads × layers");
  assert.equal(cache.bytes * all, cache.fullBytes * cache.kept, "bytes follow the kept entries");
  assert.ok(cache.allocatedBytes >= cache.bytes && cache.peakBytes >= cache.bytes);
  assert.ok(cache.perLayer.length >= 1 && (all / tokens.context) % cache.perLayer.length === 0, "one row per layer");
  assert.equal(report.policy.name, "layer-defensive");
  assert.equal(report.dense, dense);
  assert.equal(report.answers.length, 1);
  assert.equal(report.answers[0].question, "Who spoke?");
  assert.equal(report.answers[0].answer, report.answer);
  assert.ok(tokens.generated >= 1 && tokens.generated <= 4);
  const { rss, peakRss, weights, cache: held } = report.memory;
  assert.ok(rss > 0 && peakRss >= rss && weights > 0);
  assert.equal(held, cache.allocatedBytes);
}

/** Registers the tests of the command line in one runtime. `start` is called once, on first use. */
export function testCommandLine(runtime: string, start: () => Promise<Cli>): void {
  let started: Promise<Cli> | undefined;
  const cli = () => started ??= start();
  const test = (sentence: string, fn: () => Promise<void>) => Deno.test(`palisade in ${runtime} ${sentence}`, fn);

  test("--help names every command on one screen", async () => {
    const help = await succeed(await cli(), ["--help"]);
    for (const command of ["ask", "demo", "models", "policies", "doctor"]) {
      assert.match(help, RegExp(`\\b${command}\\b`));
    }
    assert.ok(help.trimEnd().split("\n").length <= 40, "fits a screen");
  });

  test("schema prints the schema that the package carries", async () => {
    const published = readFileSync(join(ROOT, "cli/schema/palisade.schema.json"), "utf8");
    assert.equal(await succeed(await cli(), ["schema"]), published);
  });

  test("policies --json lists the policies", async () => {
    const policies: { name: string }[] = JSON.parse(await succeed(await cli(), ["policies", "--json"]));
    const names = policies.map(({ name }) => name);
    const wanted = [
      "full",
      "random",
      "streaming-llm",
      "snapkv",
      "adakv",
      "critical-adakv",
      "defensive",
      "layer-defensive",
    ];
    for (const name of wanted) assert.ok(names.includes(name), `${name} is missing in ${names}`);
  });

  test("doctor --json is one object that names the runtime", async () => {
    const report = await succeed(await cli(), ["doctor", "--json"]);
    assert.match(JSON.stringify(JSON.parse(report)), RegExp(runtime.match(/^\w+/)![0], "i"));
    const { findings }: { findings: { name: string; text: string }[] } = JSON.parse(report);
    const data = findings.find(({ name }) => name === "package data");
    assert.equal(data?.text, "1 gate (smollm2-135m-instruct), 2 texts");
  });

  test("schema prints what the package carries", async () => {
    const schema = JSON.parse(await succeed(await cli(), ["schema"]));
    assert.equal(schema.$id, "urn:palisade-kv:output");
  });

  test("refuses an unknown command with exit code 2 and no output", async () => {
    const { code, stdout, stderr } = await (await cli())(["asj"]);
    assert.equal(code, 2);
    assert.equal(stdout, "");
    assert.notEqual(stderr, "");
  });

  test("evict keeps the golden sets of a dump, from its file and from a pipe", async () => {
    const golden = (name: string) => join(ROOT, "tests/data/golden", name), dump = golden("tiny-L97.safetensors");
    const { kept } = JSON.parse(readFileSync(golden("tiny-L97.kept.json"), "utf8"));
    const [r] = Object.keys(kept), keep = String(Math.round((1 - Number(r)) * 1e12) / 1e12);
    const asked = ["--policy", "layer-defensive@reference", "--keep", keep];
    const byFile = await (await cli())(["evict", dump, ...asked]);
    const piped = await (await cli())(["evict", "-", ...asked], readFileSync(dump));
    for (const { code, stdout, stderr } of [byFile, piped]) {
      assert.equal(code, 0, stderr);
      const lines = stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
      for (const { layer, head, kept: ours } of lines) assert.deepEqual(ours, kept[r]["layer-defensive"][layer][head]);
      assert.equal(lines.length, 6);
    }
  });

  const model = tinyModel();
  const sentence = "ask keeps exactly 20 % of a tiny model's cache, twice the same way, and 100 % keeps all";
  if (model === undefined) return skipped(`palisade in ${runtime} ${sentence}`, "no model in tests/data/models");
  test(sentence, async () => {
    const first = await askTiny(await cli(), model);
    assertJointBudget(first, 0.2);
    assert.equal(first.backend, "ts");
    const second = await askTiny(await cli(), model);
    assert.deepEqual([second.answers, second.cache], [first.answers, first.cache]);
    assertJointBudget(await askTiny(await cli(), model, { keep: "100%" }), 1);
    const deno = commandLine(Deno.execPath(), ["run", "-A", "--no-check", join(ROOT, "cli/main.ts")]);
    const same = await askTiny(deno, model);
    assert.deepEqual([first.answers, first.cache], [same.answers, same.cache], "the same as in Deno");
  });

  test("ask --backend wasm runs the kernels and keeps as much as ts", async () => {
    const [ts, wasm] = [await askTiny(await cli(), model), await askTiny(await cli(), model, { backend: "wasm" })];
    assertJointBudget(wasm, 0.2);
    assert.equal(wasm.backend, "wasm");
    assert.equal(wasm.cache.kept, ts.cache.kept);
  });

  test("ask on our kernels answers the same on two threads as on one", async () => {
    const folder = mkdtempSync(join(tmpdir(), "palisade-threads-")), context = join(folder, "context.txt");
    writeFileSync(context, text(60));
    const asked = ["ask", "--context", context, "--question", "Who spoke?", "--keep", "30%", "--max-tokens", "4"];
    const engine = ["--model", model, "--backend", "wasm", "--dense", "wasm", "--offline", "--json"];
    const [one, two] = await Promise.all(["1", "2"].map(async (threads) => {
      return JSON.parse(await succeed(await cli(), [...asked, ...engine, "--threads", threads]));
    }));
    assert.match(one.engines.backend, /one thread/);
    assert.match(two.engines.backend, /2 threads/);
    assert.match(two.engines.dense, /2 threads/);
    assert.deepEqual([two.answers, two.cache.kept], [one.answers, one.cache.kept]);
  });

  test("ask answers from what read wrote, also sealed and cloaked, as if it had read the text", async () => {
    const folder = mkdtempSync(join(tmpdir(), "palisade-read-")), context = join(folder, "context.txt");
    writeFileSync(context, text(60));
    const engine = ["--model", model, "--backend", "wasm", "--dense", "web", "--threads", "1", "--offline", "--json"];
    const reading = ["--policy", "layer-defensive", "--keep", "30%", "--context", context],
      out = join(folder, "x.palisade");
    await succeed(await cli(), ["read", ...reading, ...engine, "--out", out]);
    const asked = ["ask", ...engine, "--question", "Who spoke?", "--max-tokens", "4"];
    const read = JSON.parse(await succeed(await cli(), [...asked, ...reading]));
    const restored = JSON.parse(await succeed(await cli(), [...asked, "--snapshot", out]));
    assert.deepEqual([restored.answers, restored.cache.perLayer], [read.answers, read.cache.perLayer]);
    assert.equal(restored.tokens.reused, read.tokens.context);
    assert.match(await succeed(await cli(), ["snapshots", "verify", out]), /: whole$/m);
    const key = join(folder, "my.key"), secret = join(folder, "secret.palisade"), by = ["--key-file", key];
    await succeed(await cli(), ["snapshots", "key", key]);
    await succeed(await cli(), ["read", ...reading, ...engine, "--encrypt", "--cloak", ...by, "--out", secret]);
    const opened = JSON.parse(await succeed(await cli(), [...asked, "--snapshot", secret, ...by, "--cloak"]));
    assert.deepEqual(opened.answers, read.answers);
    const shut = await (await cli())([...asked, "--snapshot", secret]);
    assert.deepEqual([shut.code, JSON.parse(shut.stdout).error.code], [3, "seal.secret"]);
    assert.match(shut.stderr, /pass its key file or passphrase/);
  });

  test("ask refuses --keep 0 with exit code 3", async () => {
    const question = ["--context", model, "--question", "?", "--keep", "0", "--model", model, "--offline"];
    const { code, stdout, stderr } = await (await cli())(["ask", ...question]);
    assert.equal(code, 3, stderr);
    assert.equal(stdout, "");
    assert.match(stderr, /keep/);
  });
}

/**
 * Registers the test of the WebGPU backend in a runtime that takes it from the npm package `webgpu`, on an emulator.
 * `start`: as for {@link testCommandLine}, the environment added.
 */
export function testWebGpu(runtime: string, start: (env: Record<string, string | undefined>) => Promise<Cli>): void {
  const name = `palisade in ${runtime} answers on WebGPU's emulator, by the package webgpu, as without`;
  const model = tinyModel(), missing = noDawn();
  if (model === undefined) return skipped(name, "no model in tests/data/models");
  if (missing) return skipped(name, missing.reason, missing.cause);
  if (SWIFTSHADER === undefined) return skipped(name, NO_SWIFTSHADER);
  Deno.test(name, async () => {
    const cli = await start(swiftShaderOnly());
    const there = await askTiny(cli, model, { backend: "webgpu", dense: "webgpu" });
    assertJointBudget(there, 0.2, "webgpu");
    assert.equal(there.backend, "webgpu");
    assert.match(there.engines.backend, /SwiftShader.*, subgroups/);
    const here = await askTiny(cli, model);
    const kept = ({ cache }: AskReport) => [cache.kept, cache.bytes, cache.perLayer];
    assert.deepEqual([there.answers, kept(there)], [here.answers, kept(here)]);
  });
}
