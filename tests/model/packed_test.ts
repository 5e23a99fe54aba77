/** Four-bit rows through the whole program: bytes, answers, snapshots, stages, refusals. */
import assert from "node:assert/strict";
import { entryBytes } from "../../core/cache/entry_type.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { loadModel } from "../../model/model.ts";
import { bytesSource, savedBytes, snapshotModel, TEXT } from "../_helper/snapshots.ts";
import { roundTrip } from "../_helper/snapshot_trip.ts";
import { fileURLToPath } from "node:url";

const model = await snapshotModel();

Deno.test("what stays is packed, its bytes counted, and kept from question to question", async () => {
  const { headDim } = model.config;
  for (const cacheType of ["int4", "k=int4,v=int8", "k=f16,v=int4"] as const) {
    using context = await openContext(model, TEXT, { policy: "kvzip", keep: "30%", cacheType });
    const { cache } = context, before = cache.bytes().live;
    assert.ok(cache.packed(0, 0) === cache.length(0, 0) && cache.packed(0, 0) > 0);
    assert.ok(before < cache.entries() * entryBytes(headDim, "f16"));
    const first = await context.ask("How many?", { maxTokens: 6 }),
      second = await context.ask("How many?", { maxTokens: 6 });
    assert.deepEqual(second.ids, first.ids);
    assert.equal(cache.bytes().live, before);
    const rows = Array.from({ length: cache.shape.layers }, (_, layer) => cache.rows(layer).liveBytes);
    assert.equal(rows.reduce((a, b) => a + b), before);
  }
});

Deno.test("every way of reading packs; a cap and moves make rows float16 again where they must", async () => {
  const ways = [
    { policy: "layer-defensive", keep: "30%" },
    { policy: "layer-defensive", risk: 0.4 },
    { policy: "gate(read=stream)", keep: "30%" },
    { policy: "defensive", keep: "40%", maxCache: { tokens: 60 } },
    { policy: "full" },
  ];
  for (const options of ways) {
    using context = await openContext(model, TEXT, { ...options, cacheType: "int4" });
    const { cache } = context, { layers, kvHeads } = cache.shape;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < kvHeads; head++) {
        assert.equal(cache.packed(layer, head), cache.length(layer, head), options.policy);
      }
    }
    assert.ok((await context.ask("How many?", { maxTokens: 4 })).ids.length > 0);
  }
});

Deno.test("stages: rows are stored as asked once a layer is read, and refitted", async () => {
  using plain = await openContext(model, TEXT, { policy: "kvzip", keep: "30%" });
  using staged = await openContext(model, TEXT, { policy: 'kvzip(rows="k=int4,v=int8",refit=both)', keep: "30%" });
  assert.equal(staged.cache.type, "k=int4,v=int8");
  // Read as float32: the same selection.
  for (const layer of [0, 1]) assert.deepEqual(staged.cache.positions(layer, 0), plain.cache.positions(layer, 0));
  // An entry of a refitted head has a bias beside its numbers.
  const [packed, floats] = [staged, plain].map(({ cache }) => cache.bytes().live), { headDim } = plain.cache.shape;
  const biases = 4 * floats / (8 * headDim);
  assert.ok(packed - biases < floats / 3, `${packed} bytes, ${biases} of them biases; ${floats} in float32`);
  assert.ok(staged.refit !== undefined);
  await assert.rejects(openContext(model, TEXT, { policy: "gate(read=stream,rows=int8)", keep: "30%" }), {
    code: "rows.early",
  });
  await assert.rejects(openContext(model, TEXT, { policy: "kvzip(rows=int5)" }), { code: "policy.value" });
});

Deno.test("a snapshot holds packed rows bit for bit; cloaks refuse them", async () => {
  for (const cacheType of ["int4", "k=int4,v=int8", "k=int8,v=int4"] as const) {
    await roundTrip(model, { policy: "defensive", keep: "30%", cacheType }, cacheType);
    await roundTrip(model, { policy: "full", cacheType }, `${cacheType}, full`);
    using context = await openContext(model, TEXT, { policy: "kvzip(refit=both)", keep: "30%", cacheType });
    using restored = await model.restore(bytesSource(await savedBytes(context)));
    for (let head = 0; head < context.cache.shape.kvHeads; head++) {
      assert.deepEqual(await restored.cache.rows(0).copyRows(head), await context.cache.rows(0).copyRows(head));
    }
    assert.equal(restored.cache.bytes().live, context.cache.bytes().live);
  }
  await assert.rejects(openContext(model, TEXT, { policy: "knorm", keep: "30%", cacheType: "int4", cloak: true }), {
    code: "cloak.type",
  });
});

Deno.test("window layers are packed too", async () => {
  await using windows = await snapshotModel("gemma3-windows");
  await roundTrip(windows, { policy: "snapkv", keep: "50%", cacheType: "int4" }, "windows");
});

Deno.test("a backend without such rows refuses them by name", async () => {
  const file = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
  await using loaded = await loadModel(file, await currentRuntime(), { backend: "ts", dense: "web" });
  const poor = { ...loaded, backend: { ...loaded.backend, packs: false } };
  for (const cacheType of ["int4", "k=f16,v=int8"] as const) {
    await assert.rejects(openContext(poor, TEXT, { cacheType }), { code: "cache-type.backend" });
  }
});

Deno.test("keys lose no channels where they are packed", async () => {
  const options = { policy: "knorm(key-channels=60%)", keep: "30%", cacheType: "int4" } as const;
  await assert.rejects(openContext(model, TEXT, options), { code: "key-channels.type" });
});
