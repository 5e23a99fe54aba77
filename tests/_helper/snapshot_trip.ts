/** A context through a snapshot and back, with everything compared. */
import assert from "node:assert/strict";
import type { Model } from "../../model/model.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { ASK, bytesSource, cacheContent, QUESTION, savedBytes, TEXT } from "./snapshots.ts";

/** Reads, answers, saves, restores, answers again: everything must be as it was. */
export async function roundTrip(model: Model, options: ContextOptions, name: string) {
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
