import assert from "node:assert/strict";
import { conformalQuantile, evictBelow } from "../../core/worst_case/conformal.ts";
import { randomSource } from "../../core/measure/random.ts";

Deno.test("conformalQuantile() is the rank that covers a new score, or nothing finite", () => {
  const scores = [5, 1, 4, 2, 3, 9, 8, 7, 6];
  assert.equal(conformalQuantile(scores, 0.9), 9);
  assert.equal(conformalQuantile(scores, 0.5), 5);
  assert.equal(conformalQuantile(scores, 0.95), Infinity);
  assert.equal(conformalQuantile([], 0.5), Infinity);
  for (const bad of [0, 1, NaN, -1]) assert.throws(() => conformalQuantile(scores, bad), RangeError);
  assert.equal(evictBelow(1, 2), -2);
  assert.equal(evictBelow(0.5, 0), Math.log(0.5));
  for (const bad of [0, 2, NaN]) assert.throws(() => evictBelow(bad, 1), RangeError);
});

Deno.test("conformalQuantile() covers at least as often as promised, over many draws", () => {
  const next = randomSource(77);
  for (const coverage of [0.8, 0.9, 0.95]) {
    let covered = 0;
    for (let draw = 0; draw < 4000; draw++) {
      const scores = Array.from({ length: 40 }, () => next() ** 3);
      if (next() ** 3 <= conformalQuantile(scores, coverage)) covered++;
    }
    // Three standard errors of a share of 4000.
    const slack = 3 * Math.sqrt(coverage * (1 - coverage) / 4000);
    assert.ok(covered / 4000 >= coverage - slack, `${covered / 4000} for ${coverage}`);
    assert.ok(covered / 4000 <= coverage + 1 / 41 + slack, `${covered / 4000} is more than it need be`);
  }
});
