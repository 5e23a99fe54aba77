import assert from "node:assert/strict";
import { columnReductions } from "../../core/measure/attention_columns.ts";
import { queriesBeforeRotation, queriesToCome, QueryStatistics } from "../../core/measure/query_statistics.ts";
import { randomSource } from "../../core/measure/random.ts";
import { rotateRows } from "../../core/measure/rotation.ts";
import { cosSin, cosSinsFrom } from "../../core/measure/cos_sin.ts";
import { assertClose } from "../_helper/close.ts";

const SHAPE = { heads: 2, kvHeads: 1, headDim: 6 };
const ROTATIONS = (["half", "interleaved"] as const).map((pairs) => ({
  pairs,
  rotated: 4,
  frequencies: Float64Array.of(0.7, 0.03),
}));

function floats(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => next() * 4 - 2);
}

Deno.test("cosSin() is the cosine and sine of any angle", () => {
  for (const angle of [0, 1e-9, 0.5, 1, -1, 3.14159, -7, 100]) {
    const { cos, sin } = cosSin(angle);
    assert.ok(Math.abs(cos - Math.cos(angle)) < 1e-13 && Math.abs(sin - Math.sin(angle)) < 1e-13, `${angle}`);
  }
  assert.ok(Math.abs(cosSin(1).cos - Math.cos(1)) <= 2 ** -52);
});

Deno.test("cosSinsFrom() gives the turns of positions first … first + count − 1", () => {
  const turns = [...cosSinsFrom(0.3, 5000, 3)];
  assert.equal(turns.length, 3);
  turns.forEach(({ cos, sin }, i) => {
    assert.ok(Math.abs(cos - Math.cos(0.3 * (5000 + i))) < 1e-11 && Math.abs(sin - Math.sin(0.3 * (5000 + i))) < 1e-11);
  });
});

for (const rotation of ROTATIONS) {
  Deno.test(`queriesBeforeRotation() undoes rotateRows() on ${rotation.pairs} pairs`, () => {
    const length = 9, before = floats(2 * length * 6, 3), after = before.slice();
    const moves = Int32Array.from({ length }, (_, t) => t);
    for (const head of [0, 1]) {
      rotateRows(after.subarray(head * length * 6, (head + 1) * length * 6), 6, moves, rotation);
    }
    const byToken = queriesBeforeRotation(after, SHAPE, rotation);
    for (let head = 0; head < 2; head++) {
      for (let t = 0; t < length; t++) {
        const from = (head * length + t) * 6, to = (t * 2 + head) * 6;
        for (let j = 0; j < 6; j++) assert.ok(Math.abs(byToken[to + j] - before[from + j]) < 1e-6);
      }
    }
  });

  Deno.test(`QueryStatistics equals its definition on ${rotation.pairs} pairs, whatever the chunks`, () => {
    const length = 11, sinks = 4, future = 5, queries = floats(length * 12, 8);
    const statistics = new QueryStatistics(SHAPE, length, sinks);
    for (const [first, count] of [[0, 3], [3, 1], [4, 6], [10, 1]]) {
      statistics.add(queries.subarray(first * 12, (first + count) * 12), first, count, 12);
    }
    const { queryMean, queryCovariance } = queriesToCome(statistics.means(), SHAPE, rotation, {
      ...{ future, next: length, magnitude: 1.5 },
    });
    for (let head = 0; head < 2; head++) {
      const rows = Array.from({ length: length - sinks }, (_, t) => {
        return queries.subarray(((t + sinks) * 2 + head) * 6, ((t + sinks) * 2 + head + 1) * 6);
      });
      const mean = Array.from({ length: 6 }, (_, a) => 1.5 * rows.reduce((sum, row) => sum + row[a], 0) / rows.length);
      const covariance = mean.map((_, a) =>
        mean.map((_, b) => {
          return rows.reduce((sum, row) => sum + (1.5 * row[a] - mean[a]) * (1.5 * row[b] - mean[b]), 0) / rows.length;
        })
      );
      const R = meanRotation(rotation, length, future);
      const turned = R.map((row) => row.reduce((sum, r, a) => sum + r * mean[a], 0));
      assertClose(queryMean!.subarray(head * 6, (head + 1) * 6), turned, 1e-6, "mean");
      const both = R.map((left) =>
        R.map((right) =>
          left.reduce((sum, l, a) => sum + l * right.reduce((s, r, b) => s + r * covariance[a][b], 0), 0)
        )
      );
      assertClose(queryCovariance!.subarray(head * 36, (head + 1) * 36), both.flat(), 1e-5, "covariance");
    }
  });
}

/** The mean of `future` rotation matrices from position `first` on, `[6][6]`. */
function meanRotation({ pairs, rotated, frequencies }: typeof ROTATIONS[number], first: number, future: number) {
  const R = Array.from({ length: 6 }, (_, a) => Array.from({ length: 6 }, (_, b) => Number(a === b && a >= rotated)));
  frequencies.forEach((frequency, j) => {
    const [a, b] = pairs === "half" ? [j, j + rotated / 2] : [2 * j, 2 * j + 1];
    for (let t = first; t < first + future; t++) {
      const cos = Math.cos(t * frequency) / future, sin = Math.sin(t * frequency) / future;
      R[a][a] += cos;
      R[b][b] += cos;
      R[a][b] -= sin;
      R[b][a] += sin;
    }
  });
  return R;
}

Deno.test("QueryStatistics counts the last token of a context that is all sinks", () => {
  const statistics = new QueryStatistics(SHAPE, 3, 4);
  const queries = floats(36, 1);
  statistics.add(queries, 0, 3, 12);
  const { queryMean, queryCovariance } = queriesToCome(statistics.means(), SHAPE, {
    pairs: "half",
    rotated: 0,
    frequencies: new Float64Array(0),
  }, { future: 1, next: 3, magnitude: 1 });
  assert.deepEqual([...queryMean!], [...queries.subarray(24)]);
  assert.ok(queryCovariance!.every((value) => Math.abs(value) < 1e-15));
});

Deno.test("columnReductions() sums and maximises every causal row", () => {
  const shape = { heads: 1, kvHeads: 1, headDim: 1 };
  // Keys of 0 give every visible key the same share.
  const { columnSum, columnMax } = columnReductions({
    shape,
    queries: floats(3, 2),
    keys: [new Float32Array(3)],
    length: 3,
  });
  assertClose(columnSum, [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3], 1e-7, "sums");
  assertClose(columnMax, [1, 1 / 2, 1 / 3], 1e-7, "maxima");
});
