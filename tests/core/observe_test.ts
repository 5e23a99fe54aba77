import assert from "node:assert/strict";
import fc from "fast-check";
import { coverageSet } from "../../core/measure/coverage.ts";
import { observeWindow, type WindowInput } from "../../core/measure/observe.ts";
import type { Reduction } from "../../core/policy/policy.ts";
import { poolRow } from "../../core/measure/pool.ts";
import { randomSource } from "../../core/measure/random.ts";
import { defensiveRisk } from "../../core/worst_case/risk.ts";
import { valueNorms } from "../../core/measure/value_norms.ts";
import { valueShares } from "../../core/measure/value_share.ts";
import { holds } from "../_helper/property.ts";

const ALL: Reduction[] = ["mean", "variance", "entropy", "pooledMean", "pooledMax", "mass", "logSumExp"];

/** Random queries and keys; `scale` makes attention sharp. */
function randomInput(
  seed: number,
  sizes: { heads: number; kvHeads: number; window: number; length: number },
  scale = 1,
) {
  const { heads, kvHeads, window, length } = sizes;
  const headDim = 4;
  const next = randomSource(seed);
  const floats = (count: number) => Float32Array.from({ length: count }, () => (next() * 4 - 2) * scale);
  return {
    shape: { heads, kvHeads, headDim },
    queries: floats(window * heads * headDim),
    window,
    keys: Array.from({ length: kvHeads }, () => floats(length * headDim)),
    length,
  };
}

/** All softmax rows as plain arrays, `rows[head][t][i]`, with `Math.exp`. */
function naiveRows({ shape: { heads, kvHeads, headDim }, queries, window, keys, length }: WindowInput): number[][][] {
  return Array.from({ length: heads }, (_, h) =>
    Array.from({ length: window }, (_, t) => {
      const key = keys[Math.floor(h / (heads / kvHeads))];
      const logits = Array.from({ length: length - window + t + 1 }, (_, i) => {
        let dot = 0;
        for (let j = 0; j < headDim; j++) dot += queries[(t * heads + h) * headDim + j] * key[i * headDim + j];
        return dot / Math.sqrt(headDim);
      });
      const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
      return logits.map((logit) => Math.exp(logit) / sum);
    }));
}

function close(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string, tolerance = 1e-6): void {
  assert.equal(actual.length, expected.length, what);
  for (let i = 0; i < actual.length; i++) {
    const slack = tolerance * Math.max(1, Math.abs(expected[i]));
    assert.ok(Math.abs(actual[i] - expected[i]) <= slack, `${what}[${i}]: ${actual[i]}, want ${expected[i]}`);
  }
}

const sizes = fc.record({
  seed: fc.integer({ min: 0, max: 1e9 }),
  kvHeads: fc.integer({ min: 1, max: 3 }),
  group: fc.integer({ min: 1, max: 3 }),
  window: fc.integer({ min: 1, max: 6 }),
  prefix: fc.integer({ min: 0, max: 12 }),
  kernel: fc.constantFrom(1, 3, 5, 9),
});

Deno.test("observeWindow() equals reductions over stored rows", () => {
  holds(
    fc.property(sizes, ({ seed, kvHeads, group, window, prefix, kernel }) => {
      const input = randomInput(seed, { heads: kvHeads * group, kvHeads, window, length: prefix + window });
      const seen = observeWindow(input, { window: ALL, kernel });
      const rows = naiveRows(input).map((head) => head.map((row) => row.slice(0, prefix)));
      const perKv = (value: (rowsOfGroup: number[][][], i: number) => number) =>
        Array.from({ length: kvHeads * prefix }, (_, at) => {
          const head = Math.floor(at / prefix);
          return value(rows.slice(head * group, (head + 1) * group), at % prefix);
        });
      const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
      const column = (of: number[][][], i: number) => of.flat().map((row) => row[i]);
      const massKept = (of: number[][][]) => of.map((head) => head.map((row) => pooledTo(row, kernel)));
      const unbiased = (values: number[]) =>
        values.length < 2 ? 0 : values.reduce((a, b) => a + (b - mean(values)) ** 2, 0) / (values.length - 1);

      close(seen.mean!, perKv((of, i) => mean(column(of, i))), "mean");
      close(seen.pooledMean!, perKv((of, i) => mean(column(massKept(of), i))), "pooledMean");
      close(seen.pooledMax!, perKv((of, i) => Math.max(...column(massKept(of), i))), "pooledMax");
      close(seen.variance!, perKv((of, i) => mean(of.map((head) => unbiased(head.map((row) => row[i]))))), "variance");
      close(seen.mass!, rows.flat().map((row) => row.reduce((a, b) => a + b, 0)), "mass");
      close(seen.entropy!, rows.flat().map((row) => -row.reduce((a, b) => a + b * Math.log(b + 1e-10), 0)), "entropy");
    }),
    200,
  );
});

/** Pooled with zero padding, then scaled back to the row's mass. */
function pooledTo(row: number[], kernel: number): number[] {
  const reach = (kernel - 1) / 2;
  const pooled = row.map((_, i) =>
    row.slice(Math.max(0, i - reach), i + reach + 1).reduce((a, b) => a + b, 0) / kernel
  );
  const [from, to] = [pooled, row].map((values) => values.reduce((a, b) => a + b, 0));
  return pooled.map((value) => from === 0 ? 0 : value / from * to);
}

Deno.test("observeWindow() gives the log-sum-exp over all causal keys", () => {
  const input = randomInput(5, { heads: 4, kvHeads: 2, window: 3, length: 9 });
  const { logSumExp } = observeWindow(input, { window: ["logSumExp"] });
  const { queries, keys } = input;
  const logits = Array.from({ length: 7 }, (_, i) => {
    let dot = 0;
    for (let j = 0; j < 4; j++) dot += queries[(0 * 4 + 3) * 4 + j] * keys[1][i * 4 + j];
    return dot / 2;
  });
  close([logSumExp![3 * 3]], [Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0))], "logSumExp");
});

Deno.test("observeWindow() preserves each row's mass when it pools", () => {
  holds(
    fc.property(sizes, ({ seed, window, prefix, kernel }) => {
      const input = randomInput(seed, { heads: 1, kvHeads: 1, window, length: prefix + window }, 3);
      const { pooledMean, mass } = observeWindow(input, { window: ["pooledMean", "mass"], kernel });
      const sum = (values: Float32Array) => values.reduce((a, b) => a + b, 0);
      assert.ok(Math.abs(sum(pooledMean!) * window - sum(mass!)) < 1e-5);
    }),
    200,
  );
});

Deno.test("observeWindow() gives zeros, not 0/0, for a prefix without any mass", () => {
  const shape = { heads: 1, kvHeads: 1, headDim: 1 };
  // Logit 0 on the prefix against 2000 on the window: exp underflows to 0.
  const keys = [Float32Array.of(0, 0, 0, 2000)];
  const seen = observeWindow({ shape, queries: Float32Array.of(1), window: 1, keys, length: 4 }, { window: ALL });
  for (const name of ["mean", "pooledMean", "pooledMax", "variance"] as const) {
    assert.deepEqual([...seen[name]!], [0, 0, 0]);
  }
  assert.deepEqual([...seen.mass!], [0]);
});

Deno.test("observeWindow() measures nothing it was not asked for, and lets inputs be", () => {
  const input = randomInput(1, { heads: 2, kvHeads: 1, window: 2, length: 6 });
  const before = structuredClone(input);
  assert.deepEqual(Object.keys(observeWindow(input, { window: ["mass", "mean"] })).sort(), ["mass", "mean"]);
  assert.deepEqual(observeWindow(input, {}), {});
  assert.deepEqual(input, before);
});

Deno.test("observeWindow() lets a NaN through instead of hiding it", () => {
  const input = randomInput(1, { heads: 1, kvHeads: 1, window: 1, length: 5 });
  input.keys[0][0] = NaN;
  const seen = observeWindow(input, { window: ["mean", "pooledMax"] });
  assert.ok([...seen.mean!, ...seen.pooledMax!].every(Number.isNaN));
});

Deno.test("observeWindow() refuses shapes, windows and kernels that don't fit", () => {
  const input = randomInput(1, { heads: 2, kvHeads: 1, window: 2, length: 6 });
  const bad: Partial<WindowInput>[] = [
    { window: 0 },
    { window: 7 },
    { window: 1.5 },
    { queries: new Float32Array(3) },
    { keys: [new Float32Array(3)] },
    { keys: [] },
    { length: 5 },
    { shape: { heads: 3, kvHeads: 2, headDim: 4 } },
  ];
  for (const change of bad) {
    assert.throws(() => observeWindow({ ...input, ...change }, { window: ["mean"] }), RangeError);
  }
  for (const kernel of [0, 2, 1.5, NaN]) {
    assert.throws(() => observeWindow(input, { window: ["mean"], kernel }), RangeError);
  }
});

Deno.test("poolRow() counts the padding in its divisor", () => {
  const to = new Float64Array(4);
  poolRow([1, 2, 3, 4], to, 3);
  assert.deepEqual([...to], [1, 2, 3, 7 / 3]);
  poolRow([1, 2, 3, 4], to, 9);
  assert.deepEqual([...to], [10 / 9, 10 / 9, 10 / 9, 10 / 9]);
});

Deno.test("valueNorms() is the group's mean of ‖v·Wo_h‖₁, or of ‖v·Wo_h‖₂", () => {
  const shape = { heads: 2, kvHeads: 1, headDim: 2 };
  // width 3; the columns of head 0, then of head 1
  const wo = Float32Array.of(1, 0, 2, 0, 0, 1, 0, -2, 1, 1, 1, 1);
  const [norms] = valueNorms([Float32Array.of(1, -1, 3, 0)], wo, shape);
  // v = (1, −1): head 0 gives 1, −1, 0; head 1 gives 2, 2, 0. v = (3, 0): 3, 0, 3 and 6, 0, 3.
  assert.deepEqual([...norms], [(2 + 4) / 2, (6 + 9) / 2]);
  const [roots] = valueNorms([Float32Array.of(1, -1, 3, 0)], wo, shape, "l2");
  const mean = (a: number, b: number) => Math.fround((Math.sqrt(a) + Math.sqrt(b)) / 2);
  assert.deepEqual([...roots], [mean(2, 8), mean(18, 45)]);
  assert.throws(() => valueNorms([Float32Array.of(1, -1)], wo.subarray(1), shape), /want width × 4/);
  assert.throws(() => valueNorms([], wo, shape), RangeError);
  assert.throws(() => valueNorms([Float32Array.of(1)], wo, shape), RangeError);
});

Deno.test("valueShares() divides by what it is told and never by zero", () => {
  const norms = Float32Array.of(1, 3, 0, 7, 3, 1, 0, 7), sizes = { kvHeads: 2, length: 4, prefix: 3 };
  const shares = (axis: Parameters<typeof valueShares>[2]) => [...valueShares(norms, sizes, axis)];
  assert.deepEqual(shares("heads"), [0.25, 0.75, 0, 0.75, 0.25, 0]);
  assert.deepEqual(shares("tokens"), [0.25, 0.75, 0, 0.75, 0.25, 0]);
  assert.deepEqual(shares("plain"), [1, 3, 0, 3, 1, 0]);
  assert.deepEqual(shares("off"), [1, 1, 1, 1, 1, 1]);
});

Deno.test("defensiveRisk() is the larger of the entry's worst case and the head's mean of them", () => {
  holds(fc.property(fc.array(fc.float({ min: 0, max: 1, noNaN: true }), { minLength: 1, maxLength: 9 }), (values) => {
    const worst = Float32Array.from(values);
    const mean = worst.reduce((a, b) => a + b, 0) / worst.length;
    const risk = defensiveRisk(worst, 1);
    risk.forEach((value, i) => assert.ok(value >= worst[i] && value >= Math.fround(mean)));
    if (worst.every((value) => value === worst[0])) close(risk, worst, "risk of equal entries");
  }));
});

Deno.test("defensiveRisk() keeps one spike in one row that a mean loses", () => {
  // 64 entries, 32 rows: entry 7 holds 0.9 of one row; entry 20 holds 0.05 of every row.
  const rows = Array.from(
    { length: 32 },
    (_, t) => Float64Array.from({ length: 64 }, (_, i) => i === 7 && t === 3 ? 0.9 : i === 20 ? 0.05 : 0.001),
  );
  const max = Float32Array.from({ length: 64 }, (_, i) => Math.max(...rows.map((row) => row[i])));
  const mean = Float32Array.from({ length: 64 }, (_, i) => rows.reduce((sum, row) => sum + row[i], 0) / 32);
  const best = (scores: Float32Array) => scores.indexOf(Math.max(...scores));
  assert.deepEqual([best(defensiveRisk(max, 1)), best(mean)], [7, 20]);
});

Deno.test("coverageSet() stops short of the entry that reaches the threshold", () => {
  const mean = Float32Array.of(0.1, 0.4, 0.3, 0.2);
  const set = (threshold: number, cap: number) => [...coverageSet(mean, 1, { threshold, cap })];
  assert.deepEqual(set(0.65, 9), [0, 1, 0, 0]);
  assert.deepEqual(set(0.95, 9), [0, 1, 1, 1]);
  assert.deepEqual(set(0.95, 1), [0, 1, 0, 0]);
  assert.deepEqual(set(1.5, 9), [0, 0, 0, 0], "a threshold that is never reached forces none");
  assert.deepEqual(set(0.65, -1), [0, 1, 1, 1], "a negative cap counts from the end, as Python slices do");
  assert.deepEqual(set(0.65, -7), [0, 0, 0, 0]);
  const halves = Float32Array.of(0.5, 0.25, 0.25);
  const reached = coverageSet(halves, 1, { threshold: 0.75, cap: 3 });
  assert.deepEqual([...reached], [1, 0, 0], "reaching it exactly counts");
  assert.deepEqual([...coverageSet(new Float32Array(3), 1, { threshold: 0.5, cap: 3 })], [0, 0, 0]);
});

/** algorithms of the paper on the worked example: Hkv = 2, G = 2, w = 2, N = 6, kernel 3. */
Deno.test("the worked example comes out to five digits", () => {
  const attention = [
    [[.4, .1, .05, .05, .1, .1], [.3, .05, .05, .3, .05, .05]],
    [[.1, .1, .1, .1, .1, .1], [.05, .05, .4, .05, .05, .2]],
    [[.6, .05, .05, .05, .05, .05], [.5, .1, .05, .05, .05, .05]],
    [[.2, .2, .1, .1, .1, .1], [.1, .1, .1, .1, .1, .3]],
  ];
  const input = inputFor(attention, 2);
  const { mean, pooledMax, pooledMean } = observeWindow(input, {
    window: ["mean", "pooledMax", "pooledMean"],
    kernel: 3,
  });
  const digits = (actual: Float32Array, expected: number[], what: string) => close(actual, expected, what, 6e-6);
  digits(mean!, [.2125, .075, .15, .125, .075, .1125, .35, .1125, .075, .075, .075, .125], "mean");
  const worst = [.21053, .23158, .18605, .18605, .15610, .09302, .29079, .31316, .15238, .12, .2, .16];
  digits(pooledMax!, worst, "worst case");
  const averaged = [.11483, .17156, .13471, .13471, .12137, .07281, .19566, .22618, .10649, .09156, .11156, .08104];
  digits(pooledMean!, averaged, "mean aggregation");
  const risk = defensiveRisk(pooledMax!, 2);
  const expected = [.21053, .23158, .18605, .18605, .17722, .17722, .29079, .31316, .20605, .20605, .20605, .20605];
  digits(risk, expected, "risk");
  const norms = Float32Array.of(1, 2, 1, 4, 1, 1, 2, 1, 1, 1, 2, 4);
  const shares = valueShares(norms, { kvHeads: 2, length: 6, prefix: 6 }, "heads");
  const scores = [.07018, .15439, .09302, .14884, .05907, .03544, .19386, .10439, .10303, .04121, .13737, .16484];
  digits(risk.map((value, i) => value * shares[i]), scores, "score");
  const forced = coverageSet(mean!, 2, { threshold: 0.5, cap: 6 });
  assert.deepEqual([...forced], [1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
});

/** Queries and keys whose softmax rows are `attention[head][t]` on the prefix: unit keys, logarithms as queries. */
function inputFor(attention: number[][][], kvHeads: number): WindowInput {
  const heads = attention.length, window = attention[0].length, prefix = attention[0][0].length;
  const length = prefix + window, headDim = length;
  const key = new Float32Array(length * headDim);
  for (let i = 0; i < length; i++) key[i * headDim + i] = Math.sqrt(headDim);
  const queries = new Float32Array(window * heads * headDim);
  attention.forEach((rows, h) =>
    rows.forEach((row, t) => {
      const rest = (1 - row.reduce((a, b) => a + b, 0)) / (t + 1);
      const full = [...row, ...Array.from({ length: window }, () => rest)];
      queries.set(full.map(Math.log), (t * heads + h) * headDim);
    })
  );
  const keys = Array.from({ length: kvHeads }, () => key);
  return { shape: { heads, kvHeads, headDim }, queries, window, keys, length };
}
