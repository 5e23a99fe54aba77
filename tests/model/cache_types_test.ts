/** Caches of every type through the whole program: what is stored, what is counted, what is refused. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { CACHE_TYPES, type CacheType, entryBytes } from "../../core/cache/entry_type.ts";
import { PalisadeError } from "../../core/errors.ts";
import { loadModel } from "../../model/model.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { protocolOf } from "../../evaluate/results/summary.ts";
import { randomGate } from "../_helper/gate.ts";

const FILE = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  4,
);

async function open(backend: "ts" | "wasm") {
  return await loadModel(FILE, await currentRuntime(), { backend, dense: "web", precision: "float32" });
}

for (const type of CACHE_TYPES) {
  Deno.test(`openContext() stores ${type}: kernels keep the oracle's entries, bytes are the type's`, async () => {
    await using plain = await open("ts");
    await using model = await open("wasm");
    const options = { policy: "layer-defensive", keep: "30%", cacheType: type };
    using want = await openContext(plain, TEXT, options);
    using got = await openContext(model, TEXT, options);
    const { layers, kvHeads, headDim } = model.config;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < kvHeads; head++) {
        assert.deepEqual(got.cache.positions(layer, head), want.cache.positions(layer, head));
      }
    }
    const answers = [await got.ask("How many stakes?", { maxTokens: 8 })];
    assert.deepEqual(answers[0].ids, (await want.ask("How many stakes?", { maxTokens: 8 })).ids);
    const { cache } = reportOf(model, got, answers, { keepAsked: "30%", loadMs: 0 });
    assert.equal(cache.type, type);
    assert.equal(cache.bytes, cache.kept * entryBytes(headDim, type));
    assert.equal(cache.fullBytes, (cache.kept + cache.evicted) * entryBytes(headDim, type));
    assert.ok(
      cache.allocatedBytes >= cache.bytes && cache.allocatedBytes <= cache.bytes * 8 + layers * kvHeads * 64 * 512,
    );
  });
}

/** Every way of reading makes a cache of the type, and so do a cap, a fork and moves. */
const WAYS: Readonly<Record<string, ContextOptions>> = {
  gate: { policy: "gate", keep: "30%" },
  kvzip: { policy: "kvzip", keep: "30%" },
  risk: { policy: "layer-defensive", risk: 0.3 },
  "a cap with re-rotation": { policy: "snapkv", positions: "rerotate", keep: { tokens: 20 }, maxCache: { tokens: 70 } },
};

for (const [way, options] of Object.entries(WAYS)) {
  Deno.test(`openContext() with ${way} takes every cache type`, async () => {
    await using model = await open("wasm");
    for (const cacheType of CACHE_TYPES) {
      using context = await openContext(model, TEXT, { ...options, gate: randomGate(model.config), cacheType });
      assert.equal(context.cache.type, cacheType);
      assert.ok((await context.ask("How many?", { maxTokens: 4 })).ids.length > 0);
      assert.equal(context.cache.bytes().live, context.cache.entries() * entryBytes(model.config.headDim, cacheType));
    }
  });
}

Deno.test("openContext() refuses a cache type there isn't", async () => {
  await using model = await open("ts");
  const refused = (error: unknown) => error instanceof PalisadeError && error.code === "cache-type.unknown";
  await assert.rejects(openContext(model, TEXT, { cacheType: "f64" as CacheType }), refused);
});

Deno.test("protocolOf() names the cache type where it isn't f32", () => {
  assert.equal(protocolOf({ protocol: "context-first" }), "context-first");
  assert.equal(protocolOf({ protocol: "query-aware", cacheType: "int8" }), "query-aware, int8");
});
