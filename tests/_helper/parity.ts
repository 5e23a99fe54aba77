/**
 * What every backend does as the plain one does, on each type of rows. Both store the same bits. Tolerance: float32 sums
 * in another order.
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import { scoreByGate } from "../../core/backend/gate.ts";
import type { Backend, LayerRows } from "../../core/backend/interface.ts";
import { CACHE_TYPES, type CacheType } from "../../core/cache/entry_type.ts";
import type { Needs } from "../../core/policy/policy.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { REDUCTIONS } from "../../wasm/rows.ts";
import { assertClose } from "./close.ts";
import { holds, mask, nastyArray } from "./property.ts";

const TOLERANCE = 1e-5;
/** Decode attention over int8 rows rounds queries and weights to 16 bits; 1.1e-4 was measured. */
const DECODE_TOLERANCE: Readonly<Record<string, number>> = {
  f32: TOLERANCE,
  f16: TOLERANCE,
  int8: 2e-4,
  int4: TOLERANCE,
};
/** What a narrower type may cost in an output, by the largest of it: 4.0e-4 and 1.03e-2 were measured. */
const TYPE_TOLERANCE: Readonly<Record<string, number>> = { f32: TOLERANCE, f16: 1e-3, int8: 2e-2, int4: 1e-3 };
export const SEED = 41;

/** What the cases run over. */
export interface ParitySizes {
  readonly shapes: readonly AttentionShape[];
  readonly lengths: readonly number[];
  /** Lengths that are observed. */
  readonly observed: readonly number[];
  /** One long enough for several chunks. */
  readonly long: number;
  readonly headDims: readonly number[];
  /** Query heads over one KV head. */
  readonly groups: readonly number[];
  readonly reaches: readonly number[];
  readonly reached: readonly number[];
  /** Rows and width of the output projection. */
  readonly norms: readonly (readonly [number, number])[];
}

/** Lengths around the vector width (4), the tile (16, 32, 64) and the page (64). */
export const ALL_SIZES: ParitySizes = {
  shapes: [
    ...[64, 80, 96, 128, 256].map((headDim) => ({ heads: 6, kvHeads: 2, headDim })),
    ...[1, 3, 8, 20, 33, 100].map((headDim) => ({ heads: 4, kvHeads: 4, headDim })),
    { heads: 5, kvHeads: 1, headDim: 16 },
    { heads: 49, kvHeads: 1, headDim: 4 },
  ],
  lengths: [1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 129, 200],
  observed: [1, 2, 5, 33, 64, 65, 129, 200],
  long: 330,
  headDims: [64, 80, 96, 128, 256],
  groups: [1, 3, 4, 8],
  reaches: [1, 2, 7, 40, 64, 65, 300],
  reached: [5, 64, 65, 200],
  norms: [[1, 1], [5, 3], [64, 64], [65, 65], [130, 200]],
};

/** For devices that are emulated, and slow: each shape is compiled anew. */
export const FEW_SIZES: ParitySizes = {
  shapes: [
    { heads: 6, kvHeads: 2, headDim: 64 },
    { heads: 3, kvHeads: 3, headDim: 33 },
    { heads: 2, kvHeads: 1, headDim: 300 },
  ],
  lengths: [1, 65, 129],
  observed: [1, 33, 65],
  long: 70,
  headDims: [64],
  groups: [1, 3],
  reaches: [1, 40],
  reached: [5, 65],
  norms: [[1, 1], [65, 65]],
};

/** For the slowest: one shape. */
export const ONE_SIZE: ParitySizes = {
  shapes: [{ heads: 6, kvHeads: 2, headDim: 20 }],
  lengths: [1, 65],
  observed: [33, 65],
  long: 40,
  headDims: [20],
  groups: [3],
  reaches: [40],
  reached: [65],
  norms: [[65, 65]],
};

function text({ heads, kvHeads, headDim }: AttentionShape): string {
  return `${heads}/${kvHeads} heads of ${headDim}`;
}

/** Roughly normal floats. */
function floats(count: number, seed: number, scale = 1): Float32Array {
  const next = randomSource(SEED * 1000 + seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next() + next() - 2) * 1.7 * scale);
}

/** Whole numbers, so that every product and sum is exact in float32 whatever the order. */
function wholes(count: number, seed: number, largest: number): Float32Array {
  const next = randomSource(SEED * 1000 + seed);
  return Float32Array.from({ length: count }, () => Math.round((next() * 2 - 1) * largest));
}

export interface Pair {
  readonly oracle: Backend<Float32Array>;
  readonly backend: Backend<Float32Array>;
  readonly type: CacheType;
}

/** The same rows on the oracle and on the backend under test. */
export class Twins implements Disposable {
  readonly want: LayerRows<Float32Array>;
  readonly got: LayerRows<Float32Array>;
  constructor({ oracle, backend, type }: Pair, shape: AttentionShape) {
    this.want = oracle.createRows(shape, 0, type);
    this.got = backend.createRows(shape, 0, type);
  }
  append(keys: Float32Array, values: Float32Array, count: number): void {
    for (const rows of [this.want, this.got]) rows.append(keys, values, count);
  }
  compact(kept: Int32Array[]): void {
    for (const rows of [this.want, this.got]) rows.compact(kept);
  }
  [Symbol.dispose](): void {
    this.want.free();
    this.got.free();
  }
}

export function filled(pair: Pair, shape: AttentionShape, length: number): Twins {
  const twins = new Twins(pair, shape), each = shape.kvHeads * shape.headDim;
  twins.append(floats(length * each, 1), floats(length * each, 2), length);
  return twins;
}

export async function samePrefill(twins: Twins, queries: Float32Array, count: number, what: string): Promise<void> {
  const wanted = { columnSum: true, columnMax: true, logSumExp: true };
  const want = await twins.want.prefillAttention(queries, count, wanted);
  const got = await twins.got.prefillAttention(queries, count, wanted);
  assertClose(got.output, want.output, TOLERANCE, `${what}: output`);
  assertClose(got.logSumExp!, want.logSumExp!, TOLERANCE, `${what}: logSumExp`);
  assertClose(got.columnSum!, want.columnSum!, TOLERANCE, `${what}: columnSum`);
  assertClose(got.columnMax!, want.columnMax!, TOLERANCE, `${what}: columnMax`);
  await sameWeighed(twins, queries, count, what);
}

/** Columns of queries that count by different weights. */
async function sameWeighed(twins: Twins, queries: Float32Array, count: number, what: string): Promise<void> {
  const rowWeights = floats(count, 5).map((x) => 0.1 + Math.abs(x));
  const wanted = { columnSum: true, columnMax: true, rowWeights };
  const want = await twins.want.prefillAttention(queries, count, wanted);
  const got = await twins.got.prefillAttention(queries, count, wanted);
  assertClose(got.columnSum!, want.columnSum!, TOLERANCE, `${what}: columnSum of weighed queries`);
  assertClose(got.columnMax!, want.columnMax!, TOLERANCE, `${what}: columnMax of weighed queries`);
}

export async function sameDecode(twins: Twins, queries: Float32Array, count: number, what: string): Promise<void> {
  const tolerance = DECODE_TOLERANCE[twins.got.type];
  const want = await twins.want.decodeAttention(queries, count, { probabilities: true });
  const got = await twins.got.decodeAttention(queries, count, { probabilities: true });
  assertClose(got.output, want.output, tolerance, `${what}: output`);
  assert.equal(got.probabilities!.length, want.probabilities!.length);
  want.probabilities!.forEach((row, head) =>
    assertClose(got.probabilities![head], row, tolerance, `${what}: probabilities of head ${head}`)
  );
}

export async function sameObservation(twins: Twins, queries: Float32Array, window: number, needs: Needs, what: string) {
  const want = await twins.want.observe(queries, window, needs);
  const got = await twins.got.observe(queries, window, needs);
  assert.deepEqual(Object.keys(got).sort(), Object.keys(want).sort(), what);
  for (const name of [...needs.window ?? [], ...(needs.rows ? ["keys", "values"] as const : [])]) {
    assertClose(got[name]!, want[name]!, TOLERANCE, `${what}: ${name}`);
  }
}

export interface ParityCase {
  readonly title: string;
  readonly types: readonly CacheType[];
  body(pair: Pair, sizes: ParitySizes): Promise<void>;
}

export const PARITY_CASES: ParityCase[] = [];

function add(title: string, types: readonly CacheType[], body: ParityCase["body"]): void {
  PARITY_CASES.push({ title, types, body });
}

add(
  "prefillAttention() equals the plain backend for every shape and length",
  CACHE_TYPES,
  async (pair, { shapes, lengths }) => {
    for (const shape of shapes) {
      for (const length of lengths) {
        if (shape.headDim > 64 && ![1, 5, 33, 65, 129].includes(length)) continue;
        using twins = filled(pair, shape, length);
        for (const count of new Set([1, Math.ceil(length / 3), length])) {
          const queries = floats(count * shape.heads * shape.headDim, 3);
          await samePrefill(twins, queries, count, `${text(shape)}, ${count} of ${length}`);
        }
      }
    }
  },
);

add("prefillAttention() cuts long inputs into chunks without a seam", CACHE_TYPES, async (pair, { long }) => {
  const shape = { heads: 12, kvHeads: 2, headDim: 128 }, length = long;
  using twins = filled(pair, shape, length);
  await samePrefill(twins, floats(length * 12 * 128, 3), length, "chunks");
});

add("decodeAttention() equals the plain backend over ragged heads", CACHE_TYPES, async (pair, { shapes }) => {
  for (const shape of shapes) {
    const { heads, kvHeads, headDim } = shape;
    using twins = filled(pair, shape, 200);
    twins.compact(Array.from({ length: kvHeads }, (_, h) => {
      const next = randomSource(SEED + h);
      return Int32Array.from(Array(200).keys()).filter(() => next() < [0.9, 0, 0.1, 0.5][h % 4]);
    }));
    const each = kvHeads * headDim;
    twins.append(floats(3 * each, 4), floats(3 * each, 5), 3);
    for (const count of [1, 2, 3]) {
      await sameDecode(twins, floats(count * heads * headDim, 6), count, `${text(shape)}, ${count} queries`);
    }
  }
});

add("decodeAttention() equals the plain backend for every length", CACHE_TYPES, async (pair, { lengths }) => {
  for (const length of lengths) {
    const shape = { heads: 3, kvHeads: 1, headDim: 64 };
    using twins = filled(pair, shape, length);
    await sameDecode(twins, floats(3 * 64, 7), 1, `length ${length}`);
  }
});

add(
  "attention over narrower rows stays near float32's",
  CACHE_TYPES,
  async ({ oracle, backend, type }, { headDims, groups }) => {
    for (const headDim of headDims) {
      for (const heads of groups) {
        const shape = { heads, kvHeads: 1, headDim }, length = 200;
        using plain = filled({ oracle, backend, type: "f32" }, shape, length);
        using typed = filled({ oracle, backend, type }, shape, length);
        const queries = floats(heads * headDim, 3);
        const want = await plain.want.decodeAttention(queries, 1), got = await typed.got.decodeAttention(queries, 1);
        assertClose(got.output, want.output, TYPE_TOLERANCE[type], `${text(shape)} as ${type}`);
      }
    }
  },
);

add("attention stays exact for logits in the thousands", ["f32"], async (pair) => {
  const shape = { heads: 4, kvHeads: 2, headDim: 64 }, length = 150;
  using twins = new Twins(pair, shape);
  twins.append(wholes(length * 128, 1, 60), floats(length * 128, 2), length);
  const queries = wholes(length * 256, 3, 40);
  await samePrefill(twins, queries, length, "big logits");
  await sameDecode(twins, queries.subarray(0, 256), 1, "big logits");
  await sameObservation(twins, queries.subarray(0, 32 * 256), 32, { window: REDUCTIONS }, "big logits");
});

add("attention over zero keys is uniform", CACHE_TYPES, async (pair) => {
  const shape = { heads: 2, kvHeads: 1, headDim: 8 }, length = 70;
  using twins = new Twins(pair, shape);
  twins.append(new Float32Array(length * 8), floats(length * 8, 2), length);
  await samePrefill(twins, floats(length * 16, 3), length, "zero keys");
  await sameObservation(twins, floats(5 * 16, 3), 5, { window: REDUCTIONS }, "zero keys");
});

add(
  "observe() equals the plain backend for every shape, length, window and kernel",
  CACHE_TYPES,
  async (pair, { shapes, observed }) => {
    for (const shape of shapes) {
      for (const length of observed) {
        using twins = filled(pair, shape, length);
        for (const window of new Set([1, Math.ceil(length / 4), Math.min(32, length), length])) {
          if (shape.headDim > 100 && window > 32) continue;
          const queries = floats(window * shape.heads * shape.headDim, 3);
          const what = `${text(shape)}, window ${window} of ${length}`;
          for (const kernel of length === 65 ? [1, 3, 5, 7, 31, 201] : [5]) {
            await sameObservation(twins, queries, window, { window: REDUCTIONS, kernel }, `${what}, kernel ${kernel}`);
          }
        }
      }
    }
  },
);

add("observe() gives only what is asked for, and rows on request", CACHE_TYPES, async (pair) => {
  using twins = filled(pair, { heads: 4, kvHeads: 2, headDim: 12 }, 70);
  const queries = floats(9 * 48, 3);
  for (const reduction of REDUCTIONS) await sameObservation(twins, queries, 9, { window: [reduction] }, reduction);
  await sameObservation(twins, queries, 9, { rows: true }, "rows");
  await sameObservation(twins, queries, 9, {}, "nothing");
});

add("observe() leaves a row without mass on the prefix all zero", ["f32"], async (pair) => {
  const shape = { heads: 1, kvHeads: 1, headDim: 4 };
  using twins = new Twins(pair, shape);
  // The window's own key outweighs the prefix by e^400.
  const keys = Float32Array.from({ length: 80 }, (_, i) => i >= 76 ? 100 : -100);
  twins.append(keys, floats(80, 1), 20);
  await sameObservation(twins, new Float32Array(4).fill(1), 1, { window: REDUCTIONS }, "no mass");
});

add(
  "a limited reach equals the plain backend's, whatever is asked",
  CACHE_TYPES,
  async (pair, { reaches, reached }) => {
    for (const size of [{ heads: 6, kvHeads: 2, headDim: 64 }, { heads: 3, kvHeads: 3, headDim: 20 }]) {
      for (const reach of reaches) {
        const shape = { ...size, reach }, each = shape.heads * shape.headDim;
        for (const length of reached) {
          using twins = filled(pair, shape, length);
          const what = `${text(shape)}, reach ${reach}`;
          for (const count of new Set([1, Math.ceil(length / 3), length])) {
            const queries = floats(count * each, 3), of = `${what}, ${count} of ${length}`;
            await samePrefill(twins, queries, count, of);
            await sameDecode(twins, queries, count, of);
            await sameObservation(twins, queries, count, { window: REDUCTIONS }, of);
          }
        }
      }
    }
  },
);

add("valueNorms() equals the plain backend for every shape", CACHE_TYPES, async (pair, { shapes, norms }) => {
  for (const shape of shapes) {
    const { heads, headDim } = shape;
    for (const [length, width] of norms) {
      using twins = filled(pair, shape, length);
      const wo = floats(width * heads * headDim, 8);
      for (const kind of ["l1", "l2"] as const) {
        const want = await twins.want.valueNorms(wo, width, kind), got = await twins.got.valueNorms(wo, width, kind);
        assertClose(got, want, TOLERANCE, `${text(shape)}, ${length} rows, width ${width}, ${kind}`);
      }
    }
  }
});

add("select() equals the plain backend on nasty scores", ["f32"], async ({ oracle, backend }) => {
  const segment = fc.integer({ min: 0, max: 40 }).chain((entries) =>
    fc.record({
      scores: nastyArray(entries),
      second: fc.option(nastyArray(entries), { nil: undefined }),
      protectedEntries: fc.option(mask(entries), { nil: undefined }),
    })
  );
  const inputs = fc.array(segment, { maxLength: 5 }).chain((segments) =>
    fc.record({
      segments: fc.constant(segments),
      count: fc.integer({ min: 0, max: segments.reduce((sum, { scores }) => sum + scores.length, 0) }),
    })
  );
  const pairs: Promise<void>[] = [];
  holds(
    fc.property(inputs, (input) => {
      pairs.push((async () => assert.deepEqual(await backend.select(input), await oracle.select(input)))());
    }),
    200,
  );
  await Promise.all(pairs);
});

add("select() is exact on many equal and many close scores", ["f32"], async ({ oracle, backend }) => {
  const next = randomSource(SEED);
  const scores = Float32Array.from(
    { length: 20000 },
    (_, i) => i % 3 === 0 ? 0.25 : 1 + Math.floor(next() * 4000) / 2 ** 23,
  );
  for (const count of [0, 1, 5000, 13332, 13334, 19999, 20000]) {
    const input = { segments: [{ scores: scores.subarray(0, 7000) }, { scores: scores.subarray(7000) }], count };
    assert.deepEqual(await backend.select(input), await oracle.select(input));
  }
});

add(
  "gateScores() equals the plain backend for any number of heads and tokens",
  ["f32"],
  async ({ oracle, backend }) => {
    for (const [heads, width, count] of [[1, 1, 1], [3, 8, 5], [2, 31, 4], [8, 64, 3], [17, 36, 9], [3, 576, 33]]) {
      const [weights, bias] = [floats(heads * width, 1), floats(heads, 2)];
      const gate = { weights, bias, epsilon: 1e-5 }, hidden = floats(count * width, 3);
      const [want, got] = [
        await scoreByGate(oracle, gate, hidden, count),
        await backend.gateScores!(gate, hidden, count),
      ];
      assertClose(got, want, TOLERANCE, `${heads} heads of ${width}, ${count} tokens`);
    }
  },
);

add("gateScores() refuses lengths that don't fit", ["f32"], async ({ oracle, backend }) => {
  const gate = { weights: new Float32Array(6), bias: new Float32Array(2), epsilon: 1e-5 };
  for (const each of [oracle, backend]) {
    await assert.rejects(scoreByGate(each, gate, new Float32Array(5), 2), /Cannot gate 2 rows of 5 floats/);
    await assert.rejects(
      scoreByGate(each, { ...gate, bias: new Float32Array(4) }, new Float32Array(6), 2),
      RangeError,
    );
    await assert.rejects(
      scoreByGate(each, { ...gate, bias: new Float32Array(0) }, new Float32Array(0), 0),
      RangeError,
    );
  }
});
