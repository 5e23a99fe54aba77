/** The merging stage through the layers of a tiny model. */
import assert from "node:assert/strict";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import { mergeHead } from "../../core/merge/merge.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { policyText } from "../../core/policy/policy_text.ts";
import { evictDump } from "../../core/dump/evict.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { checkMerge, mergeWindow } from "../../model/read/merge.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { assertClose } from "../_helper/close.ts";
import { bytesSource, savedBytes, snapshotModel } from "../_helper/snapshots.ts";
import { PROSE, tinyModel } from "../_helper/workbench.ts";

const TEXT = PROSE.slice(0, 320);

for (const backend of ["ts", "wasm"] as const) {
  Deno.test(`openContext() on ${backend} merges a layer's evicted entries by the attention of the last queries`, async () => {
    await using model = await tinyModel(backend);
    const { config } = model, { kvHeads, headDim, heads } = config;
    const ids = contextIds(model.frame, model.tokenizer, TEXT);
    using merged = await openContext(model, TEXT, { policy: "streaming-llm(merge=sum)", keep: "40%" });
    // The first layer as it was, and its own window's attention over it in doubles.
    using cache = new RaggedCache(model.backend, config);
    const window = mergeWindow(ids.length);
    using reader = await LayerReader.open(model, cache, ids, { needs: {}, window });
    const seen = await reader.layer(0), queries = await model.backend.tensors.read(seen.windowQueries);
    const rows = await copyHeads(cache.rows(0)), prefix = ids.length - window;
    reader.release(seen);
    for (let head = 0; head < kvHeads; head++) {
      const masses = new Float64Array(ids.length).fill(NaN).fill(0, 0, prefix), group = heads / kvHeads;
      for (let h = head * group; h < (head + 1) * group; h++) {
        for (let t = 0; t < window; t++) {
          const weights = Array.from({ length: prefix + t + 1 }, (_, i) => {
            let dot = 0;
            for (let j = 0; j < headDim; j++) {
              dot += queries[(t * heads + h) * headDim + j] * rows[head].keys[i * headDim + j];
            }
            return Math.exp(dot / Math.sqrt(headDim));
          });
          const sum = weights.reduce((a, b) => a + b, 0);
          for (let i = 0; i < prefix; i++) masses[i] += weights[i] / sum / window / group;
        }
      }
      const kept = merged.cache.positions(0, head), positions = Int32Array.from({ length: ids.length }, (_, i) => i);
      const made = mergeHead({ ...rows[head], positions, masses }, kept, headDim, "sum");
      const got = await merged.cache.rows(0).copyRows(head);
      assertClose(got.keys, made.keys, 1e-5, "keys");
      assertClose(got.values, made.values, 1e-5, "values");
      assertClose(got.bias!, made.bias, 1e-5, "bias");
    }
  });
}

for (const policy of ["snapkv", "layer-defensive", "kvzip", "adakv(snapkv)", "knorm"]) {
  for (const cacheType of ["f32", "int8"] as const) {
    Deno.test(`a merge behind ${policy} in ${cacheType} keeps the same entries, counts its bytes and answers alike each time`, async () => {
      await using model = await tinyModel("wasm");
      const options: ContextOptions = { policy, keep: "30%", cacheType }, { layers, kvHeads } = model.config;
      using plain = await openContext(model, TEXT, options);
      for (const merge of ["mean", "sum"] as const) {
        using context = await openContext(model, TEXT, { ...options, merge });
        let differ = 0, length = 0;
        for (let layer = 0; layer < layers; layer++) {
          for (let head = 0; head < kvHeads; head++) {
            assert.deepEqual(context.cache.positions(layer, head), plain.cache.positions(layer, head));
            const [a, b] = [
              await plain.cache.rows(layer).copyRows(head),
              await context.cache.rows(layer).copyRows(head),
            ];
            if (a.keys.some((key, i) => key !== b.keys[i])) differ++;
            length += context.cache.length(layer, head);
          }
        }
        assert.ok(differ > 0);
        const { merged, lost } = context.merge!;
        if (policy !== "layer-defensive") assert.equal(merged + lost, context.tokens * layers * kvHeads - length);
        const added = merge === "sum" ? 4 * context.cache.biased : 0;
        assert.equal(context.cache.biased > 0, merge === "sum");
        assert.equal(context.cache.bytes().live, plain.cache.bytes().live + added);
        const report = reportOf(model, context, [], { keepAsked: "30%", loadMs: 0 });
        assert.deepEqual([report.merge, report.policy.merge], [context.merge, merge]);
        const first = await context.ask("How many?", { maxTokens: 4 });
        assert.deepEqual((await context.ask("How many?", { maxTokens: 4 })).ids, first.ids);
      }
    });
  }
}

Deno.test("a merged context comes back from its snapshot, and no text is read behind it", async () => {
  await using model = await snapshotModel();
  const options: ContextOptions = { policy: "snapkv(merge=sum)", keep: "40%" };
  using context = await openContext(model, TEXT, options);
  const bytes = await savedBytes(context);
  using again = await openContext(model, TEXT, { ...options, snapshot: bytesSource(bytes) });
  const { layers, kvHeads } = model.config;
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < kvHeads; head++) {
      assert.deepEqual(await again.cache.rows(layer).copyRows(head), await context.cache.rows(layer).copyRows(head));
    }
  }
  assert.equal(again.policy.stages?.merge, "sum");
  const refused = (given: ContextOptions, text = TEXT) =>
    openContext(model, text, { ...given, snapshot: bytesSource(bytes) });
  await assert.rejects(refused({ ...options, policy: "snapkv" }), { code: "snapshot.identity" });
  await assert.rejects(refused(options, `${TEXT} And more.`), { code: "snapshot.tokens", message: /told apart/ });
});

Deno.test("certificates behind a merge say of the selection what they say without, and bound no outputs", async () => {
  await using model = await tinyModel("wasm");
  const options: ContextOptions = { policy: "snapkv", keep: "30%", explain: true };
  using plain = await openContext(model, TEXT, options);
  using merged = await openContext(model, TEXT, { ...options, merge: "mean" });
  const [a, b] = [plain, merged].map((context) =>
    reportOf(model, context, [], { keepAsked: "30%", loadMs: 0 }).certificate!
  );
  // The first layer's input is the same; later ones have seen the same context too, for eviction comes behind them.
  assert.equal(b.risk, a.risk);
  b.layers.forEach((layer, i) => {
    assert.equal(layer.evictedMass, a.layers[i].evictedMass);
    assert.ok(Number.isNaN(layer.outputBound) && Number.isFinite(a.layers[i].outputBound));
  });
});

Deno.test("a merge is refused by name where it can't be", async () => {
  await using model = await tinyModel("wasm");
  const open = (options: ContextOptions) => openContext(model, TEXT, { keep: "30%", ...options });
  await assert.rejects(open({ policy: "snapkv", merge: "product" as "sum" }), { code: "merge.unknown" });
  await assert.rejects(open({ policy: "snapkv", merge: "sum", refit: "both" }), { code: "merge.refit" });
  await assert.rejects(open({ policy: "layer-defensive", merge: "sum", explain: true }), { code: "merge.explain" });
  await assert.rejects(open({ policy: "gate(read=stream)", merge: "sum" }), { code: "merge.early" });
  const risky = { policy: "snapkv", merge: "mean", risk: 0.1, keep: undefined } as const;
  await assert.rejects(openContext(model, TEXT, risky), { code: "merge.risk" });
  assert.throws(() => checkMerge("sum", { name: "webgpu" }), { code: "merge.backend" });
  assert.doesNotThrow(() => checkMerge("mean", { name: "webgpu" }));
  const shape = { heads: 1, kvHeads: 1, headDim: 2 };
  assert.throws(() => evictDump("snapkv(merge=sum)", { fraction: 1 }, shape, []), { code: "policy.stages" });
});

Deno.test("a policy's brackets name stages, and its text names them again", () => {
  const policy = resolvePolicy("adakv(snapkv(window=8), safeguard=0.3, merge=sum)");
  assert.deepEqual([policy.stages, policy.parameters.merge], [{ merge: "sum" }, "sum"]);
  assert.deepEqual(resolvePolicy(policyText(policy)).parameters, policy.parameters);
  assert.deepEqual(resolvePolicy(policyText(resolvePolicy("full(merge=mean)"))).stages, { merge: "mean" });
  assert.equal(resolvePolicy("snapkv(merge=none)").stages, undefined);
  const bad = { "snapkv(merge=max)": "policy.value", "snapkv(merge=sum,merge=sum)": "policy.parameter" };
  for (const [text, code] of Object.entries(bad)) assert.throws(() => resolvePolicy(text), { code }, text);
  assert.throws(() => resolvePolicy("adakv(snapkv(merge=sum))"), { code: "policy.parameter" });
});
