/** What `LayerRows` refuse, each by its message, on every backend; and that a refused call reaches nothing. */
import assert from "node:assert/strict";
import { checkedRows, checkKept } from "../../core/backend/checked_rows.ts";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import { type Backend, type LayerRows, ROW_PAGE, type TrustingRows } from "../../core/backend/interface.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { ALL_BACKENDS } from "../_helper/backends.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 4 };
const ROW = 8, QUERY = 16;
const ROTATION = { pairs: "half", rotated: 4, frequencies: Float64Array.of(1, 0.1) } as const;

function floats(count: number, seed = 1): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => random() * 2 - 1);
}

interface Refusal {
  readonly what: string;
  readonly call: (rows: LayerRows) => unknown;
  readonly message: RegExp | string;
}

function list(...rows: number[]): Int32Array {
  return Int32Array.from(rows);
}

/** Of rows with 5 entries in either head. */
const LEVEL: readonly Refusal[] = [
  ...[0, -1, 0.5, NaN, 2].map((count) => ({
    what: `append ${count} with the floats of one`,
    call: (rows: LayerRows) => rows.append(new Float32Array(ROW), new Float32Array(ROW), count),
    message: `keys have 8 floats: want ${count} × 8`,
  })),
  {
    what: "append too few values",
    call: (rows) => rows.append(new Float32Array(ROW), new Float32Array(7), 1),
    message: "values have 7 floats: want 1 × 8",
  },
  ...[-1, 2, 0.5, NaN].flatMap((head) => [
    { what: `length of head ${head}`, call: (rows: LayerRows) => rows.length(head), message: noHead(head) },
    { what: `copy head ${head}`, call: (rows: LayerRows) => rows.copyRows(head), message: noHead(head) },
  ]),
  ...[-1, 5].map((row) => ({
    what: `copy row ${row}`,
    call: (rows: LayerRows) => rows.copyRows(1, list(0, row)),
    message: `Cannot copy row ${row} of head 1: it has 5`,
  })),
  {
    what: "compact by one list",
    call: (rows) => rows.compact([list(0)]),
    message: "Cannot compact 2 heads by 1 lists",
  },
  ...[[1, 0], [0, 0], [5], [-1]].map((bad) => ({
    what: `compact to ${bad}`,
    call: (rows: LayerRows) => rows.compact([list(0), list(...bad)]),
    message: `Kept rows of head 1: want ascending, unique and below 5, got ${bad.at(-1)}`,
  })),
  ...[[1], [6, 1], [1, -1], [0.5, 1], [1, NaN]].map((lengths) => ({
    what: `truncate to ${lengths}`,
    call: (rows: LayerRows) => rows.truncate(lengths),
    message: `Cannot truncate to ${lengths}: want a length within each head`,
  })),
  ...[[list(1, 1, 1, 1, 1)], [list(1), list(1, 1, 1, 1, 1)]].map((moves) => ({
    what: `turn by ${moves.map(({ length }) => length)} moves`,
    call: (rows: LayerRows) => rows.rotateKeys(moves, ROTATION),
    message: `Cannot turn keys by ${moves.map(({ length }) => length)} moves: want 5,5`,
  })),
  {
    what: "turn more dimensions than there are",
    call: (rows) => rows.rotateKeys([new Int32Array(5), new Int32Array(5)], { ...ROTATION, rotated: 6 }),
    message: "Cannot turn 6 of 4 dimensions by 2 frequencies",
  },
  ...(["prefillAttention", "decodeAttention"] as const).flatMap((name) => [
    {
      what: `${name} of too few floats`,
      call: (rows: LayerRows) => rows[name](new Float32Array(QUERY + 1), 1),
      message: "queries have 17 floats: want 1 × 16",
    },
    {
      what: `${name} of no query`,
      call: (rows: LayerRows) => rows[name](new Float32Array(0), 0),
      message: "queries have 0 floats: want 0 × 16",
    },
    {
      what: `${name} of more queries than rows`,
      call: (rows: LayerRows) => rows[name](new Float32Array(6 * QUERY), 6),
      message: "Cannot attend with 6 queries over 5 rows",
    },
  ]),
  ...[0, 6, 1.5].map((window) => ({
    what: `observe a window of ${window}`,
    call: (rows: LayerRows) => rows.observe(new Float32Array(QUERY), window, { window: ["mean"] }),
    message: `Cannot observe a window of ${window} queries over 5 rows`,
  })),
  ...[0, -1, 2, 1.5, 1025].map((kernel) => ({
    what: `observe with a kernel of ${kernel}`,
    call: (rows: LayerRows) => rows.observe(new Float32Array(QUERY), 1, { window: ["pooledMax"], kernel }),
    message: `Pooling kernel ${kernel}: want an odd integer from 1 to 1023`,
  })),
  {
    what: "observe with too few queries",
    call: (rows) => rows.observe(new Float32Array(QUERY), 2, { window: ["mean"] }),
    message: "queries have 16 floats: want 2 × 16",
  },
  {
    what: "norms under a projection that doesn't fit",
    call: (rows) => rows.valueNorms(new Float32Array(31), 2),
    message: "wo have 31 floats: want 2 × 16",
  },
];

/** Of rows whose heads have 3 and 4 entries. */
const RAGGED: readonly Refusal[] = [
  {
    what: "causal attention",
    call: (rows) => rows.prefillAttention(new Float32Array(QUERY), 1),
    message: "Cannot attend causally: the heads have different lengths",
  },
  {
    what: "observe",
    call: (rows) => rows.observe(new Float32Array(QUERY), 1, { rows: true }),
    message: "Cannot observe: the heads have different lengths",
  },
  {
    what: "value norms",
    call: (rows) => rows.valueNorms(new Float32Array(QUERY), 1),
    message: "Cannot give value norms: the heads have different lengths",
  },
  {
    what: "more queries than the shorter head has rows",
    call: (rows) => rows.decodeAttention(new Float32Array(4 * QUERY), 4),
    message: "Cannot attend with 4 queries over 3 rows",
  },
  {
    what: "a row of the longer head only",
    call: (rows) => rows.copyRows(0, list(3)),
    message: "Cannot copy row 3 of head 0: it has 3",
  },
];

/** Everything but `free`, on rows that were freed. */
const USES: readonly ((rows: LayerRows) => unknown)[] = [
  (rows) => rows.length(0),
  (rows) => rows.append(new Float32Array(ROW), new Float32Array(ROW), 1),
  (rows) => rows.prefillAttention(new Float32Array(QUERY), 1),
  (rows) => rows.decodeAttention(new Float32Array(QUERY), 1),
  (rows) => rows.observe(new Float32Array(QUERY), 1, {}),
  (rows) => rows.valueNorms(new Float32Array(QUERY), 1),
  (rows) => rows.compact([list(), list()]),
  (rows) => rows.truncate([0, 0]),
  (rows) => rows.rotateKeys([list(), list()], ROTATION),
  (rows) => rows.clone(),
  (rows) => rows.copyRows(0),
];
const FREED = "Cannot use rows that were freed";

function noHead(head: number): string {
  return `No KV head ${head}: there are 2`;
}

/** Thrown, or rejected by the promise that comes: never the one where the other is promised. */
async function refused(rows: LayerRows, { call, message, what }: Refusal): Promise<void> {
  const promised = /\.(copyRows|rotateKeys|clone|prefillAttention|decodeAttention|observe|valueNorms)|\[name\]/;
  const wanted = { name: "RangeError", message };
  if (promised.test(String(call))) await assert.rejects(call(rows) as Promise<unknown>, wanted, what);
  else assert.throws(() => call(rows), wanted, what);
}

const BAD_SHAPES = [
  { ...SHAPE, heads: 3 },
  { ...SHAPE, heads: 0 },
  { ...SHAPE, kvHeads: 0 },
  { ...SHAPE, kvHeads: -2 },
  { ...SHAPE, headDim: 1.5 },
  { ...SHAPE, headDim: NaN },
  { ...SHAPE, headDim: 4097 },
  { ...SHAPE, heads: 4098 },
];

function refusesCreation(create: (shape: AttentionShape, reserve: number, type: CacheType) => LayerRows): void {
  for (const shape of BAD_SHAPES) {
    const { heads, kvHeads, headDim } = shape;
    const message = `Cannot hold ${heads} heads over ${kvHeads} KV heads of width ${headDim}`;
    assert.throws(() => create(shape, 0, "f32"), { name: "RangeError", message });
  }
  for (const reserve of [-1, 0.5, NaN, 2 ** 28 + 1]) {
    const wanted = { name: "RangeError", message: `Cannot reserve ${reserve} rows` };
    assert.throws(() => create(SHAPE, reserve, "f32"), wanted);
  }
  for (const reach of [0, -1, 1.5, NaN, Infinity]) {
    const wanted = { name: "RangeError", message: `Cannot look back ${reach} rows: want 1 or more` };
    assert.throws(() => create({ ...SHAPE, reach }, 0, "f32"), wanted);
  }
  assert.throws(() => create(SHAPE, 0, "f64" as CacheType), { code: "cache-type.unknown" });
}

for (const { name, start } of ALL_BACKENDS) {
  Deno.test(`${name}: rows refuse what doesn't fit, by its message, and stay as they are`, async () => {
    using backend: Backend = await start();
    const rows = backend.createRows(SHAPE, 0);
    rows.append(floats(5 * ROW, 2), floats(5 * ROW, 3), 5);
    const level = await copyHeads(rows), bytes = rows.allocatedBytes;
    for (const refusal of LEVEL) await refused(rows, refusal);
    assert.deepEqual(await copyHeads(rows), level);
    assert.deepEqual([rows.length(0), rows.length(1), rows.allocatedBytes], [5, 5, bytes]);
    rows.compact([list(0, 2, 4), list(0, 1, 2, 4)]);
    const ragged = await copyHeads(rows);
    for (const refusal of RAGGED) await refused(rows, refusal);
    assert.deepEqual(await copyHeads(rows), ragged);
    assert.equal((await rows.decodeAttention(floats(3 * QUERY), 3)).output.length, 3 * QUERY);
    rows.free();
    rows.free();
    for (const call of USES) await refused(rows, { call, message: FREED, what: String(call) });
    assert.deepEqual([rows.liveBytes, rows.allocatedBytes, backend.memory().allocatedBytes], [0, 0, 0]);
  });

  Deno.test(`${name}: createRows() refuses shapes, reserves and types that make no sense`, async () => {
    using backend: Backend = await start();
    refusesCreation((shape, reserve, type) => backend.createRows(shape, reserve, type));
    assert.equal(backend.memory().allocatedBytes, 0);
  });

  Deno.test(`${name}: a type refuses the numbers that it can't hold, at once and whole`, async () => {
    using backend: Backend = await start();
    const good = floats(ROW), beyond = { f16: [65520, -65520, Infinity, NaN], int8: [Infinity, -Infinity, NaN] };
    for (const type of ["f16", "int8"] as const) {
      const rows = backend.createRows(SHAPE, 0, type);
      for (const number of beyond[type]) {
        const bad = good.with(ROW - 1, number);
        for (const [keys, values] of [[bad, good], [good, bad]]) {
          assert.throws(() => rows.append(keys, values, 1), { code: "cache-type.range", kind: "input" });
        }
      }
      assert.deepEqual([rows.length(0), rows.liveBytes], [0, 0]);
      rows.append(good, good, 1);
      assert.equal(rows.length(1), 1);
      rows.free();
    }
    const rows = backend.createRows(SHAPE, 0);
    rows.append(good.with(0, NaN), good.with(1, Infinity), 1);
    assert.ok(Number.isNaN((await rows.copyRows(0)).keys[0]));
    rows.free();
  });

  Deno.test(`${name}: rows come and go in pages of ROW_PAGE`, async () => {
    using backend: Backend = await start();
    const rows = backend.createRows(SHAPE, 0), page = SHAPE.kvHeads * 2 * 4 * SHAPE.headDim * ROW_PAGE;
    const append = (count: number) => rows.append(floats(count * ROW), floats(count * ROW), count);
    append(ROW_PAGE);
    assert.equal(rows.allocatedBytes, page);
    append(1);
    assert.equal(rows.allocatedBytes, 2 * page);
    rows.truncate([ROW_PAGE - 1, ROW_PAGE - 1]);
    assert.equal(rows.allocatedBytes, page);
    rows.free();
  });
}

/** Rows that note what reaches them. */
function recorder(): { rows: TrustingRows; reached: string[] } {
  const reached: string[] = [];
  const rows = new Proxy({} as TrustingRows, {
    get: (_, name) => {
      if (name === "allocatedBytes") return 7;
      // A promise that gives it must not take it for another promise.
      if (name === "then") return undefined;
      return (..._all: unknown[]) => {
        reached.push(String(name));
        return name === "clone" ? Promise.resolve(recorder().rows) : undefined;
      };
    },
  });
  return { rows, reached };
}

Deno.test("checkedRows() lets nothing through that it refuses, and everything else as it came", async () => {
  const { rows: trusting, reached } = recorder();
  const rows = checkedRows(SHAPE, 0, "f32", () => trusting);
  rows.append(floats(5 * ROW), floats(5 * ROW), 5);
  reached.length = 0;
  for (const refusal of LEVEL) await refused(rows, refusal);
  assert.deepEqual(reached, []);
  await rows.decodeAttention(floats(QUERY), 1);
  const twin = await rows.clone();
  rows.truncate([3, 4]);
  assert.deepEqual([rows.length(0), rows.length(1), rows.liveBytes], [3, 4, 7 * 32]);
  assert.deepEqual([twin.length(0), twin.length(1), twin.allocatedBytes], [5, 5, 7]);
  reached.length = 0;
  for (const refusal of RAGGED) await refused(rows, refusal);
  rows.free();
  rows.free();
  for (const call of USES) await refused(rows, { call, message: FREED, what: String(call) });
  assert.deepEqual(reached, ["free"]);
  assert.equal(rows.allocatedBytes, 0);
});

Deno.test("checkedRows() makes nothing of a shape, reserve or type that it refuses", () => {
  refusesCreation((shape, reserve, type) =>
    checkedRows(shape, reserve, type, () => assert.fail(`made rows of ${JSON.stringify(shape)}`))
  );
});

Deno.test("checkedRows() keeps its lengths when the rows beneath it fail", () => {
  const full = new Error("full");
  const failing = new Proxy({} as TrustingRows, {
    get: () => () => {
      throw full;
    },
  });
  const rows = checkedRows(SHAPE, 0, "f32", () => failing);
  assert.throws(() => rows.append(floats(ROW), floats(ROW), 1), full);
  assert.throws(() => rows.compact([list(), list()]), full);
  assert.throws(() => rows.truncate([0, 0]), full);
  assert.equal(rows.length(0), 0);
});

Deno.test("checkKept() takes empty lists and whole heads", () => {
  checkKept([list(), list(0, 1, 2)], [4, 3]);
  assert.throws(() => checkKept([list(0, 3)], [3]), RangeError);
});
