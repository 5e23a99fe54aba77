import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { writeGate } from "../../model/gate/file.ts";
import { learn } from "../../model/gate/learned.ts";
import { loadModel } from "../../model/model.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { VERSION } from "../../runtime/version.ts";
import { type ChainEntry, chainModel, type ChainToken, CHATML } from "../_helper/chain_model.ts";
import { gateInfo, randomGate } from "../_helper/gate.ts";
import { palisade } from "../_helper/io.ts";

const folder = await mkdtemp(join(tmpdir(), "palisade-cli-"));
const book = join(folder, "book.txt");
await writeFile(book, "Call me Ishmael. Some years ago I thought I would sail about a little.");
const ASK = ["ask", "--context", book, "--question", "Who speaks?"];

Deno.test("VERSION is the package's version", async () => {
  const manifest = JSON.parse(await readFile(new URL("../../package.json", import.meta.url), "utf8"));
  assert.equal(VERSION, manifest.version);
});

for (
  const command of [
    [],
    ["ask"],
    ["demo"],
    ["models"],
    ["models", "pull"],
    ["policies"],
    ["doctor"],
    ["calibrate"],
    [
      "worker",
    ],
    ["evict"],
    ["cell"],
  ]
) {
  Deno.test(`run() prints a help that fits a screen for "${command.join(" ")}"`, async () => {
    const { code, out } = await palisade([...command, "--help"]);
    assert.equal(code, 0);
    const lines = out.trimEnd().split("\n");
    assert.ok(lines.length <= 24, `${lines.length} lines`);
    for (const line of lines) assert.ok(line.length <= 80, line);
  });
}

/** Refusals that need no model: arguments, exit code, what the message must say. */
const REFUSED: [string, string[], number, RegExp][] = [
  ["an unknown command", ["aks"], 2, /unknown command 'aks'[\s\S]*ask/i],
  ["an unknown option", [...ASK, "--kep", "20%"], 2, /--kep[\s\S]*--keep/],
  ["a missing context", ["ask", "--question", "x"], 2, /--context/],
  ["a missing question", ["ask", "--context", book], 2, /--question/],
  ["an unknown backend", [...ASK, "--backend", "cuda"], 2, /auto, ts, wasm/],
  ["an unknown dense engine", [...ASK, "--dense", "torch"], 2, /auto, web, node/],
  ["a negative temperature", [...ASK, "--temperature", "-1"], 2, /from 0 to 10/],
  ["a top-p above 1", [...ASK, "--top-p", "1.5"], 2, /to 1/],
  ["zero tokens", [...ASK, "--max-tokens", "0"], 2, /from 1 to/],
  ["half a token", [...ASK, "--max-tokens", "1.5"], 2, /whole number/],
  ["bytes to wait in without a risk", [...ASK, "--max-cache-bytes", "100"], 2, /--max-cache-bytes.*--risk/],
  ["a gate for a policy without one", [...ASK, "--policy", "snapkv", "--gate", "no.json"], 2, /--gate.*--policy gate/],
  ["a seed too large", [...ASK, "--seed", "99999999999999999999"], 2, /to 9007199254740991/],
  ["zero threads", [...ASK, "--threads", "0"], 2, /from 1 to 64/],
  ["a thread and a half", [...ASK, "--threads", "1.5"], 2, /from 1 to 64/],
  ["a thousand threads", [...ASK, "--threads", "1000"], 2, /from 1 to 64/],
  ["a cap of 0", [...ASK, "--max-cache", "0"], 2, /--max-cache.*from 1 to/s],
  ["a step policy without a cap", [...ASK, "--step-policy", "h2o"], 2, /--step-policy.*--max-cache/],
  ["an unknown step policy", [...ASK, "--max-cache", "99", "--step-policy", "h20"], 3, /--step-policy.*mean h2o/],
  ["an unknown cache type", [...ASK, "--cache-type", "q4"], 3, /f32, f16, int8/],
  ["unknown positions", [...ASK, "--positions", "false"], 2, /true, rerotate/],
  ["keep 0", [...ASK, "--keep", "0"], 3, /--keep.*0/],
  ["keep -5", [...ASK, "--keep", "-5"], 3, /--keep.*-5/],
  ["keep 200%", [...ASK, "--keep", "200%"], 3, /--keep.*200%/],
  ["keep abc", [...ASK, "--keep", "abc"], 3, /--keep.*abc/],
  ["an unknown policy", [...ASK, "--policy", "layer-defensiv"], 3, /layer-defensiv.*layer-defensive/s],
  ["an unknown model", [...ASK, "--model", "smolm2-135m", "--offline"], 3, /smolm2-135m.*smollm2-135m/s],
  ["a model file that isn't there", [...ASK, "--model", join(folder, "no.gguf")], 3, /no\.gguf/],
  ["a context that isn't there", ["ask", "--context", join(folder, "no.txt"), "--question", "x"], 3, /no\.txt/],
  ["a folder as context", ["ask", "--context", folder, "--question", "x"], 3, /folder/],
  ["an empty question", ["ask", "--context", book, "--question", " "], 3, /question/],
];

for (const [what, parameters, code, message] of REFUSED) {
  Deno.test(`run() refuses ${what} with exit code ${code}`, async () => {
    const result = await palisade(parameters);
    assert.equal(result.code, code, result.err);
    assert.match(result.err, message);
    assert.equal(result.out, "");
  });
}

Deno.test("run() refuses an empty context with exit code 3", async () => {
  const empty = join(folder, "empty.txt");
  await writeFile(empty, " \n");
  const { code, err } = await palisade(["ask", "--context", empty, "--question", "x"]);
  assert.equal(code, 3);
  assert.match(err, /--context.*empty\.txt/);
});

Deno.test("run() refuses a context that is not UTF-8 and says where", async () => {
  const latin = join(folder, "latin.txt");
  await writeFile(latin, new Uint8Array([0x63, 0x61, 0x66, 0xe9, 0x20]));
  const { code, err } = await palisade(["ask", "--context", latin, "--question", "x"]);
  assert.equal(code, 3);
  assert.match(err, /3/);
});

Deno.test("run() refuses a model file that is no GGUF", async () => {
  const fake = join(folder, "fake.gguf");
  await writeFile(fake, "this is not a model at all, but it is long enough for a header");
  const { code, err } = await palisade([...ASK, "--model", fake]);
  assert.equal(code, 3);
  assert.match(err, /magic/i);
});

Deno.test("policies --json lists every policy with parameters and sources", async () => {
  const { code, out } = await palisade(["policies", "--json"]);
  assert.equal(code, 0);
  const list = JSON.parse(out) as { name: string; summary: string; paper: string; source: string }[];
  for (const name of ["full", "random", "streaming-llm", "snapkv", "adakv", "critical-adakv", "defensive"]) {
    assert.ok(list.some((entry) => entry.name === name), name);
  }
  for (const { summary, paper, source } of list) assert.ok(summary && paper && source);
});

Deno.test("doctor --model says what a file is, and what is odd in it", async () => {
  const special: ChainToken[] = [["<|im_start|>", 3], ["<|im_end|>", 1], ["", 5], [Uint8Array.of(0xff, 0x41), 5]];
  const options = { chain: ["\n", "42"], special, template: CHATML, eosId: 99_999 };
  const path = join(folder, "odd.gguf");
  const extra: ChainEntry[] = [["general.author", "str", Uint8Array.of(0xc3)], ["general.url", "u32", 1], [
    "general.url",
    "u32",
    2,
  ]];
  await writeFile(path, chainModel({ ...options, extra }));
  const { code, out } = await palisade(["doctor", "--model", path]);
  assert.equal(code, 0);
  assert.match(out, /yes {2}model .*\(tiny chain\): llama, 1 layers, 512 tokens/);
  assert.match(out, /yes {2}weights .*F32 100\.0 %; .* on our own kernels/);
  assert.match(out, /yes {2}end tokens .*<\|im_end\|> \(257\)/);
  for (
    const odd of [
      /author.*not UTF-8/,
      /"general.url" is there twice/,
      /token 258 is empty/,
      /no token 99999/,
      /value\[259\]/,
    ]
  ) {
    assert.match(out, odd);
  }
  const plain = join(folder, "plain.gguf");
  await writeFile(plain, chainModel({ chain: ["\n", "42", "<|im_end|>"], template: CHATML }));
  assert.doesNotMatch((await palisade(["doctor", "--model", plain])).out, /odd/);
  await writeFile(plain, chainModel({ chain: ["\n", "42"], template: "{{ raise_exception('never') }}" }));
  assert.match((await palisade(["doctor", "--model", plain])).out, /^no {3}model .*never/);
});

Deno.test("doctor --model says what stays by default where few heads evict", async () => {
  const keep = async (name: string) => {
    const path = fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
    return (await palisade(["doctor", "--model", path])).out.split("\n").find((line) => /^yes {2}keep/.test(line));
  };
  assert.match(
    await keep("llama-plain") ?? "",
    /50\.0 % of a long text by default, 2 places .*only 4 heads can evict$/,
  );
  assert.match(await keep("gemma3-windows") ?? "", /all of a text by default: only 1 head can evict$/);
});

Deno.test("doctor --model says what is fitted for a file, and what to do where nothing is", async () => {
  const path = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url)),
    gates = join(folder, "gates");
  const real = await currentRuntime();
  const runtime = { environment: (name: string) => name === "PALISADE_CACHE" ? folder : real.environment(name) };
  const told = async () => (await palisade(["doctor", "--model", path], { runtime })).out;
  assert.match(await told(), /no {3}gate {11}none yet: .*palisade calibrate --model .*llama-plain\.gguf/);
  await using model = await loadModel(path, Object.assign(Object.create(real) as Runtime, runtime));
  const gate = randomGate(model.config), sha256 = await model.identity(), info = gateInfo(model.config, sha256);
  assert.ok((await learn(model, { gate, tokens: 2000, known: 0 })).stored);
  assert.match(await told(), /no {3}gate .*\nyes {2}fitted {9}for self-gate: 2,000 tokens, texts that were read\n/);
  const mine = join(gates, "mine.gate.safetensors");
  await writeFile(mine, writeGate(info, gate));
  assert.match(await told(), /yes {2}gate {11}100 tokens, built in\nyes {2}fitted {9}for self-gate/);
  await writeFile(join(gates, "other.gate.safetensors"), writeGate(info, gate));
  assert.match(await told(), /no {3}gate {11}Several gates are fitted/);
  await rm(gates, { recursive: true });
});

Deno.test("doctor --model says which types are held as another, and how far layers look back", async () => {
  const tiny = (name: string) => fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
  const { out } = await palisade(["doctor", "--model", tiny("llama-iq")]);
  assert.match(out, /weights .*TQ2_0 20\.0 % \(held as F16\), .*Q8_0 4\.0 %, IQ2_XS 2\.0 % \(held as F16\)/);
  const windows = (await palisade(["doctor", "--model", tiny("gemma3-windows")])).out;
  assert.match(windows, /gemma3, 7 layers, of which 6 look back 24 tokens only, 4096 tokens of context/);
});

Deno.test("doctor says what is there and why something isn't", async () => {
  const { code, out } = await palisade(["doctor", "--json"]);
  assert.equal(code, 0);
  const { findings } = JSON.parse(out) as { findings: { name: string; ok: boolean; text: string }[] };
  for (const name of ["runtime", "SIMD", "threads", "GPU", "dense web", "dense node", "dense auto", "cache folder"]) {
    const found = findings.find((finding) => finding.name === name);
    assert.ok(found && found.text.length > 0, name);
  }
});
