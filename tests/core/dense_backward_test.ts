/** Gradients of lists of operations and of soft tokens' attention against finite differences. */
import assert from "node:assert/strict";
import { resultIn, runBackward, runForward, type Step } from "../../core/dense/backward.ts";
import { type ContextRows, softAttention, softAttentionGradient } from "../../core/dense/soft_attention.ts";
import { randomSource } from "../../core/measure/random.ts";
import { assertClose } from "../_helper/close.ts";

const COUNT = 3, EPSILON = 1e-5, next = randomSource(11);

function random(length: number): Float32Array {
  return Float32Array.from({ length }, () => next() * 2 - 1);
}

/** Slope of `of` at every number of `x`, by central differences. */
function slopes(x: Float32Array, of: (x: Float32Array) => number, step = 1e-2): Float32Array {
  return x.map((value, i) => {
    const at = (moved: number) => of(x.with(i, moved));
    return (at(value + step) - at(value - step)) / (2 * step);
  });
}

function weighed(values: Float32Array, factors: Float32Array): number {
  return values.reduce((sum, value, i) => sum + value * factors[i], 0);
}

const matrix = (outputs: number, inputs: number, bias = false) => ({
  inputs,
  numbers: random(outputs * inputs),
  ...(bias && { bias: random(outputs) }),
});

/** A list of each operation, from `hidden`, 6 wide. */
const LISTS: Record<string, readonly Step[]> = {
  norm: [{ op: "norm", from: "hidden", to: "y", gains: random(6) }],
  headNorm: [{ op: "headNorm", from: "hidden", to: "y", gains: random(2), first: 1, heads: 2, width: 2 }],
  multiply: [{ op: "multiply", from: "hidden", to: "y", weights: [matrix(5, 6, true), matrix(2, 6)], rows: 7 }],
  "gate, silu": [{ op: "gate", from: "hidden", to: "y", activation: "silu" }],
  "gate, gelu": [{ op: "gate", from: "hidden", to: "y", activation: "gelu" }],
  scale: [{ op: "scale", from: "hidden", to: "y", factor: 3, first: 2, width: 3 }],
  cap: [{ op: "cap", from: "hidden", to: "y", cap: 0.7 }],
  "a layer with a residual": [
    { op: "norm", from: "hidden", to: "x", gains: random(6) },
    { op: "multiply", from: "x", to: "wide", weights: [matrix(8, 6)], rows: 8 },
    { op: "gate", from: "wide", to: "gated", activation: "silu" },
    { op: "multiply", from: "gated", to: "narrow", weights: [matrix(6, 4)], rows: 6 },
    { op: "add", from: ["hidden", "narrow"], to: "y" },
  ],
};

for (const [name, steps] of Object.entries(LISTS)) {
  Deno.test(`runBackward() gives the slope of ${name}`, () => {
    const hidden = random(COUNT * 6), tape = runForward(steps, { hidden }, COUNT, EPSILON);
    const factors = random(resultIn(steps, tape).length);
    const got = runBackward(steps, tape, factors, COUNT, EPSILON).get("hidden")!;
    const of = (x: Float32Array) => weighed(resultIn(steps, runForward(steps, { hidden: x }, COUNT, EPSILON)), factors);
    assertClose(got, slopes(hidden, of), 4e-3, name);
  });
}

Deno.test("runForward() refuses experts, and so does the way back", () => {
  const choose: Step = { op: "choose", from: "hidden", to: "y", used: 1 };
  assert.throws(() => runForward([choose], { hidden: random(6) }, 1, EPSILON), /experts/);
  assert.throws(() => runBackward([choose], new Map(), random(2), 1, EPSILON), /experts/);
  const couple: Step = { op: "couple", from: "hidden", to: "y", first: 2, width: 2 };
  assert.throws(() => runForward([couple], { hidden: random(6) }, 1, EPSILON), /convolutions/);
  assert.throws(() => runBackward([couple], new Map(), random(4), 1, EPSILON), /convolutions/);
  const limited: Step = { op: "gate", from: "hidden", to: "y", activation: "limited" };
  assert.throws(() => runForward([limited], { hidden: random(6) }, 1, EPSILON), /limited gate/);
});

for (const window of [Infinity, 5]) {
  Deno.test(`softAttentionGradient() gives the slopes by queries, keys and values, window ${window}`, () => {
    const shape = { heads: 4, kvHeads: 2, headDim: 3 }, length = 7;
    const context: ContextRows = { length, keys: random(2 * length * 3), values: random(2 * length * 3) };
    const tokens = { queries: random(COUNT * 12), keys: random(COUNT * 6), values: random(COUNT * 6) };
    const output = random(COUNT * 12), mean = random(2 * length);
    const of = (rows: typeof tokens) => {
      const seen = softAttention(shape, context, rows, window);
      return weighed(seen.output, output) + weighed(seen.mean, mean);
    };
    const seen = softAttention(shape, context, tokens, window);
    const got = softAttentionGradient(shape, context, tokens, seen, output, mean, window);
    for (const which of ["queries", "keys", "values"] as const) {
      const want = slopes(tokens[which], (x) => of({ ...tokens, [which]: x }));
      assertClose(got[which], want, 2e-3, which);
    }
    // What may not be seen has no share: a row's shares are all of it.
    for (let row = 0; row < 4 * COUNT; row++) {
      const shares = seen.probabilities.subarray(row * (length + COUNT), (row + 1) * (length + COUNT));
      const last = length + row % COUNT;
      assert.ok(Math.abs(shares.reduce((a, b) => a + b, 0) - 1) < 1e-5);
      shares.forEach((share, i) => assert.equal(share > 0, i <= last && i > last - window));
    }
  });
}
