/** gemma4: layers of two shapes, some of which look at the rows of earlier ones: what is evicted is evicted for all of them. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { entryBytes } from "../../core/cache/entry_type.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { extend } from "../../model/decode/extend.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { neededMemory } from "../../model/needed_memory.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { questionIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { onAwkwardDevice } from "../_helper/awkward_device.ts";
import { assertClose } from "../_helper/close.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { maskedLogits } from "../_helper/oracle.ts";
import { bytesSource, savedBytes } from "../_helper/snapshots.ts";

type File = "gemma4-shared" | "gemma4-keys";
const path = (file: File) => fileURLToPath(new URL(`../data/models/${file}.gguf`, import.meta.url));
/** The files': layers with rows of their own that look at everything; of the first file 6 looks at 3's, and 4 and 5 at 2's. */
const GLOBALS: Readonly<Record<File, readonly number[]>> = { "gemma4-shared": [1, 3], "gemma4-keys": [2] };
const READERS = [4, 5, 6], WINDOW = 24;
/** More than a chunk, and much more than a window. */
const TEXT = "The keeper counted seventeen stakes, and then she counted them again. ".repeat(9);
const QUESTIONS = ["What is lost?", "How many stakes were there, and who counted them before the gate was shut?"];

type DeviceName = "ts" | "wasm" | "threads" | "awkward";

async function gemma4(device: DeviceName = "ts", file: File = "gemma4-shared"): Promise<Model> {
  const backend = device === "wasm" || device === "threads" ? "wasm" : "ts", threads = device === "threads" ? 2 : 1;
  const options = { dense: "wasm", backend, threads, precision: "float32", frame: "line" } as const;
  return await loadModel(path(file), await currentRuntime(), options);
}

/** Window layers hold what they can still see, readers nothing. */
function assertHeld(cache: RaggedCache, tokens: number, file: File): void {
  for (let layer = 0; layer < cache.shape.layers; layer++) {
    if (GLOBALS[file].includes(layer)) continue;
    const isReader = file === "gemma4-shared" && READERS.includes(layer);
    if (isReader) assert.equal(cache.layerEntries(layer), 0, `layer ${layer}`);
    else assert.deepEqual([cache.length(layer, 0), cache.positions(layer, 0).at(-1)], [WINDOW - 1, tokens - 1]);
  }
}

const WAYS: readonly ContextOptions[] = [
  { policy: "snapkv(window=8)", keep: "40%", explain: true },
  { policy: "layer-defensive(window=8)", keep: "20%" },
  { policy: "expected-attention", keep: "30%" },
  { policy: "kvzip(chunk=150)", keep: "20%" },
  { policy: "cake(window=8)", keep: "20%", cacheType: "f16" },
  { policy: "h2o", keep: "20%" },
  { policy: "layer-defensive(window=8)", risk: 0.3, explain: true },
  { policy: "full" },
  { keep: "25%" },
  { policy: "triattention", keep: "30%" },
];
/** Which of them run where, and on which file. */
const RUNS: readonly (readonly [DeviceName, File, ...ways: number[]])[] = [
  ["ts", "gemma4-shared", 0, 2, 3, 6, 8],
  ["ts", "gemma4-keys", 0, 3],
  ["wasm", "gemma4-shared", 4, 7, 9],
  ["threads", "gemma4-shared", 0, 5],
  ["threads", "gemma4-keys", 1],
  ["awkward", "gemma4-shared", 1],
];

for (const [device, file, ...ways] of RUNS) {
  Deno.test(`${file}, ${device}: removing is masking, whatever evicts`, async () => {
    await using plain = await gemma4(device, file);
    const model = device === "awkward" ? onAwkwardDevice(plain) : plain, globals = GLOBALS[file];
    for (const options of ways.map((way) => WAYS[way])) {
      using context = await openContext(model, TEXT, options);
      const { cache, tokens } = context, what = `${device}, ${JSON.stringify(options)}`;
      assertHeld(cache, tokens, file);
      assert.equal(context.budget.model.layers, globals.length);
      if (options.policy !== "full") assert.ok(cache.globalEntries() < globals.length * tokens, what);
      if (options.explain) assert.deepEqual(context.certificates!.map(({ layer }) => layer), globals);
      const asked = questionIds(model.frame, model.tokenizer, QUESTIONS[0]);
      const masked = await maskedLogits(plain, cache, TEXT, asked, globals), mark = cache.mark();
      // Logits of attention are not divided by the root of a width, so that rounded keys count for more.
      assertClose(await extend(model.dense, cache, asked), masked, options.cacheType ? 5e-3 : 1e-4, what);
      cache.trim(mark);
      assertHeld(cache, tokens, file);
    }
  });
}

Deno.test("gemma4: every question begins with what the text left, also from a snapshot and under a cloak", async () => {
  for (const device of ["ts", "threads"] as const) {
    await using model = await gemma4(device);
    const options = { policy: "layer-defensive(window=8)", keep: "30%", explain: true } as const;
    const ask = async (context: Awaited<ReturnType<typeof openContext>>, question: string) =>
      (await context.ask(question, { maxTokens: 40, allowLoops: true })).ids;
    using context = await openContext(model, TEXT, options);
    const first = await ask(context, QUESTIONS[0]), second = await ask(context, QUESTIONS[1]);
    assertHeld(context.cache, context.tokens, "gemma4-shared");
    using other = await openContext(model, TEXT, options);
    assert.deepEqual(await ask(other, QUESTIONS[1]), second);
    assert.deepEqual(await ask(context, QUESTIONS[0]), first);
    using fork = await context.cache.fork();
    assertHeld(fork, context.tokens, "gemma4-shared");
    using restored = await model.restore(bytesSource(await savedBytes(context)));
    assertHeld(restored.cache, context.tokens, "gemma4-shared");
    assert.deepEqual(await ask(restored, QUESTIONS[1]), second);
    assert.deepEqual(restored.certificates, context.certificates);
    using resting = await openContext(model, TEXT, { ...options, cloak: true });
    assert.deepEqual((await ask(resting, QUESTIONS[1])).slice(0, 10), second.slice(0, 10));
  }
});

Deno.test("gemma4: a cap goes by what all layers that look at a row give it", async () => {
  await using model = await gemma4("wasm");
  const options = { policy: "snapkv(window=8)", keep: "40" } as const, maxTokens = 60;
  for (const rule of ["defensive", "h2o"]) {
    using tight = await openContext(model, TEXT, { ...options, maxCache: { tokens: 70, rule } });
    const capped = await tight.ask(QUESTIONS[0], { maxTokens, allowLoops: true });
    assert.ok(capped.maxCache!.evictions > 0 && capped.maxCache!.peakEntries <= 70 * GLOBALS["gemma4-shared"].length);
    assert.deepEqual((await tight.ask(QUESTIONS[0], { maxTokens, allowLoops: true })).ids, capped.ids);
  }
});

Deno.test("gemma4: a text beyond the trained length is read while positions close up", async () => {
  await using model = await gemma4();
  const config = { ...model.config, contextLength: 96 };
  const short = { ...model, config, dense: Object.assign(Object.create(model.dense), { config }) };
  using rolling = await openContext(short, TEXT, { policy: "streaming-llm", keep: "30", positions: "rerotate" });
  const once = await rolling.ask(QUESTIONS[0], { maxTokens: 20 });
  assert.deepEqual((await rolling.ask(QUESTIONS[0], { maxTokens: 20 })).ids, once.ids);
});

Deno.test("gemma4: reports and the memory told before count rows once, each layer's as wide as they are", async () => {
  await using model = await gemma4();
  using context = await openContext(model, TEXT, { policy: "snapkv(window=8)", keep: "25%" });
  const report = reportOf(model, context, [], { keepAsked: "25%", loadMs: 0 }), { tokens } = context;
  assert.deepEqual(report.windows, { layers: 2, of: 7, tokens: WINDOW, entries: 2 * (WINDOW - 1) });
  const inWindows = 2 * (WINDOW - 1) * entryBytes(32, "f32");
  assert.equal(report.cache.fullBytes, 2 * tokens * entryBytes(64, "f32") + inWindows);
  assert.equal(report.cache.bytes, context.cache.globalEntries() * entryBytes(64, "f32") + inWindows);
  assert.equal(report.cache.kept + report.cache.evicted, 2 * tokens + 2 * (WINDOW - 1));
  assert.deepEqual(report.cache.perLayer.map(({ evicted }) => evicted > 0), [
    false,
    true,
    false,
    true,
    false,
    false,
    false,
  ]);
  assert.deepEqual(report.cache.perLayer[6], { window: null, kept: 0, evicted: 0, heads: [] });
  const table = model.file.tensors.get("per_layer_token_embd.weight")!.byteLength;
  assert.ok(table > 0 && model.room.outsideBytes === table);
  const needed = neededMemory(model.config, 0, { tokens, kept: 0.25 });
  assert.equal(needed.cache, Math.ceil(1.25 * tokens * entryBytes(64, "f32") + inWindows));
});

Deno.test("gemma4: what goes by one layer's own queries is refused by name", async () => {
  await using model = await gemma4("wasm");
  const open = (options: ContextOptions) => openContext(model, TEXT, { keep: "20%", ...options });
  for (const policy of ["self-gate", "moved", "kvzip-plus", "qfilter(statistics=calibrated)"]) {
    await assert.rejects(open({ policy }), { code: "shared-rows.policy" }, policy);
  }
  await assert.rejects(open({ policy: "snapkv", refit: "values" }), { code: "shared-rows.refit" });
  await assert.rejects(open({ policy: "snapkv(merge=sum)" }), { code: "shared-rows.merge" });
  await assert.rejects(open({ policy: "snapkv(key-channels=60%)" }), { code: "shared-rows.key-channels" });
  using best = await openContext(model, TEXT, { effort: "best" });
  assert.ok(best.cache.globalEntries() > 0);
});

Deno.test("gemma4 is refused on engines without layers of several shapes, by name", async () => {
  await assert.rejects(loadModel(path("gemma4-keys"), await currentRuntime(), { dense: "node" }), {
    code: "dense.mixed-layers",
  });
});

/** The file's configuration with another value under a key, or without it. */
async function configWith(file: File, changes: Readonly<Record<string, unknown>>) {
  const gguf = await openGguf(new CountingSource(await readFile(path(file)))), metadata = new Map(gguf.metadata);
  for (const [key, value] of Object.entries(changes)) {
    if (value === undefined) metadata.delete(`gemma4.${key}`);
    else metadata.set(`gemma4.${key}`, value as number);
  }
  return await configOf(Object.assign(gguf, { metadata }));
}

Deno.test("gemma4: what a file says of its layers is checked by key", async () => {
  const wrong: readonly (readonly [changes: Record<string, unknown>, code: string, key: string])[] = [
    [{ "attention.shared_kv_layers": 7 }, "gguf.value", "attention.shared_kv_layers"],
    [{ "attention.shared_kv_layers": 6 }, "gguf.value", "attention.shared_kv_layers"],
    [{ "attention.sliding_window_pattern": [true, false] }, "gguf.value", "attention.sliding_window_pattern"],
    [{ "attention.sliding_window_pattern": ["a"] }, "gguf.value", "attention.sliding_window_pattern"],
    [{ "attention.head_count_kv": [1, 1, 1, 1, 1, 1, 2] }, "gguf.unsupported", "attention.head_count_kv"],
    [{ "attention.head_count_kv": [1, 2, 1, 2] }, "gguf.value", "attention.head_count_kv"],
    [{ "attention.head_count_kv": 3 }, "gguf.value", "attention.head_count_kv"],
    [{ "attention.value_length_swa": 16 }, "gguf.unsupported", "attention.value_length_swa"],
    [{ "attention.key_length_swa": undefined }, "gguf.missing", "attention.key_length_swa"],
    [{ "block_count": 2 ** 31 - 1 }, "gguf.value", "block_count"],
    [{ "expert_count": 8 }, "gguf.unsupported", "expert_count"],
  ];
  for (const [changes, code, key] of wrong) {
    await assert.rejects(configWith("gemma4-shared", changes), { code, where: `metadata["gemma4.${key}"]` }, key);
  }
  const { sources, windows, windowHeads, headDim } = await configWith("gemma4-shared", {});
  assert.deepEqual([sources, windowHeads, headDim], [[0, 1, 2, 3, 2, 2, 3], { kvHeads: 1, headDim: 32 }, 64]);
  assert.deepEqual(windows, [24, 0, 24, 0, 24, 24, 0]);
});
