/** Layers that look back over a window: they hold what they can still see, and nothing else changes for it. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { entryBytes } from "../../core/cache/entry_type.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { reachableEntries, windowOf } from "../../core/shape.ts";
import { answerBeside, answerFully } from "../../evaluate/sweep/answer.ts";
import { forkCache, prefillOnce } from "../../evaluate/sweep/shared_prefill.ts";
import { extend } from "../../model/decode/extend.ts";
import { CHUNK } from "../../model/decode/layer.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { contextIds, questionIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { reportText } from "../../cli/print/closing_report.ts";
import { onAwkwardDevice } from "../_helper/awkward_device.ts";
import { assertClose } from "../_helper/close.ts";
import { randomGate } from "../_helper/gate.ts";
import { maskedLogits } from "../_helper/oracle.ts";
import { bytesSource, savedBytes } from "../_helper/snapshots.ts";
import { randomSoftTokens } from "../_helper/soft_tokens.ts";

const FILE = fileURLToPath(new URL("../data/models/gemma3-windows.gguf", import.meta.url));
/** The file's: the sixth of seven layers looks at everything. */
const WINDOW = 24, GLOBALS = [5];
const SENTENCE = "The keeper counted seventeen stakes, and then she counted them again. ";
/** More than a chunk, and much more than the window. */
const TEXT = SENTENCE.repeat(9);
const QUESTIONS = ["What is lost?", "How many stakes were there, and who counted them before the gate was shut?"];

type DeviceName = "ts" | "wasm" | "threads" | "awkward";

/** The tiny gemma3, with a gate of its own. */
async function windowed(device: DeviceName = "ts"): Promise<Model> {
  const backend = device === "wasm" || device === "threads" ? "wasm" : "ts";
  const options = { dense: "web", backend, precision: "float32", frame: "line" } as const;
  // onnxruntime-web has one number of threads in a process.
  const threaded = device === "threads" ? { dense: "wasm", threads: 2 } as const : {};
  const model = await loadModel(FILE, await currentRuntime(), { ...options, ...threaded });
  return { ...model, gate: () => Promise.resolve(randomGate(model.config)) };
}

/** The model, trained on another length. */
function trainedOn(model: Model, contextLength: number): Model {
  const config = { ...model.config, contextLength };
  return { ...model, config, dense: Object.assign(Object.create(model.dense), { config }) };
}

/** True positions, `[layers][kvHeads]`. */
function positionsOf(cache: RaggedCache): Int32Array[][] {
  const { layers, kvHeads } = cache.shape;
  return Array.from({ length: layers }, (_, layer) => {
    return Array.from({ length: kvHeads }, (_, head) => cache.positions(layer, head));
  });
}

/** Every window layer holds the last tokens that the next one sees, and no other. */
function assertWindows(cache: RaggedCache, tokens: number): void {
  positionsOf(cache).forEach((heads, layer) => {
    if (GLOBALS.includes(layer)) return;
    const held = Math.min(tokens, WINDOW - 1);
    const last = Int32Array.from({ length: held }, (_, i) => tokens - held + i);
    for (const positions of heads) assert.deepEqual(positions, last, `layer ${layer}`);
  });
}

const LAYERWISE: readonly ContextOptions[] = [
  { policy: "snapkv(window=8)", keep: "40%" },
  { policy: "layer-defensive(window=8)", keep: "20%" },
  { policy: "cake(window=8)", keep: "20%" },
  { policy: "critical-adakv", keep: "20%" },
  { policy: "kvzip(chunk=150)", keep: "20%" },
  { policy: "judge-q", keep: "20%" },
  { policy: "h2o", keep: "20%" },
  { policy: "gate(combine=risk)", keep: "20%" },
  { policy: "defensive-risk(window=8)", riskWorst: 0.01, explain: true },
  { policy: "layer-defensive(window=8)", risk: 0.3, explain: true },
  { policy: "snapkv(window=8)", risk: 0.3, maxCacheBytes: 1 },
  { policy: "full" },
  { policy: "self-gate(tokens=128, chunk=64)", keep: "20%" },
];

for (const device of ["ts", "wasm", "threads", "awkward"] as const) {
  Deno.test(`${device}: a text longer than the windows is read and asked as masking has it, whatever evicts`, async () => {
    await using plain = await windowed(device);
    const model = device === "awkward" ? onAwkwardDevice(plain) : plain;
    const files = { gate: randomGate(model.config), softTokens: randomSoftTokens(model.config) };
    for (const [i, options] of LAYERWISE.entries()) {
      // Every way on the plain backend; the others differ in what computes alone.
      if (device !== "ts" && i % 4 !== 0) continue;
      using context = await openContext(model, TEXT, { ...files, ...options });
      const { cache, tokens, budget } = context, what = `${device}, ${JSON.stringify(options)}`;
      assert.ok(tokens > CHUNK + WINDOW, `${tokens} tokens`);
      assertWindows(cache, tokens);
      assert.equal(budget.model.layers, GLOBALS.length);
      if (!options.riskWorst && options.policy !== "full") assert.equal(cache.globalEntries(), budget.total, what);
      if (options.policy !== "full") assert.ok(cache.globalEntries() < tokens * model.config.kvHeads, what);
      if (options.explain) assert.deepEqual(context.certificates!.map(({ layer }) => layer), GLOBALS);
      const asked = questionIds(model.frame, model.tokenizer, QUESTIONS[0]);
      const masked = await maskedLogits(plain, cache, TEXT, asked, GLOBALS);
      assertClose(await logitsAfter(model, cache, asked), masked, 1e-4, what);
    }
  });
}

async function logitsAfter(model: Model, cache: RaggedCache, ids: readonly number[]): Promise<Float32Array> {
  return await extend(model.dense, cache, ids);
}

Deno.test("reading holds a window layer's window and a chunk, and the whole of one other layer, at most", async () => {
  await using model = await windowed();
  using context = await openContext(model, TEXT, { policy: "snapkv(window=8)", keep: "10%" });
  const { tokens, cache } = context, { headDim, kvHeads, layers } = model.config;
  const held = (layers - 1) * (WINDOW - 1) + Math.max(tokens, WINDOW + CHUNK);
  assert.ok(cache.bytes().peak <= held * kvHeads * entryBytes(headDim, "f32"), `${cache.bytes().peak} bytes`);
});

for (const way of ["streaming", "rolling"] as const) {
  const policy = { streaming: "gate(read=stream)", rolling: "streaming-llm" }[way];
  for (const trained of [undefined, 96]) {
    Deno.test(`${way}${trained ? ` beyond ${trained} trained tokens` : ""}: windows let go chunk by chunk`, async () => {
      await using whole = await windowed();
      const model = trained ? trainedOn(whole, trained) : whole;
      const options = { policy, keep: "30", gate: randomGate(model.config), positions: "rerotate" } as const;
      using context = await openContext(model, TEXT, options);
      const { cache, tokens } = context, next = Math.max(30, WINDOW - 1);
      assertWindows(cache, tokens);
      assert.equal(cache.globalEntries(), 30 * model.config.kvHeads);
      assert.deepEqual([cache.seen, cache.position], [tokens, next]);
      for (let layer = 0; layer < model.config.layers; layer++) {
        const places = cache.logicalPositions(layer, 0);
        assert.deepEqual(places, Int32Array.from(places, (_, i) => next - places.length + i), `layer ${layer}`);
      }
      const once = await context.ask(QUESTIONS[1], { maxTokens: 40 });
      assert.deepEqual((await context.ask(QUESTIONS[1], { maxTokens: 40 })).ids, once.ids);
      assertWindows(cache, tokens);
    });
  }
}

Deno.test("streaming without eviction gives the logits of plain attention over many chunks", async () => {
  await using model = await windowed();
  const gate = randomGate(model.config);
  using context = await openContext(model, TEXT, { policy: "gate(read=stream)", keep: "100%", gate });
  const asked = questionIds(model.frame, model.tokenizer, QUESTIONS[0]);
  const masked = await maskedLogits(model, context.cache, TEXT, asked, GLOBALS);
  assertClose(await logitsAfter(model, context.cache, asked), masked, 1e-4, "logits");
});

Deno.test("a second question finds what the first one's long answer has let go of", async () => {
  await using model = await windowed();
  const endless = { ...model, tokenizer: unending(model) };
  using context = await openContext(endless, TEXT, { policy: "snapkv(window=8)", keep: "30%" });
  const ask = async (question: string) =>
    (await context.ask(question, { maxTokens: 4 * WINDOW, allowLoops: true })).ids;
  const [first, second] = [await ask(QUESTIONS[0]), await ask(QUESTIONS[1])];
  assert.equal(first.length, 4 * WINDOW);
  assertWindows(context.cache, context.tokens);
  using other = await openContext(endless, TEXT, { policy: "snapkv(window=8)", keep: "30%" });
  assert.deepEqual((await other.ask(QUESTIONS[1], { maxTokens: 4 * WINDOW, allowLoops: true })).ids, second);
  assert.deepEqual(await ask(QUESTIONS[0]), first);
});

Deno.test("while a mark stands a window layer holds twice its window and a page at most", async () => {
  await using model = await windowed();
  using context = await openContext(model, TEXT, { policy: "full" });
  const { cache } = context, before = cache.entries(), mark = cache.mark();
  const held = () => cache.length(0, 0);
  for (let i = 0; i < 200; i++) {
    await extend(model.dense, cache, [i]);
    assert.ok(held() <= 2 * (WINDOW - 1) + 64, `${held()} entries after ${i} tokens`);
  }
  cache.releaseAll();
  assert.equal(held(), 2 * (WINDOW - 1));
  cache.trim(mark);
  assert.equal(cache.entries(), before);
  assertWindows(cache, context.tokens);
  // Nothing is kept for a mark that was trimmed back to, and it can't be used again.
  await extend(model.dense, cache, [...Array(100).keys()]);
  assert.equal(held(), WINDOW - 1);
  assert.throws(() => cache.trim(mark), { name: "RangeError", message: /layer 0 has let go of entries/ });
});

Deno.test("marks within marks: each is trimmed back to", () => {
  using backend = createReferenceBackend();
  const shape = { heads: 1, kvHeads: 1, headDim: 2, layers: 2, windows: [3, 0] };
  using cache = new RaggedCache(backend, shape);
  const append = (count: number) => {
    for (const layer of [0, 1]) {
      cache.append(layer, new Float32Array(2 * count), new Float32Array(2 * count), count, cache.position);
      cache.release(layer);
    }
    cache.advance(count);
  };
  append(10);
  const outer = cache.mark();
  append(7);
  const inner = cache.mark();
  assert.deepEqual([...cache.positions(0, 0)], [8, 9, 15, 16]);
  append(5);
  assert.deepEqual([...cache.positions(0, 0)], [8, 9, 15, 16, 20, 21]);
  cache.trim(inner);
  append(1);
  assert.deepEqual([...cache.positions(0, 0)], [8, 9, 16, 17]);
  cache.trim(outer);
  assert.deepEqual([[...cache.positions(0, 0)], cache.length(1, 0), cache.position], [[8, 9], 10, 10]);
  assert.throws(() => cache.trim(inner), RangeError);
});

for (const rule of ["defensive", "gate", "streaming-llm"]) {
  for (const positions of ["true", "rerotate"] as const) {
    Deno.test(`a cap of ${rule}, ${positions}, is on the layers that look at everything`, async () => {
      await using whole = await windowed();
      const model = { ...trainedOn(whole, 512), tokenizer: unending(whole) };
      const options = { policy: "snapkv(window=8)", keep: "40", positions } as const;
      const maxTokens = 60, most = (tokens: number) => ({ tokens, rule });
      using loose = await openContext(model, TEXT, { ...options, maxCache: most(400) });
      using without = await openContext(model, TEXT, options);
      const free = await without.ask(QUESTIONS[0], { maxTokens, allowLoops: true });
      const uncapped = await loose.ask(QUESTIONS[0], { maxTokens, allowLoops: true });
      assert.deepEqual(uncapped.ids, free.ids);
      assert.equal(uncapped.maxCache!.evictedEntries, 0);
      using tight = await openContext(model, TEXT, { ...options, maxCache: most(70) });
      const capped = await tight.ask(QUESTIONS[0], { maxTokens, allowLoops: true });
      const { peakEntries, evictions } = capped.maxCache!;
      assert.ok(peakEntries <= 70 * model.config.kvHeads * GLOBALS.length && evictions > 0, `${peakEntries} entries`);
      assert.deepEqual((await tight.ask(QUESTIONS[0], { maxTokens, allowLoops: true })).ids, capped.ids);
    });
  }
}

Deno.test("a snapshot carries windows as they are, and nothing else passes for one", async () => {
  await using model = await windowed();
  for (const options of [{ explain: true }, { maxCache: { tokens: 400, rule: "gate" } }]) {
    using context = await openContext(model, TEXT, { policy: "snapkv(window=8)", keep: "30%", ...options });
    const answered = await context.ask(QUESTIONS[1], { maxTokens: 20 }), bytes = await savedBytes(context);
    using restored = await model.restore(bytesSource(bytes), options);
    assert.deepEqual(positionsOf(restored.cache), positionsOf(context.cache));
    assert.deepEqual((await restored.ask(QUESTIONS[1], { maxTokens: 20 })).ids, answered.ids);
    assert.deepEqual([restored.budget, restored.certificates], [context.budget, context.certificates]);
  }
  using context = await openContext(model, TEXT, { policy: "full" });
  // One entry fewer in every window than the next token could look back to.
  const { kvHeads, layers } = model.config, rows = Int32Array.from({ length: WINDOW - 2 }, (_, i) => i);
  for (let layer = 0; layer < layers; layer++) {
    if (!GLOBALS.includes(layer)) context.cache.compact(layer, Array.from({ length: kvHeads }, () => rows));
  }
  const refused = { code: "snapshot.layout", where: "layer.0", message: /looks back 24 tokens/ };
  await assert.rejects(model.restore(bytesSource(await savedBytes(context))), refused);
});

Deno.test("the report speaks of what could still be read, and says what windows hold", async () => {
  await using model = await windowed();
  using context = await openContext(model, TEXT, { policy: "snapkv(window=8)", keep: "25%", explain: true });
  const answer = await context.ask(QUESTIONS[0], { maxTokens: 4 });
  const report = reportOf(model, context, [answer], { keepAsked: "25%", loadMs: 0 });
  const { tokens } = context, { kvHeads, layers, headDim } = model.config;
  const inWindows = (layers - 1) * kvHeads * (WINDOW - 1);
  assert.deepEqual(report.windows, { layers: layers - 1, of: layers, tokens: WINDOW, entries: inWindows });
  assert.equal(report.keep.entries, Math.floor(0.25 * tokens) * kvHeads);
  assert.equal(report.cache.kept, report.keep.entries + inWindows);
  assert.equal(report.cache.kept + report.cache.evicted, reachableEntries(model.config, tokens));
  assert.equal(report.cache.fullBytes, reachableEntries(model.config, tokens) * entryBytes(headDim, "f32"));
  report.cache.perLayer.forEach((layer, i) => {
    const window = windowOf(model.config, i);
    assert.deepEqual([layer.window, layer.evicted > 0], window === WINDOW ? [WINDOW, false] : [null, true]);
  });
  assert.equal(report.health.heads, kvHeads * GLOBALS.length);
  assert.ok(report.health.keptFraction < 0.4);
  const text = reportText(report);
  assert.match(text, /^kept +\d+ of \d+ entries \(2\d\.\d %\)/m);
  assert.match(
    text,
    /^windows +6 of 7 layers look back 24 tokens only and hold 138 entries by themselves; the policy/m,
  );
});

Deno.test("a report of a model without windows doesn't speak of them", async () => {
  const file = FILE.replace("gemma3-windows", "llama-plain");
  const options = { dense: "web", backend: "ts", precision: "float32" } as const;
  await using model = await loadModel(file, await currentRuntime(), options);
  using context = await openContext(model, SENTENCE, { policy: "full" });
  const report = reportOf(model, context, [], { keepAsked: "100%", loadMs: 0 });
  assert.equal(report.windows, null);
  assert.ok(!/windows/.test(reportText(report)));
});

Deno.test("sweeps keep what contexts keep, and compare answers from the first difference on", async () => {
  await using model = await windowed();
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  const cases = ["snapkv(window=8)", "layer-defensive(window=8)", "cake(window=8)"].map((name) => {
    return { policy: resolvePolicy(name), keep: { fraction: 0.02 } };
  });
  using prefill = await prefillOnce(model, ids, cases);
  assertWindows(prefill.cache, ids.length);
  const asked = questionIds(model.frame, model.tokenizer, QUESTIONS[1]);
  const limits = { maxNewTokens: 40, contextLength: model.config.contextLength };
  const full = await answerFully(model, prefill.cache, asked, limits);
  for (const each of prefill.cases) {
    using fork = await forkCache(prefill.cache, each.kept!);
    using context = await openContext(model, TEXT, each);
    assert.deepEqual(positionsOf(fork), positionsOf(context.cache));
    const alone = await answerFully(model, context.cache, asked, limits);
    // A full answer that goes on otherwise after 30 tokens, more than the windows hold.
    const at = 30, ids = [...alone.ids.slice(0, at), alone.ids[at] ^ 1, ...alone.ids.slice(at + 1)];
    const beside = await answerBeside(model, fork, asked, { ...full, ids, distributions: alone.distributions }, limits);
    assert.equal(beside.firstDifference, at);
    assert.deepEqual(beside.ids, alone.ids);
    assert.deepEqual(positionsOf(fork), positionsOf(context.cache));
  }
});

/** A tokenizer whose model never ends an answer. */
function unending({ tokenizer }: Model): Model["tokenizer"] {
  return new Proxy(tokenizer, {
    get(target, name) {
      if (name === "endIds") return new Set();
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
