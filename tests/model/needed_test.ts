import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { neededBytes } from "../../model/dense/needed.ts";
import { pickDense } from "../../model/dense/pick.ts";
import type { PalisadeError } from "../../core/errors.ts";
import { loadModel, memoryOf } from "../../model/model.ts";
import { checkRoom, type NeededMemory, neededMemory } from "../../model/needed_memory.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { DENSE_MODELS, openTiny, TINY_MODELS } from "../_helper/tiny_models.ts";

const PATH = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));

for (const engine of ["wasm", "web"] as const) {
  Deno.test(`neededBytes() promises no more than ${engine} holds, and most of it`, async () => {
    for (const name of engine === "wasm" ? TINY_MODELS : DENSE_MODELS) {
      await using model = await openTiny(name);
      for (const form of engine === "wasm" ? ["blocks"] as const : ["blocks", "float32"] as const) {
        const precision = form === "blocks" ? "quantised" : "float32";
        await using dense = await pickDense(model.file, model.config, { dense: engine, precision });
        const needed = neededBytes(model.file, engine, form), held = dense.weightBytes;
        assert.ok(needed <= held && needed > 0.25 * held, `${name}, ${form}: ${needed} of ${held}`);
      }
    }
  });
}

Deno.test("loadModel() refuses weights that the process can't hold, with the sum, before any is read", async () => {
  const runtime = await currentRuntime();
  let read = 0;
  const told: number[] = [];
  const small = (limitBytes: number) => ({
    ...runtime,
    memory: () => ({ ...runtime.memory(), limitBytes }),
  });
  await using model = await openTiny("llama-plain");
  const needed = neededBytes(model.file, "wasm", "blocks");
  const load = (limit: number) =>
    loadModel(PATH, small(limit), {
      dense: "wasm",
      backend: "ts",
      onNeeded: (bytes) => told.push(bytes, read),
      onProgress: () => read++,
    });
  const refused = { kind: "resources", code: "memory.short", message: /weights take 1 MB.* 1 MB at most/ };
  await assert.rejects(load(needed - 1), refused);
  assert.deepEqual([read, told], [0, []]);
  await (await load(needed))[Symbol.asyncDispose]();
  assert.ok(read > 0);
  assert.deepEqual(told, [needed, 0], "told before anything is read");
});

Deno.test("neededMemory() counts what is kept, one layer whole, windows, and hidden states", async () => {
  await using plain = await openTiny("llama-plain");
  const { layers, kvHeads, headDim, width, vocabulary } = plain.config, tokens = 1000, entry = 8 * headDim;
  const whole = neededMemory(plain.config, 7, { tokens });
  assert.deepEqual([whole.weights, whole.tokens, whole.cache], [7, tokens, layers * kvHeads * tokens * entry]);
  assert.ok(whole.working >= 4 * (tokens * width + vocabulary));
  const some = neededMemory(plain.config, 7, { tokens, kept: 0.25, cacheType: "f16" });
  assert.equal(some.cache, kvHeads * tokens * (0.25 * layers + 0.75) * entry / 2);
  const { heads } = plain.config, refit = { tokens: 384, layers, candidates: 1 };
  const refitted = neededMemory(plain.config, 7, { tokens, kept: 0.25, refit });
  assert.equal(refitted.cache, 2 * some.cache);
  assert.equal(refitted.working - whole.working, 4 * 384 * layers * heads * (2 * headDim + 1), "queries and outputs");
  const pursued = neededMemory(plain.config, 7, { tokens, kept: 0.125, refit: { ...refit, candidates: 4 } });
  assert.equal(pursued.cache, neededMemory(plain.config, 7, { tokens, kept: 0.5 }).cache);
  await using windowed = await openTiny("gemma3-windows");
  const narrow = neededMemory(windowed.config, 7, { tokens, kept: 0.5 });
  assert.equal(narrow.cache, (6 * 23 + tokens) * windowed.config.kvHeads * 8 * windowed.config.headDim);
});

Deno.test("checkRoom() refuses with the sums what the process or the modules can't hold", () => {
  const needed = { weights: 5e9, cache: 6e9, working: 1e6, tokens: 70000 };
  const room = { limitBytes: 2e10, weightModules: 2, cacheModules: 2 };
  checkRoom("m", needed, room);
  const refusal = (over: Partial<typeof room>, code: string, message: RegExp) =>
    assert.throws(() => checkRoom("m", needed, { ...room, ...over }), { code, kind: "resources", message });
  refusal(
    { limitBytes: 1.1e10 },
    "memory.short",
    /5000 MB, keys and values of 70000 tokens 6000 MB .* 11001 MB in all/,
  );
  refusal({ weightModules: 1 }, "memory.module", /weights take 5000 MB, and one WebAssembly memory holds 4295 MB/);
  refusal({ cacheModules: 1 }, "memory.module", /70000 tokens take 6000 MB/);
  const three = { ...needed, weights: 1.3e10 };
  const message = /13000 MB, and the 3 WebAssembly memories of the threads hold 12885 MB/;
  assert.throws(() => checkRoom("m", three, { ...room, weightModules: 3 }), { code: "memory.module", message });
  checkRoom("m", { ...needed, weights: 9e9 }, { ...room, weightModules: 0 });
  checkRoom("m", needed, { weightModules: 1, outsideBytes: 1e9, cacheModules: 0 });
});

Deno.test("loadModel() tells what all will take, and refuses a text that there is no room for, before weights are read", async () => {
  const runtime = await currentRuntime(), told: (NeededMemory | undefined)[] = [];
  const load = (tokens: number, path = PATH) =>
    loadModel(path, runtime, {
      dense: "wasm",
      backend: "wasm",
      expected: ({ tokenizer }) => ({ tokens: tokenizer.vocabulary > 0 ? tokens : 0, positions: 60 }),
      onNeeded: (_, needed) => told.push(needed),
    });
  await using model = await load(100);
  assert.deepEqual(
    told,
    [neededMemory(model.config, model.dense.weightBytes, { tokens: 100 })].map((each) => {
      return { ...each, weights: told[0]!.weights };
    }),
  );
  await assert.rejects(load(1e9), (error: PalisadeError) => /^memory\.(short|module)$/.test(error.code));
  await using phi = await load(100, PATH.replace("llama-plain", "phi3-long"));
  assert.equal(phi.config.contextLength, 64, "turned for a short text");
});

Deno.test("memoryOf() tells what loadModel() would need, and reads no weight", async () => {
  const runtime = await currentRuntime(), options = { dense: "wasm", backend: "wasm" } as const;
  let read = 0;
  const text = () => ({ tokens: 100, kept: 0.2 });
  const told = await memoryOf(PATH, runtime, { ...options, expected: text, onProgress: () => read++ });
  assert.equal(read, 0);
  await using model = await loadModel(PATH, runtime, options);
  assert.deepEqual(told, model.needed(text()));
  assert.ok(told.weights > 40_000 && told.cache > 0 && told.tokens === 100);
  const bare = await memoryOf(PATH, runtime, options);
  assert.deepEqual([bare.weights, bare.cache, bare.tokens], [told.weights, 0, 0]);
  const small = { ...runtime, memory: () => ({ ...runtime.memory(), limitBytes: told.weights }) };
  await assert.rejects(memoryOf(PATH, small, { ...options, expected: text }), { code: "memory.short" });
});

Deno.test("neededMemory() of a streamed text has no whole layer and no hidden states but a chunk's", async () => {
  await using plain = await openTiny("llama-plain");
  const { layers, kvHeads, headDim, width } = plain.config, tokens = 10_000, text = { tokens, kept: 0.25 };
  const whole = neededMemory(plain.config, 7, text),
    streamed = neededMemory(plain.config, 7, { ...text, streamed: true });
  assert.equal(streamed.cache, 0.25 * tokens * layers * kvHeads * 8 * headDim);
  assert.equal(whole.working - streamed.working, 4 * (tokens - 256) * width);
});

Deno.test("openContext() refuses a text that there is no room for, with the sums, before it is read", async () => {
  const runtime = await currentRuntime();
  await using loaded = await loadModel(PATH, runtime, { dense: "wasm", backend: "wasm" });
  const text = "The gate is shut at dusk. ".repeat(20), { weights } = loaded.needed({ tokens: 1 });
  let layers = 0;
  const open = (limitBytes: number, policy = "snapkv(window=8)") => {
    const room = { weightModules: 1, cacheModules: 1, limitBytes };
    return openContext({ ...loaded, room }, text, { policy, keep: "50%", onLayer: () => layers++ });
  };
  const refused = { code: "memory.short", kind: "resources", message: /^Can't read the context: .*MB in all/ };
  for (const policy of ["snapkv(window=8)", "full", "streaming-llm"]) {
    await assert.rejects(open(weights + 1000, policy), refused);
  }
  assert.equal(layers, 0);
  (await open(weights + 10e6))[Symbol.dispose]();
  assert.ok(layers > 0);
});

Deno.test("a runtime tells how much memory is free", async () => {
  const { freeBytes, limitBytes } = (await currentRuntime()).memory();
  assert.ok(freeBytes! > 0 && freeBytes! <= limitBytes!, `${freeBytes} of ${limitBytes}`);
});
