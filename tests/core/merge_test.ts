/** Merging evicted entries into kept ones: the published formula, and what it may not change. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { randomSource } from "../../core/measure/random.ts";
import { anchorsOf, type MergeEntries, mergeHead } from "../../core/merge/merge.ts";
import { assertClose } from "../_helper/close.ts";
import { holds } from "../_helper/property.ts";

const DIM = 4;

Deno.test("mergeHead() gives what NumPy makes of the formula", () => {
  const golden = JSON.parse(readFileSync(new URL("../data/stages/merge.json", import.meta.url), "utf8"));
  const entries: MergeEntries = {
    keys: Float32Array.from(golden.keys),
    values: Float32Array.from(golden.values),
    positions: Int32Array.from(golden.positions),
    masses: Float64Array.from(golden.masses, (mass: number | null) => mass ?? NaN),
  };
  for (const merge of ["sum", "mean"] as const) {
    const made = mergeHead(entries, Int32Array.from(golden.kept), golden.dim, merge);
    assertClose(made.keys, golden.mergedKeys, 1e-6, "keys");
    assertClose(made.values, golden.mergedValues, 1e-6, "values");
    assertClose(made.bias, merge === "sum" ? golden.bias : golden.kept.map(() => 0), 1e-6, "bias");
    assert.equal(made.lost, 1);
    assert.equal(made.merged, golden.positions.length - golden.kept.length - 1);
  }
});

/** Rows of a head, some in groups of equal keys and masses, and what stays of it. */
function randomHead(seed: number, rows: number, equal: boolean): MergeEntries & { kept: Int32Array } {
  const random = randomSource(seed), numbers = (n: number) => Float32Array.from({ length: n }, () => random() * 2 - 1);
  const positions = Int32Array.from({ length: rows }), keys = numbers(rows * DIM), masses = new Float64Array(rows);
  for (let i = 0, at = 0; i < rows; i++) positions[i] = at += 1 + Math.floor(random() * 3);
  for (let i = 0; i < rows; i++) masses[i] = equal ? 0.25 : random();
  if (equal) { for (let i = 1; i < rows; i++) keys.set(keys.subarray(0, DIM), i * DIM); }
  const kept = Int32Array.from(positions.keys()).filter((i) => i === 0 || random() < 0.4);
  return { keys, values: numbers(rows * DIM), positions, masses, kept };
}

/** softmax(q·k + β) v in doubles, and the sum of the exponentials. */
function attend(query: Float32Array, { keys, values, bias }: Pick<MergeEntries, "keys" | "values" | "bias">) {
  const output = new Float64Array(DIM);
  let weight = 0;
  for (let i = 0; i < keys.length / DIM; i++) {
    let logit = bias?.[i] ?? 0;
    for (let j = 0; j < DIM; j++) logit += query[j] * keys[i * DIM + j];
    const share = Math.exp(logit);
    weight += share;
    for (let j = 0; j < DIM; j++) output[j] += share * values[i * DIM + j];
  }
  return { output: output.map((x) => x / weight), weight };
}

Deno.test("a sum of entries with equal keys attends as they all did, whatever the values and the query", () => {
  holds(
    fc.property(fc.nat(), fc.integer({ min: 1, max: 30 }), (seed, rows) => {
      const head = randomHead(seed, rows, true), made = mergeHead(head, head.kept, DIM, "sum");
      const query = Float32Array.from({ length: DIM }, randomSource(seed + 1)).map((x) => 6 * x - 3);
      const [whole, merged] = [attend(query, head), attend(query, made)];
      assertClose(merged.output, whole.output, 2e-6, "output");
      assert.ok(Math.abs(merged.weight / whole.weight - 1) < 1e-5, `${merged.weight} ${whole.weight}`);
    }),
    100,
  );
});

Deno.test("where shares are one query's own, a sum weighs for it what its group did, whatever the keys", () => {
  holds(
    fc.property(fc.nat(), fc.integer({ min: 2, max: 30 }), (seed, rows) => {
      const head = randomHead(seed, rows, false), random = randomSource(seed + 1);
      const query = Float32Array.from({ length: DIM }, () => random() * 4 - 2);
      const masses = Float64Array.from({ length: rows }, (_, i) => {
        const keys = head.keys.subarray(i * DIM, (i + 1) * DIM), values = head.values.subarray(i * DIM, (i + 1) * DIM);
        return attend(query, { keys, values }).weight;
      });
      const made = mergeHead({ ...head, masses }, head.kept, DIM, "sum");
      const [whole, merged] = [attend(query, head), attend(query, made)];
      assertClose(merged.output, whole.output, 5e-6, "output");
      assert.ok(Math.abs(merged.weight / whole.weight - 1) < 1e-5);
    }),
    100,
  );
});

Deno.test("merging in two steps gives what merging at once gives, where the anchors are the same", () => {
  holds(
    fc.property(fc.nat(), fc.integer({ min: 1, max: 30 }), (seed, rows) => {
      const head = randomHead(seed, rows, false), random = randomSource(seed + 2), { kept } = head;
      // First goes every other evicted entry, into the anchor it would have had.
      const to = anchorsOf(head, kept), stays = new Set(kept);
      const first = Int32Array.from(head.positions.keys()).filter((i) => stays.has(i) || random() < 0.5);
      const able = anchorsOf(head, first), gone = [...head.positions.keys()].filter((i) => !first.includes(i));
      if (gone.some((i) => first[able[i]] !== kept[to[i]])) return;
      const half = mergeHead(head, first, DIM, "sum");
      const positions = first.map((i) => head.positions[i]);
      const rest = Int32Array.from(first.keys()).filter((i) => stays.has(first[i]));
      const made = mergeHead({ ...half, positions }, rest, DIM, "sum"), once = mergeHead(head, kept, DIM, "sum");
      for (const part of ["keys", "values", "bias"] as const) assertClose(made[part], once[part], 5e-6, part);
      assertClose(Float32Array.from(made.masses), Float32Array.from(once.masses), 1e-6, "masses");
    }),
    200,
  );
});

Deno.test("anchorsOf() finds the nearest kept entry, the earlier of two, and passes over those without a mass", () => {
  holds(
    fc.property(fc.nat(), fc.integer({ min: 1, max: 25 }), (seed, rows) => {
      const { positions, kept, masses } = randomHead(seed, rows, false), random = randomSource(seed + 3);
      for (let i = 0; i < rows; i++) if (random() < 0.2) masses[i] = NaN;
      const able = [...kept.keys()].filter((i) => !Number.isNaN(masses[kept[i]])), stays = new Set(kept);
      const wanted = [...positions.keys()].map((row) => {
        if (Number.isNaN(masses[row]) || able.length === 0) return -1;
        const apart = (i: number) => Math.abs(positions[kept[i]] - positions[row]);
        return stays.has(row) ? kept.indexOf(row) : able.reduce((best, i) => apart(i) < apart(best) ? i : best);
      });
      assert.deepEqual([...anchorsOf({ positions, masses }, kept)], wanted);
    }),
    200,
  );
});

Deno.test("a row that nothing is merged into stays to the bit, and keeps its bias", () => {
  const head = randomHead(5, 12, false), kept = Int32Array.from(head.positions.keys());
  const bias = Float32Array.of(0.5, -0.25), made = mergeHead({ ...head, bias }, kept, DIM, "sum");
  assert.deepEqual(made.keys, head.keys);
  assert.deepEqual(made.values, head.values);
  assert.deepEqual([...made.bias], [0.5, -0.25, ...new Array(10).fill(0)]);
  assert.equal(made.merged + made.lost, 0);
});
