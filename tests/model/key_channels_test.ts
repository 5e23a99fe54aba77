/** ThinK's stage through the layers of a tiny model: which channels stay, what that changes, and what it refuses. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import { rowBytes } from "../../core/cache/entry_type.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { channelCount, channelSquares, keptChannels } from "../../core/measure/key_channels.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { extend } from "../../model/decode/extend.ts";
import { checkKeyChannels, RECENT_KEYS } from "../../model/read/key_channels.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { assertClose } from "../_helper/close.ts";
import { bytesSource, savedBytes, snapshotModel } from "../_helper/snapshots.ts";
import { PROSE, tinyModel } from "../_helper/workbench.ts";

const TEXT = PROSE.slice(0, 320);
const STAGE = { keyChannels: "60%" } as const;

Deno.test("keptChannels() are those that NumPy finds by the norms of the products", () => {
  const golden = JSON.parse(readFileSync(new URL("../data/stages/key_channels.json", import.meta.url), "utf8"));
  const [queries, keys] = [golden.queries, golden.keys].map((each) =>
    channelSquares(Float32Array.from(each), golden.dim)
  );
  assert.deepEqual([...keptChannels(queries, keys, golden.kept)], golden.channels);
  assert.equal(channelCount(golden.dim, golden.share), golden.count);
  assert.deepEqual([channelCount(64, 0.6), channelCount(128, 0.5), channelCount(8, 0.01)], [39, 64, 1]);
  assert.deepEqual([...keptChannels(Float64Array.of(1, 2, 1), Float64Array.of(1, 1, 1), 2)], [0, 1]);
});

for (const cacheType of ["f32", "f16", "int8"] as const) {
  Deno.test(`channels left out in ${cacheType} are really gone, and attention takes them for 0`, async () => {
    await using model = await tinyModel("wasm");
    const { layers, kvHeads, headDim } = model.config,
      options: ContextOptions = { policy: "snapkv", keep: "60%", cacheType };
    using plain = await openContext(model, TEXT, options);
    using thin = await openContext(model, TEXT, { ...options, ...STAGE });
    const count = channelCount(headDim, 0.6), entries = plain.cache.entries() - layers * kvHeads * RECENT_KEYS;
    assert.deepEqual({ ...thin.keyChannels, ms: 0 }, {
      ...{ channels: count, of: headDim, entries, recent: RECENT_KEYS, window: thin.budget.window, ms: 0 },
    });
    const saved = entries * (rowBytes(headDim, cacheType) - rowBytes(count, cacheType)) - 2 * count * layers * kvHeads;
    assert.equal(plain.cache.bytes().live - thin.cache.bytes().live, saved);
    // A cache of whole keys with zeros in their place answers the same.
    using zeros = new RaggedCache(model.backend, model.config, "f32");
    for (let layer = 0; layer < layers; layer++) {
      const [before, after] = [await copyHeads(plain.cache.rows(layer)), await copyHeads(thin.cache.rows(layer))];
      after.forEach(({ keys, values }, head) => {
        const { channels, rows } = thin.cache.reduced(layer, head).thin!;
        assert.equal(rows, plain.cache.length(layer, head) - RECENT_KEYS);
        assert.deepEqual(values, before[head].values);
        keys.forEach((key, i) => {
          const gone = i < rows * headDim && !channels.includes(i % headDim);
          if (gone) assert.equal(key, 0);
          else if (cacheType !== "int8") assert.equal(key, before[head].keys[i]);
        });
      });
      zeros.fill(layer, after.map((each, head) => ({ ...each, positions: thin.cache.positions(layer, head) })));
    }
    zeros.advance(thin.cache.position);
    const ids = [5, 6, 7, 8, 9];
    const mark = thin.cache.mark(), ours = await extend(model.dense, thin.cache, ids);
    thin.cache.trim(mark);
    assertClose(ours, await extend(model.dense, zeros, ids), cacheType === "f32" ? 1e-5 : 2e-2, "logits");
    const report = reportOf(model, thin, [], { keepAsked: "60%", loadMs: 0 });
    assert.deepEqual([report.keyChannels, report.policy["key-channels"]], [thin.keyChannels, "60%"]);
  });
}

Deno.test("the plain backend and the kernels leave the same channels out, and answer alike", async () => {
  await using plain = await tinyModel("ts");
  await using kernels = await tinyModel("wasm");
  const options: ContextOptions = { policy: "layer-defensive(merge=sum)", keep: "50%", ...STAGE };
  using a = await openContext(plain, TEXT, options);
  using b = await openContext(kernels, TEXT, options);
  for (let layer = 0; layer < plain.config.layers; layer++) {
    for (let head = 0; head < plain.config.kvHeads; head++) {
      assert.deepEqual(a.cache.reduced(layer, head), b.cache.reduced(layer, head));
      const [one, other] = [await a.cache.rows(layer).copyRows(head), await b.cache.rows(layer).copyRows(head)];
      if (one.keys.length > 0) assertClose(other.keys, one.keys, 1e-4, "keys");
    }
  }
  const [one, other] = [await a.ask("How many?", { maxTokens: 6 }), await b.ask("How many?", { maxTokens: 6 })];
  assert.deepEqual(other.ids, one.ids);
  assert.deepEqual((await b.ask("How many?", { maxTokens: 6 })).ids, one.ids);
});

Deno.test("all channels are what nothing left out is, and a full cache loses channels too", async () => {
  await using model = await tinyModel("wasm");
  using plain = await openContext(model, TEXT, { policy: "snapkv", keep: "60%" });
  using all = await openContext(model, TEXT, { policy: "snapkv(key-channels=100%)", keep: "60%" });
  using full = await openContext(model, TEXT, { policy: "full(key-channels=0.5)" });
  assert.equal(all.keyChannels, undefined);
  assert.deepEqual(all.policy.parameters, plain.policy.parameters);
  for (let layer = 0; layer < model.config.layers; layer++) {
    assert.deepEqual(await copyHeads(all.cache.rows(layer)), await copyHeads(plain.cache.rows(layer)));
  }
  assert.equal(
    full.keyChannels!.entries,
    full.cache.entries() - model.config.layers * model.config.kvHeads * RECENT_KEYS,
  );
});

Deno.test("thin keys go on under a cap, at rest, and through a snapshot", async () => {
  await using model = await snapshotModel();
  const options: ContextOptions = { policy: "snapkv(key-channels=60%)", keep: "60%" }, ask = { maxTokens: 5 };
  using context = await openContext(model, TEXT, options);
  const { ids } = await context.ask("How many?", ask);
  const bytes = await savedBytes(context);
  using again = await openContext(model, TEXT, { ...options, snapshot: bytesSource(bytes) });
  assert.equal(again.cache.bytes().live, context.cache.bytes().live);
  for (let layer = 0; layer < model.config.layers; layer++) {
    assert.deepEqual(await copyHeads(again.cache.rows(layer)), await copyHeads(context.cache.rows(layer)));
  }
  assert.deepEqual((await again.ask("How many?", ask)).ids, ids);
  using resting = await openContext(model, TEXT, { ...options, cloak: true });
  assert.deepEqual((await resting.ask("How many?", ask)).ids, ids);
  const held = context.cache.length(0, 0);
  using capped = await openContext(model, TEXT, { ...options, maxCache: { tokens: Math.ceil(held / 0.9) + 1 } });
  const answered = await capped.ask("How many of them stand there, and how many more will?", { maxTokens: 40 });
  assert.ok(answered.maxCache!.evictedFromContext > 0);
  assert.deepEqual(
    (await capped.ask("How many of them stand there, and how many more will?", { maxTokens: 40 })).ids,
    answered.ids,
  );
  const longer = openContext(model, `${TEXT} And more.`, { ...options, snapshot: bytesSource(bytes) });
  await assert.rejects(longer, { code: "snapshot.tokens", message: /chosen for all of them at once/ });
});

Deno.test("channels are left out where they can be, and refused by name where not", async () => {
  await using model = await tinyModel("wasm");
  const open = (options: ContextOptions) => openContext(model, TEXT, { keep: "60%", policy: "snapkv", ...options });
  for (const keyChannels of ["0%", "101%", "many", 2, -1, NaN]) {
    await assert.rejects(open({ keyChannels }), { code: "key-channels.range" }, String(keyChannels));
  }
  await assert.rejects(open({ ...STAGE, positions: "rerotate" }), { code: "key-channels.positions" });
  await assert.rejects(open({ ...STAGE, policy: "gate(read=stream)" }), { code: "key-channels.early" });
  await assert.rejects(open({ ...STAGE, keep: undefined, risk: 0.1 }), { code: "key-channels.risk" });
  assert.throws(() => checkKeyChannels({ keyChannels: 0.5 }, { name: "webgpu" }), { code: "key-channels.backend" });
  assert.doesNotThrow(() => checkKeyChannels({}, { name: "webgpu" }));
  assert.throws(() => resolvePolicy("snapkv(key-channels=0%)"), { code: "policy.value" });
  using context = await open({ ...STAGE, explain: true });
  assert.ok(context.certificates!.length > 0);
  const { certificate } = reportOf(model, context, [], { keepAsked: "60%", loadMs: 0 });
  assert.ok(certificate!.layers.every(({ outputBound }) => Number.isNaN(outputBound)));
  using plain = await open({ explain: true });
  assert.deepEqual(certificate!.risk, reportOf(model, plain, [], { keepAsked: "60%", loadMs: 0 }).certificate!.risk);
});
