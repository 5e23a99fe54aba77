import assert from "node:assert/strict";
import fc from "fast-check";
import { segmentsOf } from "../../core/select/allocate.ts";
import { JointSelection } from "../../core/select/joint.ts";
import type { Budget, LayerScores } from "../../core/policy/policy.ts";
import { selectTop } from "../../core/select/select.ts";
import { holds, mask, nastyArray } from "../_helper/property.ts";

interface Case {
  readonly budget: Budget;
  readonly layers: LayerScores[];
  readonly order: number[];
}

function budgetOf(layers: number, kvHeads: number, length: number, total: number): Budget {
  const model = { heads: kvHeads, kvHeads, headDim: 1, layers };
  return { length, model, fraction: 1, perHead: 0, perLayer: 0, total, sinks: 0, window: 1, windowAsked: 1 };
}

const cases: fc.Arbitrary<Case> = fc.record({
  layers: fc.integer({ min: 1, max: 5 }),
  kvHeads: fc.integer({ min: 1, max: 3 }),
  length: fc.integer({ min: 1, max: 9 }),
}).chain(({ layers, kvHeads, length }) => {
  const entries = kvHeads * length;
  const scores = fc.record({
    scores: nastyArray(entries),
    second: fc.option(nastyArray(entries), { nil: undefined }),
    protectedEntries: fc.option(mask(entries), { nil: undefined }),
  });
  return fc.record({
    budget: fc.integer({ min: 1, max: layers * entries }).map((total) => budgetOf(layers, kvHeads, length, total)),
    layers: fc.array(scores, { minLength: layers, maxLength: layers }),
    order: fc.shuffledSubarray(Array.from({ length: layers }, (_, i) => i), { minLength: layers }),
  });
});

Deno.test("JointSelection ends with the set one selection over all layers gives, in any order of layers", () => {
  holds(
    fc.property(cases, ({ budget, layers, order }) => {
      const { kvHeads } = budget.model;
      const joint = new JointSelection(budget);
      for (const layer of order) joint.add(layer, layers[layer]);
      const segments = layers.flatMap((each) => segmentsOf(each, kvHeads, budget.length));
      const batch = selectTop({ segments, count: budget.total });
      assert.deepEqual(layers.flatMap((_, layer) => joint.kept(layer)), batch);
    }),
    10_000,
  );
});

Deno.test("JointSelection's changes, applied to rows one after the other, give the same set", () => {
  holds(
    fc.property(cases, ({ budget, layers, order }) => {
      const { kvHeads } = budget.model;
      const joint = new JointSelection(budget);
      const rows = layers.map(() =>
        Array.from({ length: kvHeads }, () => Array.from({ length: budget.length }, (_, i) => i))
      );
      const seen = new Set<number>();
      for (const layer of order) {
        seen.add(layer);
        for (const change of joint.add(layer, layers[layer])) {
          change.kept.forEach((kept, head) => {
            rows[change.layer][head] = Array.from(kept, (row) => rows[change.layer][head][row]);
          });
        }
        const held = [...seen].reduce((sum, each) => sum + rows[each].flat().length, 0);
        assert.equal(held, Math.min(budget.total, seen.size * kvHeads * budget.length));
      }
      layers.forEach((_, layer) => assert.deepEqual(rows[layer], joint.kept(layer).map((kept) => [...kept])));
    }),
    500,
  );
});

Deno.test("JointSelection names only the layers that lose entries", () => {
  const joint = new JointSelection(budgetOf(3, 1, 2, 4));
  assert.deepEqual(joint.add(0, { scores: Float32Array.of(5, 1) }), []);
  assert.deepEqual(joint.add(1, { scores: Float32Array.of(9, 9) }), []);
  assert.deepEqual(joint.add(2, { scores: Float32Array.of(4, 0) }), [
    { layer: 0, kept: [Int32Array.of(0)] },
    { layer: 2, kept: [Int32Array.of(0)] },
  ]);
});

Deno.test("JointSelection copies what it holds", () => {
  const joint = new JointSelection(budgetOf(2, 1, 2, 2));
  const scores = Float32Array.of(5, 4);
  joint.add(0, { scores });
  scores.fill(0);
  joint.add(1, { scores: Float32Array.of(3, 3) });
  assert.deepEqual(joint.kept(0), [Int32Array.of(0, 1)]);
});

Deno.test("JointSelection counts the bytes it holds", () => {
  const joint = new JointSelection(budgetOf(2, 1, 4, 4));
  const extra = { second: new Float32Array(4), protectedEntries: new Uint8Array(4) };
  joint.add(0, { scores: new Float32Array(4), ...extra });
  assert.equal(joint.scoreBytes, 4 * (4 + 4 + 1 + 4));
  joint.add(1, { scores: new Float32Array(4).fill(1) });
  assert.equal(joint.scoreBytes, 4 * (4 + 4 + 1 + 4));
  const plain = new JointSelection(budgetOf(2, 1, 4, 4));
  plain.add(0, { scores: new Float32Array(4) });
  plain.add(1, { scores: new Float32Array(4) });
  assert.equal(plain.scoreBytes, 4 * (4 + 4));
});

Deno.test("JointSelection refuses a layer twice, beyond the model, or of another shape", () => {
  const joint = new JointSelection(budgetOf(2, 1, 2, 2));
  const layer = { scores: new Float32Array(2) };
  joint.add(0, layer);
  for (const bad of [0, 2, -1, 0.5]) assert.throws(() => joint.add(bad, layer), RangeError);
  assert.throws(() => joint.add(1, { scores: new Float32Array(3) }), /3 entries: want 1 heads × 2/);
  assert.throws(() => joint.kept(1), /was not added/);
});
