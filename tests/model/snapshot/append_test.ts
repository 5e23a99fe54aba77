/** Reading on behind a snapshot of a text's beginning: what equals what, for everything that can be gone on with. */
import assert from "node:assert/strict";
import { RaggedCache } from "../../../core/cache/ragged.ts";
import { wholeBytes } from "../../../core/select/byte_budget.ts";
import type { Model } from "../../../model/model.ts";
import { Behind } from "../../../model/read/behind.ts";
import { LayerReader } from "../../../model/read/layer_reader.ts";
import { readContext } from "../../../model/read/layers.ts";
import { repeatPrompts } from "../../../model/read/reconstruct.ts";
import { type ContextOptions, openContext } from "../../../model/session.ts";
import { contextIds } from "../../../model/text/prompt.ts";
import { resolvePolicy } from "../../../core/policy/registry.ts";
import { resolveBudget } from "../../../core/select/budget.ts";
import { keyedGate } from "../../_helper/gate.ts";
import { randomSoftTokens } from "../../_helper/soft_tokens.ts";
import { ASK, bytesSource, cacheContent, QUESTION, savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";

const model = await snapshotModel();
const GROWN = `${TEXT}At dusk the gate was opened once more, and nineteen sheep came through it. `.concat(
  "Nobody had counted them before, and nobody would again, for the gate was never opened after that night.",
);

/** The snapshot's context, and the one that goes on from it. */
async function gone(on: Model, options: ContextOptions, more: ContextOptions = {}) {
  const old = await openContext(on, TEXT, options), bytes = await savedBytes(old);
  const grown = await openContext(on, GROWN, { ...options, ...more, snapshot: bytesSource(bytes) });
  return { old, grown, [Symbol.dispose]: () => [old, grown].forEach((each) => each[Symbol.dispose]()) };
}

Deno.test("what was kept stays bit by bit, what is new is budgeted for, and a snapshot of it comes back", async () => {
  const softTokens = randomSoftTokens(model.config);
  const cases: ContextOptions[] = [
    ...[
      "h2o",
      "kvzip(chunk=40)",
      "kvzip-plus",
      "moved",
      "expected-attention",
      "triattention",
      "self-gate(tokens=64,chunk=32)",
    ].map((
      policy,
    ) => ({ policy, keep: "25%" })),
    { policy: "kvzip", keep: "25%", positions: "rerotate" },
    { policy: "snapkv", keep: "50%", refit: "both" },
    { policy: "kvzip", keep: "50%", refit: "values" },
    { policy: "defensive-risk", riskWorst: 0.02 },
    { policy: "gate", keep: "25%", maxCache: { tokens: 190, rule: "gate" } },
    { policy: "gate", keep: "25%", gate: keyedGate(model.config) },
    { policy: "judge-q", keep: "25%", softTokens },
  ];
  for (const options of cases) {
    const name = JSON.stringify({ ...options, softTokens: undefined, gate: options.gate && "keyed" });
    using both = await gone(model, options);
    const { old, grown } = both, { reused, cache } = grown;
    assert.ok(reused > old.tokens / 2 && reused <= old.tokens, name);
    const before = (await cacheContent(old)).content, after = await cacheContent(grown);
    let added = 0, evicted = 0;
    after.content.forEach(({ positions, logical, keys, values }, i) => {
      const stays = positions.filter((position) => position < reused).length, width = keys.length / positions.length;
      assert.deepEqual(positions.slice(0, stays), before[i].positions.filter((each) => each < reused), name);
      assert.deepEqual(values.slice(0, stays * width), before[i].values.slice(0, stays * width), name);
      if (!options.positions) {
        assert.deepEqual(keys.slice(0, stays * width), before[i].keys.slice(0, stays * width), name);
        assert.deepEqual(logical, positions);
      }
      assert.ok(positions.every((position, j) => position < grown.tokens && (j === 0 || position > positions[j - 1])));
      added += positions.length - stays;
      evicted += grown.tokens - reused - (positions.length - stays);
    });
    assert.ok(added > 0 && evicted > 0, `${name}: ${added} of what is new stay, ${evicted} go`);
    if (options.riskWorst === undefined) assert.ok(cache.entries() <= grown.budget.total, name);
    assert.deepEqual([after.seen, grown.refit !== undefined], [grown.tokens, options.refit !== undefined], name);
    const asked = await grown.ask(QUESTION, ASK), saved = bytesSource(await savedBytes(grown));
    using restored = await model.restore(saved, { maxCache: options.maxCache });
    assert.deepEqual((await restored.ask(QUESTION, ASK)).ids, asked.ids, name);
    assert.deepEqual(restored.refit, grown.refit, name);
  }
});

Deno.test("a replay of what is new, behind all of the rest, is that part of a replay of the whole", async () => {
  const ids = contextIds(model.frame, model.tokenizer, GROWN), policy = resolvePolicy("kvzip"), { needs } = policy;
  const chunk = Math.ceil(ids.length / 2), reconstruction = { ...needs.reconstruction!, chunk };
  const prompts = repeatPrompts(model, ids, reconstruction), from = prompts[1].first, rest = ids.slice(from);
  assert.equal(prompts.length, 2);
  const later = repeatPrompts(model, ids, reconstruction, false, from);
  assert.deepEqual(later, [{ ...prompts[1], first: 0, end: rest.length }]);
  using whole = new RaggedCache(model.backend, model.config);
  using reader = await LayerReader.open(model, whole, ids, { needs, window: 0, prompts });
  const full = resolvePolicy("full"), budget = resolveBudget(full, { fraction: 1 }, from, model.config);
  const outputWeights = () => Promise.reject(new Error("nobody asks for them"));
  const first = await readContext(model, ids.slice(0, from), { policy: full, budget, outputWeights });
  using old = first.cache;
  const behind = new Behind(old);
  using tail = behind.tail();
  using on = await LayerReader.open(model, tail, rest, { needs, window: 0, prompts: later, behind });
  for (let layer = 0; layer < model.config.layers; layer++) {
    const [all, part] = [await reader.layer(layer), await on.layer(layer)], { kvHeads } = model.config;
    for (let head = 0; head < kvHeads; head++) {
      const theirs = all.reconstruction!.subarray(head * ids.length + from, (head + 1) * ids.length);
      const ours = part.reconstruction!.subarray(head * rest.length, (head + 1) * rest.length);
      ours.forEach((score, i) => assert.ok(Math.abs(score - theirs[i]) < 1e-5, `${layer} ${head} ${i}: ${score}`));
      assert.equal(old.length(layer, head), from, "what is new waits elsewhere");
    }
  }
});

Deno.test("a model with window layers goes on behind all that was read, and reads as it would at once", async () => {
  for (const backend of ["ts", "wasm"] as const) {
    await using windows = await snapshotModel("gemma3-windows", { backend });
    for (const policy of ["full", "kvzip"]) {
      using both = await gone(windows, { policy, keep: "100%" });
      using whole = await openContext(windows, GROWN, { policy, keep: "100%" });
      assert.equal(both.grown.reused, both.old.tokens);
      const [a, b] = [await cacheContent(both.grown), await cacheContent(whole)];
      a.content.forEach(({ positions, keys }, i) => {
        assert.deepEqual(positions, b.content[i].positions, policy);
        keys.forEach((x, j) => assert.ok(Math.abs(x - b.content[i].keys[j]) < 1e-3));
      });
    }
    using some = await gone(windows, { policy: "kvzip(chunk=40)", keep: "40%", refit: "both" });
    const { cache, budget } = some.grown;
    assert.ok(cache.globalEntries() <= budget.total && cache.globalEntries() > 0.9 * budget.total);
    using again = await windows.restore(bytesSource(await savedBytes(some.grown)));
    assert.deepEqual((await again.ask(QUESTION, ASK)).ids, (await some.grown.ask(QUESTION, ASK)).ids);
    const snapshot = bytesSource(await savedBytes(some.old, { withText: true }));
    const otherwise = { policy: "kvzip(chunk=40)", keep: "40%", refit: "both", snapshot } as const;
    await assert.rejects(openContext(windows, `${TEXT.slice(0, -12)}, then no more. ${GROWN}`, otherwise), {
      code: "snapshot.tokens",
      message: /layers that look back over a window have let go of what comes before its end/,
    });
  }
});

Deno.test("a model with attention to nothing goes on as it would read at once; one with convolutions is read whole", async () => {
  await using other = await snapshotModel("gpt-oss-plain", { dense: "wasm", backend: "wasm" });
  using both = await gone(other, { policy: "kvzip", keep: "100%" });
  using whole = await openContext(other, GROWN, { policy: "kvzip", keep: "100%" });
  assert.equal(both.grown.reused, both.old.tokens);
  const [a, b] = [await cacheContent(both.grown), await cacheContent(whole)];
  a.content.forEach(({ positions, keys }, i) => {
    assert.deepEqual(positions, b.content[i].positions);
    keys.forEach((x, j) => assert.ok(Math.abs(x - b.content[i].keys[j]) < 1e-3, `${i}: ${x}`));
  });
  assert.deepEqual((await both.grown.ask(QUESTION, ASK)).ids, (await whole.ask(QUESTION, ASK)).ids);
  await using convolving = await snapshotModel("lfm2-plain", { dense: "wasm", backend: "wasm" });
  await assert.rejects(gone(convolving, { policy: "kvzip", keep: "50%" }), {
    code: "snapshot.tokens",
    message: /its convolutions go on from a whole reading's rows alone/,
  });
});

Deno.test("a budget in tokens is gone on with by a larger one, and refused where it is used up", async () => {
  using both = await gone(model, { policy: "knorm", keep: "40" }, { keep: "70" });
  const { old, grown } = both;
  assert.deepEqual([old.budget.perHead, grown.budget.perHead], [40, 70]);
  assert.ok(grown.cache.entries() <= grown.budget.total && grown.cache.entries() > 0.9 * grown.budget.total);
  await assert.rejects(gone(model, { policy: "knorm", keep: "40" }), {
    code: "snapshot.tokens",
    message: /it is of the text's beginning, which has all of the 40 entries per head that are to stay/,
  });
  await assert.rejects(gone(model, { policy: "knorm", keep: "70" }, { keep: "40" }), { where: "budget" });
  using roomy = await gone(model, { policy: "knorm", keep: "220" });
  assert.equal(roomy.grown.budget.perHead, 220, "the first part didn't fill it");
});

Deno.test("what `best` read goes on alike: replayed, packed, refitted, and in its bytes", async () => {
  for (const backend of ["ts", "wasm"] as const) {
    await using other = await snapshotModel("llama-plain", { backend });
    using old = await openContext(other, TEXT, { effort: "best", bytes: "1/4" });
    const snapshot = bytesSource(await savedBytes(old));
    using grown = await openContext(other, GROWN, { policy: policyOf(old), bytes: "1/4", snapshot });
    assert.deepEqual([grown.cache.type, grown.effort], ["int4", old.effort]);
    assert.ok(grown.reused === old.tokens && grown.refit!.of >= old.refit!.of);
    const most = wholeBytes(grown.tokens, other.config) / 4, { live } = grown.cache.bytes();
    assert.ok(live <= 1.05 * most && live > 0.7 * most, `${live} of ${most}`);
    const { layers, kvHeads } = other.config;
    for (let i = 0; i < layers * kvHeads; i++) {
      const [layer, head] = [Math.floor(i / kvHeads), i % kvHeads];
      assert.equal(grown.cache.packed(layer, head), grown.cache.length(layer, head), "all of it is packed");
    }
    using restored = await other.restore(bytesSource(await savedBytes(grown)));
    assert.deepEqual((await restored.ask(QUESTION, ASK)).ids, (await grown.ask(QUESTION, ASK)).ids);
  }
});

const policyOf = ({ effort }: { effort?: { policy: string } }) => effort!.policy;
