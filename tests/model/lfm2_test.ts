/** lfm2: layers that convolve between layers that attend; what they go on from is rows like any window layer's. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { entryBytes } from "../../core/cache/entry_type.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { extend } from "../../model/decode/extend.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { questionIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { onAwkwardDevice } from "../_helper/awkward_device.ts";
import { assertClose } from "../_helper/close.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { randomGate } from "../_helper/gate.ts";
import { maskedLogits } from "../_helper/oracle.ts";
import { bytesSource, savedBytes } from "../_helper/snapshots.ts";
import { randomSoftTokens } from "../_helper/soft_tokens.ts";

const FILE = fileURLToPath(new URL("../data/models/lfm2-plain.gguf", import.meta.url));
/** The file's: these of five layers attend, the others convolve three tokens. */
const GLOBALS = [2, 4], TAPS = 3;
/** More than a chunk. */
const TEXT = "The keeper counted seventeen stakes, and then she counted them again. ".repeat(9);
const QUESTIONS = ["What is lost?", "How many stakes were there, and who counted them before the gate was shut?"];

type DeviceName = "ts" | "wasm" | "threads" | "awkward";

async function lfm2(device: DeviceName = "ts"): Promise<Model> {
  const backend = device === "wasm" || device === "threads" ? "wasm" : "ts", threads = device === "threads" ? 2 : 1;
  const options = { dense: "wasm", backend, threads, precision: "float32", frame: "line" } as const;
  return await loadModel(FILE, await currentRuntime(), options);
}

/** A tokenizer whose model never ends an answer. */
function unending(model: Model): Model {
  const tokenizer = new Proxy(model.tokenizer, {
    get(target, name) {
      if (name === "endIds") return new Set();
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  return { ...model, tokenizer };
}

/** What the next token is convolved with is there, and nothing else. */
function assertState(cache: RaggedCache, tokens: number): void {
  for (let layer = 0; layer < cache.shape.layers; layer++) {
    if (GLOBALS.includes(layer)) continue;
    assert.deepEqual([...cache.positions(layer, 0)], [tokens - 2, tokens - 1], `layer ${layer}`);
  }
}

const WAYS: readonly ContextOptions[] = [
  { policy: "snapkv(window=8)", keep: "40%", explain: true },
  { policy: "layer-defensive(window=8)", keep: "20%" },
  { policy: "cake(window=8)", keep: "20%", cacheType: "f16" },
  { policy: "kvzip(chunk=150)", keep: "20%" },
  { policy: "judge-q", keep: "20%" },
  { policy: "h2o", keep: "20%" },
  { policy: "self-gate(tokens=128, chunk=64)", keep: "20%" },
  { policy: "gate(read=stream)", keep: "100%" },
  { policy: "layer-defensive(window=8)", risk: 0.3, explain: true },
  { policy: "full" },
];

for (const device of ["ts", "wasm", "threads", "awkward"] as const) {
  Deno.test(`lfm2, ${device}: removing is masking, whatever evicts`, async () => {
    await using plain = await lfm2(device);
    const model = device === "awkward" ? onAwkwardDevice(plain) : plain;
    const files = { gate: randomGate(model.config), softTokens: randomSoftTokens(model.config) };
    for (const [i, options] of WAYS.entries()) {
      if (device !== "ts" && i % 3 !== 0) continue;
      using context = await openContext(model, TEXT, { ...files, ...options });
      const { cache, tokens } = context, what = `${device}, ${JSON.stringify(options)}`;
      assertState(cache, tokens);
      assert.equal(context.budget.model.layers, GLOBALS.length);
      if (options.policy !== "full" && options.keep !== "100%") assert.ok(cache.globalEntries() < 2 * tokens, what);
      if (options.explain) assert.deepEqual(context.certificates!.map(({ layer }) => layer), GLOBALS);
      const asked = questionIds(model.frame, model.tokenizer, QUESTIONS[0]);
      const masked = await maskedLogits(plain, cache, TEXT, asked, GLOBALS), mark = cache.mark();
      // What convolves is never rounded; keys and values of f16 are.
      assertClose(await extend(model.dense, cache, asked), masked, options.cacheType ? 2e-3 : 1e-4, what);
      cache.trim(mark);
      assertState(cache, tokens);
    }
  });
}

Deno.test("lfm2: every question begins with what the text left, however long the answer before it was", async () => {
  for (const device of ["ts", "threads"] as const) {
    await using plain = await lfm2(device);
    const model = unending(plain), options = { policy: "snapkv(window=8)", keep: "30%" };
    const ask = async (context: Awaited<ReturnType<typeof openContext>>, question: string) =>
      (await context.ask(question, { maxTokens: 150, allowLoops: true })).ids;
    using context = await openContext(model, TEXT, options);
    const first = await ask(context, QUESTIONS[0]), second = await ask(context, QUESTIONS[1]);
    assertState(context.cache, context.tokens);
    using other = await openContext(model, TEXT, options);
    assert.deepEqual(await ask(other, QUESTIONS[1]), second);
    assert.deepEqual(await ask(context, QUESTIONS[0]), first);
    using fork = await context.cache.fork();
    assertState(fork, context.tokens);
    using resting = await openContext(model, TEXT, { ...options, cloak: true });
    const cloaked = await ask(resting, QUESTIONS[0]);
    assert.deepEqual(cloaked.slice(0, 20), first.slice(0, 20));
  }
});

for (const cacheType of ["f32", "int8", "int4"] as const) {
  Deno.test(`lfm2: a snapshot of ${cacheType} carries what is convolved, whole`, async () => {
    await using model = await lfm2("wasm");
    const options = { policy: "snapkv(window=8)", keep: "30%", explain: true, cacheType } as const;
    using context = await openContext(model, TEXT, options);
    const answered = await context.ask(QUESTIONS[1], { maxTokens: 20 }), bytes = await savedBytes(context);
    using restored = await model.restore(bytesSource(bytes));
    assertState(restored.cache, context.tokens);
    const state = await context.cache.rows(0).copyRows(0), again = await restored.cache.rows(0).copyRows(0);
    assert.deepEqual(again, state);
    assert.ok(state.keys.some((x) => x !== Math.fround(Math.round(x * 2048) / 2048)));
    assert.deepEqual((await restored.ask(QUESTIONS[1], { maxTokens: 20 })).ids, answered.ids);
    assert.deepEqual([restored.budget, restored.certificates], [context.budget, context.certificates]);
  });
}

Deno.test("lfm2: a cap, positions that close up and a text beyond the trained length leave convolutions alone", async () => {
  await using whole = await lfm2();
  const model = unending(whole);
  for (const positions of ["true", "rerotate"] as const) {
    const options = { policy: "snapkv(window=8)", keep: "40", positions } as const, maxTokens = 60;
    using loose = await openContext(model, TEXT, { ...options, maxCache: { tokens: 400, rule: "defensive" } });
    using without = await openContext(model, TEXT, options);
    const free = await without.ask(QUESTIONS[0], { maxTokens, allowLoops: true });
    assert.deepEqual((await loose.ask(QUESTIONS[0], { maxTokens, allowLoops: true })).ids, free.ids);
    using tight = await openContext(model, TEXT, { ...options, maxCache: { tokens: 70, rule: "defensive" } });
    const capped = await tight.ask(QUESTIONS[0], { maxTokens, allowLoops: true });
    assert.ok(capped.maxCache!.evictions > 0 && capped.maxCache!.peakEntries <= 70 * GLOBALS.length);
    assert.deepEqual((await tight.ask(QUESTIONS[0], { maxTokens, allowLoops: true })).ids, capped.ids);
  }
  const config = { ...model.config, contextLength: 96 };
  const short = { ...model, config, dense: Object.assign(Object.create(model.dense), { config }) };
  using rolling = await openContext(short, TEXT, { policy: "streaming-llm", keep: "30", positions: "rerotate" });
  assertState(rolling.cache, rolling.tokens);
  const once = await rolling.ask(QUESTIONS[1], { maxTokens: 40 });
  assert.deepEqual((await rolling.ask(QUESTIONS[1], { maxTokens: 40 })).ids, once.ids);
});

Deno.test("lfm2: the report counts what is convolved, and its bytes", async () => {
  await using model = await lfm2();
  using context = await openContext(model, TEXT, { policy: "snapkv(window=8)", keep: "25%", cacheType: "f16" });
  const report = reportOf(model, context, [], { keepAsked: "25%", loadMs: 0 }), { tokens } = context;
  assert.deepEqual(report.windows, { layers: 3, of: 5, tokens: TAPS, entries: 3 * 2 });
  // Keys and values of 16 channels in two layers; half of 64 channels each, whole, in the others.
  const state = 3 * 2 * entryBytes(32, "f32");
  assert.equal(report.cache.fullBytes, 2 * tokens * entryBytes(16, "f16") + state);
  assert.equal(report.cache.bytes, context.cache.globalEntries() * entryBytes(16, "f16") + state);
});

Deno.test("a tap that is no number is refused by its tensor's name", async () => {
  const bytes = await readFile(FILE), name = "blk.3.shortconv.conv.weight";
  const at = (await openGguf(new CountingSource(bytes))).tensors.get(name)!.offset;
  new DataView(bytes.buffer, bytes.byteOffset).setFloat32(at + 8, Infinity, true);
  const refused = { code: "gguf.value", where: `tensor["${name}"]`, message: /holds Infinity; finite is right/ };
  await assert.rejects(configOf(await openGguf(new CountingSource(bytes))), refused);
});
