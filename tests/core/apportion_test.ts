import assert from "node:assert/strict";
import fc from "fast-check";
import { CascadeSelection } from "../../core/select/cascade.ts";
import type { Budget, LayerScores } from "../../core/policy/policy.ts";
import { randomSource } from "../../core/measure/random.ts";
import { selectTop } from "../../core/select/select.ts";
import { apportion } from "../../core/select/apportion.ts";
import { holds } from "../_helper/property.ts";

const claims = fc.array(
  fc.record({
    weight: fc.oneof(fc.double({ min: 0, max: 10, noNaN: true }), fc.constantFrom(0, 1, 1, 1e30, 1e-30, NaN, -1)),
    room: fc.integer({ min: 0, max: 30 }),
  }),
  { minLength: 1, maxLength: 6 },
);

Deno.test("apportion() gives out every seat and no claimant more than it has room for", () => {
  holds(
    fc.property(claims, fc.double({ min: 0, max: 1, noNaN: true }), (claims, part) => {
      const rooms = claims.map(({ room }) => room), all = rooms.reduce((a, b) => a + b, 0);
      const total = Math.floor(all * part);
      const seats = apportion(claims.map(({ weight }) => weight), rooms, total);
      assert.equal(seats.reduce((a, b) => a + b, 0), total);
      seats.forEach((count, i) => assert.ok(count >= 0 && count <= rooms[i]));
    }),
    500,
  );
});

Deno.test("apportion() rounds to the nearest where that adds up", () => {
  assert.deepEqual([...apportion([6.4, 2.6, 1], [20, 20, 20], 10)], [6, 3, 1]);
  assert.deepEqual([...apportion([6, 3, 1], [4, 20, 20], 10)], [4, 5, 1]);
  assert.deepEqual([...apportion([1, 1, 1], [9, 9, 9], 4)], [2, 1, 1]);
  assert.deepEqual([...apportion([0, 0, 0], [9, 9, 9], 5)], [2, 2, 1]);
  assert.deepEqual([...apportion([0, NaN, 1e-30], [9, 9, 3], 5)], [1, 1, 3]);
});

Deno.test("apportion() never gives a claimant more because another joins", () => {
  holds(
    fc.property(claims, fc.integer({ min: 0, max: 60 }), (claims, asked) => {
      const weights = claims.map(({ weight }) => weight), rooms = claims.map(({ room }) => room);
      const share = (count: number) => {
        const some = rooms.slice(0, count);
        return apportion(weights.slice(0, count), some, Math.min(asked, some.reduce((a, b) => a + b, 0)));
      };
      for (let count = 1; count < claims.length; count++) {
        const before = share(count), after = share(count + 1);
        before.forEach((seats, i) => assert.ok(after[i] <= seats, `${i} of ${count}: ${seats}, then ${after[i]}`));
      }
    }),
    500,
  );
});

const LENGTH = 24;

function cascadeCase(seed: number, layers: number, perHead: number, span: { sinks: number; window: number }) {
  const next = randomSource(seed);
  const model = { heads: 2, kvHeads: 2, headDim: 1, layers };
  const budget: Budget = {
    length: LENGTH,
    model,
    fraction: perHead / LENGTH,
    perHead,
    perLayer: 2 * perHead,
    total: 2 * perHead * layers,
    ...span,
    windowAsked: span.window,
  };
  const scores: LayerScores[] = Array.from({ length: layers }, () => ({
    scores: Float32Array.from({ length: 2 * LENGTH }, () => Math.floor(next() * 9)),
    protectedEntries: Uint8Array.from({ length: 2 * LENGTH }, (_, i) => {
      return Number(i % LENGTH < span.sinks || i % LENGTH >= LENGTH - span.window);
    }),
    preference: next() < 0.2 ? 0 : next() ** 4 * 100,
  }));
  return { budget, scores };
}

const cascades = fc.record({
  seed: fc.integer({ min: 0, max: 1e9 }),
  layers: fc.integer({ min: 1, max: 6 }),
  perHead: fc.integer({ min: 4, max: LENGTH }),
  sinks: fc.integer({ min: 0, max: 2 }),
  window: fc.integer({ min: 0, max: 2 }),
}).map(({ seed, layers, perHead, ...span }) => cascadeCase(seed, layers, perHead, span));

Deno.test("CascadeSelection keeps what one split after the last layer keeps, in any order of layers", () => {
  holds(
    fc.property(cascades, fc.integer(), ({ budget, scores }, turn) => {
      const { perHead, sinks, window, model } = budget;
      const free = apportion(
        scores.map(({ preference }) => preference!),
        scores.map(() => LENGTH - sinks - window),
        (perHead - sinks - window) * model.layers,
      );
      const selection = new CascadeSelection(budget);
      const layers = scores.map((_, layer) => (layer + Math.abs(turn)) % scores.length);
      for (const layer of layers) selection.add(layer, scores[layer]);
      scores.forEach(({ scores, protectedEntries }, layer) => {
        const batch = [0, LENGTH].map((at) => {
          const segment = {
            scores: scores.subarray(at, at + LENGTH),
            protectedEntries: protectedEntries!.subarray(at, at + LENGTH),
          };
          return [...selectTop({ segments: [segment], count: free[layer] + sinks + window })[0]];
        });
        assert.deepEqual(selection.kept(layer).map((head) => [...head]), batch);
      });
    }),
    300,
  );
});

Deno.test("CascadeSelection never holds more than the budget, and its changes are rows of what the layer held", () => {
  holds(
    fc.property(cascades, ({ budget, scores }) => {
      const selection = new CascadeSelection(budget);
      const held = new Map<number, number[][]>();
      scores.forEach((layerScores, layer) => {
        held.set(layer, [0, 1].map(() => Array.from({ length: LENGTH }, (_, i) => i)));
        for (const { layer: changed, kept } of selection.add(layer, layerScores)) {
          held.set(changed, held.get(changed)!.map((rows, head) => Array.from(kept[head], (row) => rows[row])));
        }
        const entries = [...held.values()].flat().reduce((sum, rows) => sum + rows.length, 0);
        assert.ok(entries <= budget.total, `${entries} of ${budget.total} after layer ${layer}`);
      });
      for (const [layer, rows] of held) assert.deepEqual(selection.kept(layer).map((head) => [...head]), rows);
    }),
    300,
  );
});

Deno.test("CascadeSelection copies what it holds and counts its bytes", () => {
  const { budget, scores } = cascadeCase(5, 2, 8, { sinks: 1, window: 1 });
  const selection = new CascadeSelection(budget);
  selection.add(0, scores[0]);
  scores[0].scores.fill(0);
  selection.add(1, scores[1]);
  assert.equal(selection.scoreBytes, budget.total * (4 + 1 + 4));
});

Deno.test("CascadeSelection refuses a layer twice, beyond the model, or without a preference", () => {
  const { budget, scores } = cascadeCase(5, 2, 8, { sinks: 1, window: 1 });
  const selection = new CascadeSelection(budget);
  selection.add(0, scores[0]);
  assert.throws(() => selection.add(0, scores[0]), /Cannot add layer 0/);
  assert.throws(() => selection.add(2, scores[0]), /want each of 0 … 1 once/);
  assert.throws(() => selection.add(1, { ...scores[1], preference: undefined }), /no preference/);
  assert.throws(() => selection.kept(1), /was not added/);
});
