import assert from "node:assert/strict";
import { policies } from "../../../core/policy/registry.ts";
import { openContext } from "../../../model/session.ts";
import { ASK, bytesSource, QUESTION, savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";
import { roundTrip } from "../../_helper/snapshot_trip.ts";
import { randomSoftTokens } from "../../_helper/soft_tokens.ts";

const model = await snapshotModel();
const softTokens = randomSoftTokens(model.config);

Deno.test("a restored context answers token by token as the one that was saved, for every policy and budget", async () => {
  for (const { name } of policies) {
    const budgets = name === "kvzap" ? [undefined] : ["10%", "25%", "50%", "100%"];
    for (const keep of budgets) {
      const options = name === "judge-q" ? { softTokens } : {};
      await roundTrip(model, { policy: name, keep, ...options }, `${name} ${keep}`);
    }
  }
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
