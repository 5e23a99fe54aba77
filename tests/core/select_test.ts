import assert from "node:assert/strict";
import fc from "fast-check";
import { orderedKey, type SelectionInput, selectTop } from "../../core/select/select.ts";
import { naiveSelect } from "../_helper/naive_select.ts";
import { holds, mask, nastyArray } from "../_helper/property.ts";

const one = (
  scores: number[],
  count: number,
) => [...selectTop({ segments: [{ scores: new Float32Array(scores) }], count })[0]];

/** A pool of up to five segments with every optional key there or not, and a fitting count. */
const pool: fc.Arbitrary<SelectionInput> = fc.array(fc.integer({ min: 0, max: 12 }), { maxLength: 5 })
  .chain((lengths) =>
    fc.record({
      segments: fc.tuple(...lengths.map((length) =>
        fc.record({
          scores: nastyArray(length),
          second: fc.option(nastyArray(length), { nil: undefined }),
          protectedEntries: fc.option(mask(length), { nil: undefined }),
        }, { noNullPrototype: true })
      )),
      count: fc.integer({ min: 0, max: lengths.reduce((sum, length) => sum + length, 0) }),
    }, { noNullPrototype: true })
  );

Deno.test("selectTop() equals a sort of the whole pool, for NaN, ±0, infinities and ties too", () => {
  holds(fc.property(pool, (input) => assert.deepEqual(selectTop(input), naiveSelect(input))), 2000);
});

Deno.test("selectTop() keeps exactly count entries, ascending and unique, and leaves its inputs alone", () => {
  holds(fc.property(pool, (input) => {
    const before = structuredClone(input);
    const kept = selectTop(input);
    assert.deepEqual(input, before);
    assert.equal(kept.reduce((sum, { length }) => sum + length, 0), input.count);
    kept.forEach((indices, s) => {
      indices.forEach((index, i) => assert.ok(index > (indices[i - 1] ?? -1)));
      assert.ok((indices.at(-1) ?? -1) < input.segments[s].scores.length);
    });
  }));
});

Deno.test("selectTop() is nested in the count", () => {
  holds(fc.property(pool, ({ segments, count }) => {
    if (count === 0) return;
    const [small, large] = [selectTop({ segments, count: count - 1 }), selectTop({ segments, count })];
    small.forEach((kept, s) => kept.forEach((index) => assert.ok(large[s].includes(index))));
  }));
});

Deno.test("selectTop() prefers the lower index among equals", () => {
  assert.deepEqual(one([1, 1, 1, 1], 2), [0, 1]);
  assert.deepEqual(one([0, -0, 0], 1), [0]);
  assert.deepEqual(one([-0, 0, -0], 2), [0, 1]);
});

Deno.test("selectTop() counts NaN as −∞", () => {
  assert.deepEqual(one([NaN, -Infinity, -1e38], 1), [2]);
  assert.deepEqual(one([NaN, -Infinity], 1), [0]);
  assert.deepEqual(one([-Infinity, NaN], 1), [0]);
});

Deno.test("selectTop() keeps protected entries before any score", () => {
  const scores = Float32Array.of(9, 8, 1, NaN);
  const protectedEntries = Uint8Array.of(0, 0, 1, 1);
  assert.deepEqual([...selectTop({ segments: [{ scores, protectedEntries }], count: 3 })[0]], [0, 2, 3]);
  assert.deepEqual([...selectTop({ segments: [{ scores, protectedEntries }], count: 1 })[0]], [2]);
});

Deno.test("selectTop() asks the second key only among equal scores", () => {
  const scores = Float32Array.of(1, 1, 2, 1), second = Float32Array.of(0, 5, -9, 5);
  assert.deepEqual([...selectTop({ segments: [{ scores, second }], count: 2 })[0]], [1, 2]);
});

Deno.test("selectTop() lets the lower segment win a tie", () => {
  const segment = { scores: Float32Array.of(1, 1) };
  assert.deepEqual(selectTop({ segments: [segment, segment], count: 3 }).map((kept) => [...kept]), [[0, 1], [0]]);
});

Deno.test("selectTop() agrees with a sort on a long pool with few distinct scores", () => {
  const scores = Float32Array.from({ length: 20_000 }, (_, i) => (i * 7919) % 13 - 6);
  const input = { segments: [{ scores: scores.subarray(0, 9_001) }, { scores: scores.subarray(9_001) }], count: 7_777 };
  assert.deepEqual(selectTop(input), naiveSelect(input));
});

Deno.test("selectTop() refuses a count or a key that does not fit", () => {
  const segments = [{ scores: new Float32Array(3) }];
  for (const count of [-1, 4, 1.5, NaN]) assert.throws(() => selectTop({ segments, count }), RangeError);
  const short = { scores: new Float32Array(3), second: new Float32Array(2) };
  assert.throws(() => selectTop({ segments: [short], count: 1 }), /3 scores but a key of 2/);
});

Deno.test("orderedKey() orders float bits as floats", () => {
  const bitsOf = (value: number) => new Uint32Array(Float32Array.of(value).buffer)[0];
  const ascending = [-Infinity, -1e30, -1, -1e-45, 0, 1e-45, 1, 1e30, Infinity].map((value) =>
    orderedKey(bitsOf(value))
  );
  ascending.forEach((key, i) => i > 0 && assert.ok(key > ascending[i - 1]));
  assert.equal(orderedKey(0x80000000), orderedKey(0));
  for (const nan of [0x7fc00000, 0xffc00000, 0x7f800001]) assert.equal(orderedKey(nan), orderedKey(bitsOf(-Infinity)));
  assert.equal(orderedKey(0xbf800000 | 0), orderedKey(0xbf800000)); // signed and unsigned views of the same bits
});
