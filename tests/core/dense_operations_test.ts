/** Experts among the operations of a decoder: who is chosen, how wide things are, what they cost. */
import assert from "node:assert/strict";
import {
  chosenOf,
  hasExperts,
  multiplyAddsOf,
  type Operation,
  readsOf,
  widthsOf,
} from "../../core/dense/operations.ts";

const WEIGHTS = [null, null, null, null, null];
/** Of five experts two, each of two matrices of 3 rows and one of 8. */
const EXPERTS: Operation<null, null>[] = [
  { op: "multiply", from: "x", to: "router", weights: null, rows: 5 },
  { op: "choose", from: "router", to: "chosen", used: 2 },
  { op: "expand", from: "x", chosen: "chosen", to: "gateUp", used: 2, parts: 2, rows: 3, weights: WEIGHTS },
  { op: "gate", from: "gateUp", to: "gated", activation: "silu" },
  { op: "collect", from: "gated", chosen: "chosen", to: "fed", used: 2, rows: 8, weights: WEIGHTS },
];

Deno.test("chosenOf() takes the largest, the lower one among equals, and shares by their softmax", () => {
  assert.deepEqual(chosenOf([1, 3, 3, 2], 3).experts, [1, 2, 3]);
  assert.deepEqual(chosenOf(Float32Array.of(0, 0, 0), 1), { experts: [0], shares: [1] });
  const { experts, shares } = chosenOf([5, Math.log(3), 0], 3);
  assert.deepEqual(experts, [0, 1, 2]);
  const weights = [Math.exp(5), 3, 1], total = weights[0] + 4;
  shares.forEach((share, i) => assert.ok(Math.abs(share - weights[i] / total) < 1e-14));
  assert.deepEqual(chosenOf([1e4, 1e4 - 1000], 2).shares, [1, 0], "large numbers don't overflow");
});

Deno.test("experts have their widths, reads and costs", () => {
  const widths = widthsOf(EXPERTS, { x: 8 });
  assert.deepEqual(["router", "chosen", "gateUp", "gated", "fed"].map((name) => widths.get(name)), [5, 4, 12, 6, 8]);
  assert.deepEqual(EXPERTS.map(readsOf), [["x"], ["router"], ["x", "chosen"], ["gateUp"], ["gated", "chosen"]]);
  // Two experts of five: 8 · 5 for the router, 2 · 2 · 8 · 3 for what expands, 6 · 8 for what collects.
  assert.equal(multiplyAddsOf(EXPERTS, { x: 8 }), 40 + 96 + 48);
  assert.deepEqual([hasExperts(EXPERTS), hasExperts(EXPERTS.slice(0, 2))], [true, false]);
});

Deno.test("what is coupled takes the place of both", () => {
  const couple: Operation<null, null> = { op: "couple", from: "x", to: "y", first: 2, width: 3 };
  assert.deepEqual([widthsOf([couple], { x: 8 }).get("y"), readsOf(couple)], [5, ["x"]]);
  assert.throws(() => widthsOf([couple], {}), /No operation gives x/);
});

Deno.test("experts are refused before anybody is chosen", () => {
  for (const at of [2, 4]) {
    const list = EXPERTS.filter((each, i) => i === at || each.op === "gate");
    assert.throws(() => widthsOf(list, { x: 8, gateUp: 12 }), RangeError);
    assert.throws(() => widthsOf([EXPERTS[at]], { x: 8, gated: 6 }), /No operation gives chosen before it is read/);
  }
  assert.throws(() => widthsOf([EXPERTS[1]], { x: 8 }), /No operation gives router/);
});
