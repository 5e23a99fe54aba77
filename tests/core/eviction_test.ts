import assert from "node:assert/strict";
import { Eviction, keepsAll, keptOfAll } from "../../core/select/eviction.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { type SelectionInput, selectTop } from "../../core/select/select.ts";
import { selectAll } from "../../core/select/select_layers.ts";
import type { Observation, Policy } from "../../core/policy/policy.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { randomSource } from "../../core/measure/random.ts";

const SHAPE = { layers: 3, heads: 4, kvHeads: 2, headDim: 8 };
const LENGTH = 40;

/** A policy whose scores are the gate's, so that a test can say what they are. */
function scoring(name: string): Policy {
  const policy = resolvePolicy(name);
  return {
    ...policy,
    score: ({ gate, length }) => ({ scores: gate!.slice(0, SHAPE.kvHeads * length), preference: 1 }),
  };
}

function observations(seed: number): Observation[] {
  const random = randomSource(seed);
  return Array.from({ length: SHAPE.layers }, (_, layer) => ({
    layer,
    shape: SHAPE,
    length: LENGTH,
    window: 0,
    gate: Float32Array.from({ length: SHAPE.kvHeads * LENGTH }, () => random()),
  }));
}

/** Counts what it was asked. */
class CountingSelector {
  calls = 0;

  select(input: SelectionInput): Promise<Int32Array[]> {
    this.calls++;
    return Promise.resolve(selectTop(input));
  }
}

for (const name of ["snapkv", "adakv", "layer-defensive", "cake"]) {
  Deno.test(`keptOfAll() of ${name} keeps what a selection over all layers keeps`, async () => {
    const policy = scoring(name), budget = resolveBudget(policy, { fraction: 0.5 }, LENGTH, SHAPE);
    const seen = observations(7), wanted = selectAll(policy, budget, seen.map((each) => policy.score(each, budget)));
    assert.deepEqual(await keptOfAll({ policy, budget }, seen, new CountingSelector()), wanted);
  });
}

Deno.test("Eviction decides a layer alone when it comes, with the selector it was given", async () => {
  const policy = scoring("snapkv"), budget = resolveBudget(policy, { fraction: 0.5 }, LENGTH, SHAPE);
  const selector = new CountingSelector(), eviction = new Eviction({ policy, budget }, selector);
  assert.equal(eviction.crossLayer, false);
  const changes = await eviction.add(observations(1)[0]);
  assert.deepEqual(changes.map(({ layer }) => layer), [0]);
  assert.deepEqual(changes[0].kept.map(({ length }) => length), [20, 20]);
  assert.equal(selector.calls, SHAPE.kvHeads);
  assert.equal(eviction.scoreBytes, 0);
  assert.throws(() => eviction.kept(0), RangeError);
});

Deno.test("Eviction over layers names those that lose entries, whose lists follow what they held", async () => {
  const policy = scoring("layer-defensive"), budget = resolveBudget(policy, { fraction: 0.5 }, LENGTH, SHAPE);
  const eviction = new Eviction({ policy, budget }, new CountingSelector());
  const held: number[][][] = [];
  for (const [layer, seen] of observations(3).entries()) {
    held[layer] = Array.from({ length: SHAPE.kvHeads }, () => Array.from({ length: LENGTH }, (_, i) => i));
    for (const change of await eviction.add(seen)) {
      held[change.layer] = held[change.layer].map((rows, head) => Array.from(change.kept[head], (row) => rows[row]));
    }
    assert.ok(held.flat(2).length <= budget.total);
    assert.ok(eviction.scoreBytes > 0);
  }
  assert.deepEqual(held, held.map((_, layer) => eviction.kept(layer).map((head) => [...head])));
});

Deno.test("Eviction with a threshold keeps what is not below it, whatever the budget", async () => {
  const policy = scoring("layer-defensive"), budget = resolveBudget(policy, { fraction: 1 }, LENGTH, SHAPE);
  const [seen] = observations(5);
  const [{ kept }] = await new Eviction({ policy, budget, threshold: 0.5 }, new CountingSelector()).add(seen);
  const wanted = [0, 1].map((head) =>
    Array.from({ length: LENGTH }, (_, i) => i).filter((i) => seen.gate![head * LENGTH + i] >= 0.5)
  );
  assert.deepEqual(kept.map((head) => [...head]), wanted);
});

Deno.test("keepsAll() is true for whole budgets and for full, but not under a threshold", () => {
  const policy = scoring("snapkv"), at = (fraction: number) => resolveBudget(policy, { fraction }, LENGTH, SHAPE);
  assert.equal(keepsAll({ policy, budget: at(1) }), true);
  assert.equal(keepsAll({ policy, budget: at(0.5) }), false);
  assert.equal(keepsAll({ policy, budget: at(1), threshold: 0.1 }), false);
  assert.equal(keepsAll({ policy: resolvePolicy("full"), budget: at(0.5), threshold: 0.1 }), true);
});
