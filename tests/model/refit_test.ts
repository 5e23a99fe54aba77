/** Moved queries and refits through the layers of a tiny model. */
import assert from "node:assert/strict";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { movedMaxima } from "../../core/measure/moved.ts";
import { refitHead } from "../../core/refit/refit.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { repeatPrompts } from "../../model/read/reconstruct.ts";
import { ofKvHead } from "../../model/read/references.ts";
import { checkRefit, RefitStage } from "../../model/read/refit.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { contextIds } from "../../model/text/prompt.ts";
import {
  forkCache,
  prefillOnce,
  pursuedOf,
  refitFork,
  type SharedPrefill,
} from "../../evaluate/sweep/shared_prefill.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { PalisadeError } from "../../core/errors.ts";
import type { Model } from "../../model/model.ts";
import { assertClose } from "../_helper/close.ts";
import { bytesSource, savedBytes, snapshotModel } from "../_helper/snapshots.ts";
import { PROSE, tinyModel } from "../_helper/workbench.ts";

const TEXT = PROSE.slice(0, 320);

for (const backend of ["ts", "wasm"] as const) {
  Deno.test(`LayerReader on ${backend} asks the context's own queries from behind its end, in every layer`, async () => {
    await using model = await tinyModel(backend);
    const { config } = model, ids = contextIds(model.frame, model.tokenizer, TEXT), length = ids.length;
    using cache = new RaggedCache(model.backend, config);
    const options = { needs: { moved: { every: 3 } }, window: length, referenceTokens: 20 };
    using reader = await LayerReader.open(model, cache, ids, options);
    for (let layer = 0; layer < config.layers; layer++) {
      const seen = await reader.layer(layer), { heads, headDim } = config;
      const asked = await model.backend.tensors.read(seen.windowQueries), queries = new Float32Array(asked.length);
      for (let t = 0; t < length; t++) {
        for (let h = 0; h < heads; h++) {
          const from = (t * heads + h) * headDim;
          queries.set(asked.subarray(from, from + headDim), (h * length + t) * headDim);
        }
      }
      const keys = (await copyHeads(cache.rows(layer))).map((head) => head.keys);
      const input = { shape: config, queries, keys, length, rotation: config.ropes[layer] };
      assertClose(seen.moved!, movedMaxima(input, 3), 1e-5, `layer ${layer}`);
      assert.equal(seen.references!.tokens, Math.ceil(length / Math.ceil(length / 20)));
      reader.release(seen);
    }
    assert.ok(reader.activationBytes > 4 * length / 3 * config.heads * config.headDim);
  });
}

Deno.test("the references of a repeated context are queries of its prompts, asked over the context alone", async () => {
  await using model = await tinyModel("wasm");
  const { config } = model,
    ids = contextIds(model.frame, model.tokenizer, TEXT),
    { needs } = resolvePolicy("kvzip(chunk=64)");
  const prompts = repeatPrompts(model, ids, needs.reconstruction!);
  assert.ok(prompts.length > 1);
  using cache = new RaggedCache(model.backend, config);
  using reader = await LayerReader.open(model, cache, ids, { needs, window: 0, prompts, referenceTokens: 30 });
  for (let layer = 0; layer < config.layers; layer++) {
    const { references } = await reader.layer(layer);
    const total = prompts.reduce((sum, each) => sum + each.ids.length, 0);
    assert.equal(references!.tokens, Math.ceil(total / Math.ceil(total / 30)));
    for (let head = 0; head < config.kvHeads; head++) {
      const mine = ofKvHead(references!, config, head), { keys, values } = await cache.rows(layer).copyRows(head);
      // With every row kept, the softmax over the rows is the references' own.
      const fitted = refitHead({ keys, values }, mine, config.headDim, {
        refit: "values",
        defensive: false,
        ridge: 1,
      });
      assert.ok(fitted!.before < 1e-4, `layer ${layer} head ${head}: ${fitted!.before}`);
    }
  }
});

for (const policy of ["kvzip", "moved", "kvzip(compete=head)", "layer-defensive"]) {
  Deno.test(`openContext() with ${policy} and a refit serves held-out queries better, and keeps the same entries`, async () => {
    await using model = await tinyModel("wasm");
    const options: ContextOptions = { policy, keep: "70%" };
    using plain = await openContext(model, TEXT, options);
    using refitted = await openContext(model, TEXT, { ...options, refit: "both" });
    const { layers, kvHeads } = model.config, { refit } = refitted;
    assert.ok(refit!.heads > 0 && refit!.heads <= refit!.of && refit!.of <= layers * kvHeads, JSON.stringify(refit));
    assert.ok(refit!.after < refit!.before);
    let biased = 0;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < kvHeads; head++) {
        assert.deepEqual(refitted.cache.positions(layer, head), plain.cache.positions(layer, head));
        const [before, after] = [
          await plain.cache.rows(layer).copyRows(head),
          await refitted.cache.rows(layer).copyRows(head),
        ];
        assert.deepEqual(after.keys, before.keys);
        if (after.bias) biased += after.bias.length;
        else assert.deepEqual(after.values, before.values);
      }
    }
    assert.equal(refitted.cache.biased, biased);
    assert.equal(refitted.cache.bytes().live - plain.cache.bytes().live, 4 * biased);
    assert.deepEqual(reportOf(model, refitted, [], { keepAsked: "25%", loadMs: 0 }).refit, refit);
    assert.equal(reportOf(model, plain, [], { keepAsked: "25%", loadMs: 0 }).refit, null);
    // A question leaves it as it was.
    const first = await refitted.ask("How many?", { maxTokens: 4 });
    assert.deepEqual((await refitted.ask("How many?", { maxTokens: 4 })).ids, first.ids);
  });
}

/** A fork to refit, its copied rows and refitted heads written down. */
async function watched(model: Model, prefill: SharedPrefill, failAt = Infinity) {
  const fork = await forkCache(prefill.cache, prefill.cases[0].kept!), events: string[] = [];
  const rows = fork.rows.bind(fork);
  fork.rows = (layer) => {
    const own = rows(layer);
    const copyRows = (head: number) => {
      events.push(`copy ${layer} ${head}`);
      return events.length > failAt ? Promise.reject(new Error("lost")) : own.copyRows(head);
    };
    return Object.assign(Object.create(null), { shape: own.shape, copyRows });
  };
  fork.refit = (layer, head) => void events.push(`refit ${layer} ${head}`);
  const stage = new RefitStage(fork, { refit: "both", defensive: false });
  prefill.references.forEach((references, layer) => stage.add(layer, references));
  const heads = Array.from(
    { length: model.config.layers },
    (_, layer) => Array.from({ length: model.config.kvHeads }, (_, head) => `${layer} ${head}`),
  ).flat();
  return { fork, stage, events, heads, length: prefill.cache.position };
}

Deno.test("a refit asks for the next head's rows before it fits one, once each", async () => {
  await using model = await tinyModel("wasm");
  const ids = contextIds(model.frame, model.tokenizer, TEXT), policy = resolvePolicy("kvzip(compete=head)");
  using prefill = await prefillOnce(model, ids, [{ policy, keep: { fraction: 0.7 } }], { referenceTokens: 384 });
  const { fork, stage, events, heads, length } = await watched(model, prefill);
  using _ = fork;
  await stage.run(length, {});
  const wanted = heads.flatMap((head, i) => {
    return [...i + 1 < heads.length ? [`copy ${heads[i + 1]}`] : [], `refit ${head}`];
  });
  assert.deepEqual(events, [`copy ${heads[0]}`, ...wanted]);
  assert.equal(stage.waitingBytes, 0);
});

Deno.test("a refit that is stopped, or whose rows don't come, leaves nothing unheard", async () => {
  await using model = await tinyModel("wasm");
  const ids = contextIds(model.frame, model.tokenizer, TEXT), policy = resolvePolicy("kvzip(compete=head)");
  using prefill = await prefillOnce(model, ids, [{ policy, keep: { fraction: 0.7 } }], { referenceTokens: 384 });
  const stopped = await watched(model, prefill, 0), lost = await watched(model, prefill, 2);
  using _ = stopped.fork, __ = lost.fork;
  const why = new Error("stopped");
  await assert.rejects(stopped.stage.run(stopped.length, { signal: AbortSignal.abort(why) }), why);
  await assert.rejects(lost.stage.run(lost.length, {}), /lost/);
  assert.ok(lost.stage.waitingBytes > 0);
});

Deno.test("refitFork() gives what openContext() gives", async () => {
  await using model = await tinyModel("wasm");
  const ids = contextIds(model.frame, model.tokenizer, TEXT), policy = resolvePolicy("kvzip");
  using prefill = await prefillOnce(model, ids, [{ policy, keep: { fraction: 0.7 } }], { referenceTokens: 384 });
  using fork = await forkCache(prefill.cache, prefill.cases[0].kept!);
  await refitFork(fork, prefill, { refit: "both" });
  using context = await openContext(model, TEXT, { policy, keep: "70%", refit: "both" });
  assert.ok(fork.biased > 0);
  for (let layer = 0; layer < model.config.layers; layer++) {
    assert.deepEqual(await copyHeads(fork.rows(layer)), await copyHeads(context.cache.rows(layer)));
  }
});

for (const policy of ["kvzip", "adakv"]) {
  Deno.test(`a pursuit behind ${policy} keeps as many entries of each head, and a sweep's fork is the same`, async () => {
    await using model = await tinyModel("wasm");
    const { layers, kvHeads } = model.config, ids = contextIds(model.frame, model.tokenizer, PROSE.slice(0, 120));
    const entries = ({ cache }: { cache: RaggedCache }) =>
      Array.from({ length: layers }, (_, layer) => Array.from({ length: kvHeads }, (_, h) => cache.length(layer, h)));
    using context = await openContext(model, PROSE.slice(0, 120), { policy, keep: "70%", refit: "pursuit" });
    using plain = await openContext(model, PROSE.slice(0, 120), { policy, keep: "70%", refit: "both" });
    assert.deepEqual(entries(context), entries(plain));
    assert.ok(context.refit!.pursued! > 0 && context.refit!.heads >= context.refit!.pursued!);
    assert.equal(plain.refit!.pursued, undefined);
    const pursuing = resolvePolicy(`${policy}(refit=pursuit)`);
    using prefill = await prefillOnce(model, ids, [{ policy: pursuing, keep: { fraction: 0.7 } }], {
      referenceTokens: 384,
    });
    using fork = await forkCache(prefill.cache, await pursuedOf(prefill, prefill.cases[0], { refit: "pursuit" }));
    await refitFork(fork, prefill, { refit: "pursuit" });
    for (let layer = 0; layer < layers; layer++) {
      assert.deepEqual(await copyHeads(fork.rows(layer)), await copyHeads(context.cache.rows(layer)));
    }
    assert.deepEqual(prefill.cases[0].kept!.map((heads) => heads.map(({ length }) => length)), entries(plain));
    const first = await context.ask("How many?", { maxTokens: 4 });
    assert.deepEqual((await context.ask("How many?", { maxTokens: 4 })).ids, first.ids);
  });
}

Deno.test("nothing is refitted where nothing is evicted", async () => {
  await using model = await tinyModel("wasm");
  using context = await openContext(model, TEXT, { policy: "kvzip", keep: "100%", refit: "both" });
  assert.deepEqual([context.refit, context.cache.biased], [undefined, 0]);
});

Deno.test("a refit is refused where it can't be", async () => {
  await using model = await tinyModel("ts");
  const code = async (options: ContextOptions, changed: Model = model) => {
    const error = await openContext(changed, TEXT, { keep: "25%", refit: "both", ...options }).then(
      () => undefined,
      (e) => e,
    );
    assert.ok(error instanceof PalisadeError, String(error));
    return error.code;
  };
  assert.equal(await code({ policy: "gate(read=stream)" }), "refit.early");
  assert.equal(await code({ policy: "snapkv", keep: undefined, risk: 0.2 }), "refit.risk");
  assert.equal(await code({ policy: "snapkv", refit: "all" as "both" }), "refit.unknown");
  assert.equal(await code({ policy: "cake", refit: "pursuit" }), "refit.pursuit");
  assert.equal(await code({ policy: "gate(read=stream)", refit: "pursuit" }), "refit.early");
  assert.equal(
    await code({ policy: "snapkv" }, { ...model, backend: { ...model.backend, refits: false } }),
    "refit.backend",
  );
  assert.equal(checkRefit("none", { name: "webgpu" }), "none");
});

Deno.test("a refitted context is saved and restored with its biases, cloaked or not, and its certificate says less", async () => {
  const model = await snapshotModel();
  using context = await openContext(model, TEXT, { policy: "kvzip", keep: "70%", refit: "both", explain: true });
  assert.ok(context.cache.biased > 0);
  const { certificate } = reportOf(model, context, [], { keepAsked: "25%", loadMs: 0 });
  const [layer] = certificate!.layers;
  assert.ok(layer.evictedMass > 0 && Number.isNaN(layer.outputBound) && Number.isNaN(layer.heads[0].outputBound));
  const first = await context.ask("How many?", { maxTokens: 4 });
  using restored = await model.restore(bytesSource(await savedBytes(context)));
  assert.equal(restored.cache.biased, context.cache.biased);
  for (let index = 0; index < model.config.layers; index++) {
    assert.deepEqual(await copyHeads(restored.cache.rows(index)), await copyHeads(context.cache.rows(index)));
  }
  assert.deepEqual((await restored.ask("How many?", { maxTokens: 4 })).ids, first.ids);
  const secret = { kind: "key", bytes: new Uint8Array(32).fill(7) } as const;
  const cloaked = await savedBytes(context, { cloak: secret });
  using uncloaked = await model.restore(bytesSource(cloaked), { secret });
  const biases = async ({ cache }: typeof restored) => (await copyHeads(cache.rows(1))).map(({ bias }) => bias);
  assert.deepEqual(await biases(uncloaked), await biases(context));
  const without = { ...model, backend: { ...model.backend, refits: false } };
  await assert.rejects(without.restore(bytesSource(await savedBytes(context))).then((c) => c), {
    code: "refit.backend",
  });
});
