/** What several layers see of the same rows is what one layer with all their query heads would see. */
import assert from "node:assert/strict";
import { observeWindow } from "../../core/measure/observe.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { Observation, Reduction } from "../../core/policy/policy.ts";
import { joinHeads, joinObservations, joinQueries, joinRows } from "../../model/joined.ts";
import { assertClose } from "../_helper/close.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 }, LENGTH = 40, WINDOW = 6;
const REDUCTIONS: readonly Reduction[] = [
  "mean",
  "pooledMean",
  "pooledMax",
  "variance",
  "entropy",
  "mass",
  "logSumExp",
];

Deno.test("joined observations are those of one layer with the query heads of all", () => {
  const next = randomSource(3), noise = (count: number) => Float32Array.from({ length: count }, () => 4 * next() - 2);
  const keys = [noise(LENGTH * 8), noise(LENGTH * 8)], layers = [1, 2, 3].map(() => noise(WINDOW * 4 * 8));
  const observed = layers.map((queries, layer): Observation => {
    const seen = observeWindow({ shape: SHAPE, queries, window: WINDOW, keys, length: LENGTH }, { window: REDUCTIONS });
    return { layer, shape: SHAPE, length: LENGTH, window: WINDOW, ...seen };
  });
  const shape = { ...SHAPE, heads: 12 }, queries = joinQueries(layers, WINDOW, 2);
  const whole = observeWindow({ shape, queries, window: WINDOW, keys, length: LENGTH }, { window: REDUCTIONS });
  const joined = joinObservations(observed);
  assert.deepEqual([joined.layer, joined.shape], [0, shape]);
  for (const name of REDUCTIONS) assertClose(joined[name]!, whole[name]!, 1e-5, name);
  // What readers look at counts: without them it is something else.
  assert.ok(joined.mean!.some((x, i) => Math.abs(x - observed[0].mean![i]) > 1e-3));
  assert.equal(joinObservations(observed.slice(0, 1)), observed[0]);
});

Deno.test("heads of layers stand side by side, KV head by KV head", () => {
  const parts = [Float32Array.of(1, 2, 3, 4), Float32Array.of(5, 6, 7, 8)];
  assert.deepEqual([...joinHeads(parts, 2)], [1, 2, 5, 6, 3, 4, 7, 8]);
  assert.deepEqual(joinRows([["a", "b"], ["c", "d"]], 2), ["a", "c", "b", "d"]);
});
