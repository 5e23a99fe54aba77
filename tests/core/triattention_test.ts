/** TriAttention's score against its formula, distance by distance, over all ways to pair and turn. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { queriesToCome, QueryStatistics } from "../../core/measure/query_statistics.ts";
import { randomSource } from "../../core/measure/random.ts";
import { type KeyRotation, rotateRows } from "../../core/measure/rotation.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { assertClose } from "../_helper/close.ts";
import { holds } from "../_helper/property.ts";

const HEADS = 4, KV_HEADS = 2, LENGTH = 9, SINKS = 2, FUTURE = 1000;

interface Case {
  readonly headDim: number;
  readonly rotation: KeyRotation;
  readonly magnitude: number;
  /** Position of the first key. */
  readonly start: number;
  /** Before RoPE: `[L, heads, headDim]`, `[kvHeads, L, headDim]`. */
  readonly queries: Float32Array;
  readonly keys: Float32Array;
}

const CASES: fc.Arbitrary<Case> = fc.record({
  seed: fc.integer({ min: 0, max: 1e9 }),
  headDim: fc.integer({ min: 2, max: 9 }),
  turned: fc.integer({ min: 0, max: 4 }),
  pairs: fc.constantFrom("half" as const, "interleaved" as const),
  magnitude: fc.constantFrom(1, 1.3),
  start: fc.integer({ min: 0, max: 5000 }),
}).map(({ seed, headDim, turned, pairs, ...rest }) => {
  const next = randomSource(seed), count = Math.min(turned, Math.floor(headDim / 2));
  const floats = (count: number) => Float32Array.from({ length: count }, () => next() * 4 - 1);
  const frequencies = Float64Array.from({ length: count }, () => next() ** 3);
  return {
    ...{ headDim, ...rest, rotation: { pairs, rotated: 2 * count, frequencies } },
    ...{ queries: floats(LENGTH * HEADS * headDim), keys: floats(KV_HEADS * LENGTH * headDim) },
  };
});

/** As the policy has it, `[kvHeads, L]`. */
function scoresOf(each: Case, settings = ""): Float32Array {
  const { headDim, rotation, magnitude, start, queries } = each;
  const shape = { heads: HEADS, kvHeads: KV_HEADS, headDim }, keys = each.keys.map((x) => x * magnitude);
  const positions = Int32Array.from({ length: KV_HEADS * LENGTH }, (_, i) => start + i % LENGTH);
  rotateRows(keys, headDim, positions, rotation);
  const sums = new QueryStatistics(shape, LENGTH, SINKS, rotation);
  sums.add(queries, 0, LENGTH, HEADS * headDim);
  const toCome = { future: FUTURE, magnitude, next: start + LENGTH };
  const policy = resolvePolicy(`triattention(sinks=${SINKS}, window=1, future=${FUTURE}${settings})`);
  const budget = resolveBudget(policy, { tokens: 4 }, LENGTH, { ...shape, layers: 1 });
  const seen = { layer: 0, shape, length: LENGTH, window: 0, keys, values: keys };
  return policy.score({ ...seen, ...queriesToCome(sums.means(), shape, rotation, toCome) }, budget).scores;
}

/** Dimensions of a pair and its angle per position; what isn't turned has none. */
function pairsOf({ headDim, rotation: { pairs, rotated, frequencies } }: Case) {
  const half = rotated / 2;
  const turned = [...frequencies].map((frequency, j) => {
    return { frequency, of: pairs === "half" ? [j, j + half] : [2 * j, 2 * j + 1] };
  });
  const rest = Array.from({ length: Math.ceil((headDim - rotated) / 2) }, (_, i) => {
    return { frequency: 0, of: [rotated + 2 * i, rotated + 2 * i + 1] };
  });
  return [...turned, ...rest];
}

/** Σ m² |k| (|c| mean_d cos(ω(P − p + d) + arg(c k̄)) + a − |c|) of each query head, `[heads][L]`. */
function byFormula(each: Case): number[][] {
  const { headDim, magnitude, queries, keys } = each;
  return Array.from({ length: HEADS }, (_, head) => {
    const rows = Array.from({ length: LENGTH - SINKS }, (_, t) => ((t + SINKS) * HEADS + head) * headDim);
    return Array.from({ length: LENGTH }, (_, i) => {
      const key = (Math.floor(head / 2) * LENGTH + i) * headDim;
      return pairsOf(each).reduce((sum, { frequency, of: [a, b] }) => {
        // Behind an odd last dimension there is none.
        const at = (values: Float32Array, row: number, d: number) => d < headDim ? values[row + d] : 0;
        const mean = (of: (row: number) => number) => rows.reduce((sum, row) => sum + of(row), 0) / rows.length;
        const [x, y] = [mean((row) => at(queries, row, a)), mean((row) => at(queries, row, b))];
        const length = mean((row) => Math.hypot(at(queries, row, a), at(queries, row, b)));
        const [u, v] = [at(keys, key, a), at(keys, key, b)], angle = Math.atan2(y * u - x * v, x * u + y * v);
        let cosines = 0, count = 0;
        for (let d = 1; d <= FUTURE; d *= 2, count++) cosines += Math.cos(frequency * (LENGTH - i + d) + angle);
        const center = Math.hypot(x, y);
        return sum + magnitude ** 2 * Math.hypot(u, v) * (center * cosines / count + length - center);
      }, 0);
    });
  });
}

const perGroup = (heads: readonly (readonly number[])[]) =>
  [[0, 1], [2, 3]].flatMap(([a, b]) => heads[a].map((x, i) => Math.max(x, heads[b][i])));

Deno.test("triattention is its formula, whatever is paired, turned and multiplied", () => {
  holds(fc.property(CASES, (each) => assertClose(scoresOf(each), perGroup(byFormula(each)), 2e-5, "scores")));
});

Deno.test("where a text begins doesn't matter to triattention", () => {
  holds(fc.property(CASES, (each) => {
    assertClose(scoresOf({ ...each, start: each.start + 321 }), scoresOf(each), 2e-5, "scores");
  }));
});

Deno.test("of queries that cancel out, triattention has the lengths alone", () => {
  holds(
    fc.property(CASES, (each) => {
      const row = HEADS * each.headDim, queries = each.queries.slice();
      // Of the tokens that count, each has one against it; the last one is 0.
      for (let t = SINKS; t + 1 < LENGTH; t += 2) {
        for (let d = 0; d < row; d++) queries[(t + 1) * row + d] = -queries[t * row + d];
      }
      queries.fill(0, (LENGTH - 1) * row);
      const cancelling = { ...each, queries }, lengths = byFormula(cancelling);
      assertClose(scoresOf(cancelling), perGroup(lengths), 2e-5, "scores");
      const turnedOn = {
        ...cancelling,
        rotation: { ...each.rotation, frequencies: each.rotation.frequencies.map((x) => x + 1) },
      };
      assertClose(scoresOf(turnedOn), perGroup(lengths), 2e-5, "whatever turns");
    }),
    100,
  );
});

Deno.test("normalise=heads brings every query head to mean 0 and variance 1 first", () => {
  holds(
    fc.property(CASES, (each) => {
      const heads = byFormula(each).map((scores) => {
        const mean = scores.reduce((sum, x) => sum + x, 0) / LENGTH;
        const deviation = Math.sqrt(scores.reduce((sum, x) => sum + (x - mean) ** 2, 0) / LENGTH);
        return scores.map((x) => (x - mean) / Math.max(1e-6, deviation));
      });
      assertClose(scoresOf(each, ", normalise=heads"), perGroup(heads), 2e-4, "scores");
    }),
    100,
  );
});

Deno.test("keys that are all alike score 0 in every head that is normalised", () => {
  const each = fc.sample(CASES, { seed: 1, numRuns: 1 })[0];
  const none = scoresOf({ ...each, keys: new Float32Array(each.keys.length) }, ", normalise=heads");
  assert.deepEqual([...none], new Array(KV_HEADS * LENGTH).fill(0));
});
