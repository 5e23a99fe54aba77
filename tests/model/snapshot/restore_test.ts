import assert from "node:assert/strict";
import { policies } from "../../../core/policy/registry.ts";
import { CACHE_TYPES } from "../../../core/cache/entry_type.ts";
import { type ContextOptions, openContext } from "../../../model/session.ts";
import { ASK, bytesSource, cacheContent, QUESTION, savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";
import { randomSoftTokens } from "../../_helper/soft_tokens.ts";

const model = await snapshotModel();
const softTokens = randomSoftTokens(model.config);

/** Reads, answers, saves, restores, answers again: everything must be as it was. */
async function roundTrip(options: ContextOptions, name: string) {
  using context = await openContext(model, TEXT, options);
  const answered = await context.ask(QUESTION, ASK), content = await cacheContent(context);
  const bytes = await savedBytes(context);
  using restored = await model.restore(bytesSource(bytes), { maxCache: options.maxCache });
  assert.deepEqual(await cacheContent(restored), content, name);
  const again = await restored.ask(QUESTION, ASK);
  assert.deepEqual(again.ids, answered.ids, name);
  assert.deepEqual(again.health, answered.health, name);
  for (const field of ["budget", "tokens", "replaced", "keepCapped", "risk", "certificates", "frame"] as const) {
    assert.deepEqual(restored[field], context[field], `${name}: ${field}`);
  }
  assert.deepEqual([restored.policy.name, restored.policy.parameters], [
    context.policy.name,
    context.policy.parameters,
  ]);
  assert.deepEqual([restored.reused, context.reused, restored.ms.prefill], [context.tokens, 0, 0]);
  const second = await savedBytes(restored);
  assert.equal(second.length, bytes.length, `${name}: saved again`);
}

Deno.test("a restored context answers token by token as the one that was saved, for every policy and budget", async () => {
  for (const { name } of policies) {
    for (const keep of ["10%", "25%", "50%", "100%"]) {
      const options = name === "judge-q" ? { softTokens } : {};
      await roundTrip({ policy: name, keep, ...options }, `${name} ${keep}`);
    }
  }
});

Deno.test("it does so for every type of the cache, moved positions, risks, certificates and a cap", async () => {
  for (const cacheType of CACHE_TYPES) {
    await roundTrip({ policy: "defensive", keep: "25%", cacheType }, cacheType);
    await roundTrip({ policy: "layer-defensive", keep: "30%", cacheType, positions: "rerotate" }, `${cacheType} moved`);
  }
  await roundTrip({ policy: "defensive", keep: "40%", explain: true }, "certificates");
  await roundTrip({ policy: "layer-defensive", risk: 0.4 }, "risk");
  await roundTrip({ policy: "defensive-risk", riskWorst: 0.02 }, "worst risk");
  await roundTrip({ policy: "gate(read=stream)", keep: "20%" }, "streaming");
  await roundTrip({ policy: "defensive", maxCache: { tokens: 60, rule: "gate" } }, "cap");
});

Deno.test("a cap on a restored context does what it did before", async () => {
  for (const rule of ["defensive", "gate"]) {
    const maxCache = { tokens: 60, rule };
    using context = await openContext(model, TEXT, { policy: "defensive", maxCache });
    const answered = await context.ask(QUESTION, { ...ASK, maxTokens: 60 }), bytes = await savedBytes(context);
    using restored = await model.restore(bytesSource(bytes), { maxCache });
    const again = await restored.ask(QUESTION, { ...ASK, maxTokens: 60 });
    assert.ok(again.maxCache!.evictions > 0);
    assert.deepEqual([again.ids, again.maxCache], [answered.ids, answered.maxCache]);
  }
  using plain = await openContext(model, TEXT, { policy: "defensive" });
  const source = bytesSource(await savedBytes(plain));
  const wanted = model.restore(source, { maxCache: { tokens: 90, rule: "gate" } });
  await assert.rejects(wanted, { code: "snapshot.no-scores" });
});

Deno.test("a text that is gone on with, and words of one's own, come back with the snapshot", async () => {
  for (const frame of ["none", "rule", "Read {text} and say: {question}"]) {
    using context = await openContext(model, TEXT, { policy: "full", frame });
    const question = frame === "none" ? "" : QUESTION, answered = await context.ask(question, ASK);
    using restored = await model.restore(bytesSource(await savedBytes(context)));
    assert.deepEqual(restored.frame, context.frame);
    assert.deepEqual((await restored.ask(question, ASK)).ids, answered.ids);
  }
});
