import assert from "node:assert/strict";
import { chosen, createSampler, type SamplerOptions } from "../../model/decode/sampler.ts";

const SEED = 7;

/** Logits whose probabilities are `weights` over their sum. */
function logitsOf(weights: readonly number[]): Float32Array {
  return Float32Array.from(weights, (weight) => Math.log(weight));
}

function drawn(options: SamplerOptions, logits: Float32Array, count: number): number[] {
  const sampler = createSampler({ temperature: 1, seed: SEED, ...options });
  const counts = new Array(logits.length).fill(0);
  for (let i = 0; i < count; i++) counts[sampler.next(logits)]++;
  return counts;
}

Deno.test("createSampler() takes the most likely token by default, the lower id of equals", () => {
  const sampler = createSampler();
  assert.equal(sampler.next(new Float32Array([1, 3, 3, 2])), 1);
  assert.equal(sampler.next(new Float32Array([-Infinity, -1e30])), 1);
  assert.equal(sampler.next(new Float32Array([-0, 0])), 0);
  assert.equal(createSampler({ temperature: 0, topP: 0.1, topK: 1 }).next(new Float32Array([0, 1])), 1);
});

Deno.test("next() refuses logits that are damaged or leave no choice", () => {
  for (const temperature of [0, 1]) {
    const sampler = createSampler({ temperature });
    for (const logits of [[1, NaN, 2], [Infinity, 1], [-Infinity, -Infinity], []]) {
      assert.throws(() => sampler.next(new Float32Array(logits)), { code: "model.logits", kind: "input" });
    }
  }
});

Deno.test("chosen() takes a choice that was made elsewhere, and refuses what next() refuses", () => {
  assert.equal(chosen({ token: 7, logit: -3 }), 7);
  for (const logit of [NaN, Infinity, -Infinity]) {
    assert.throws(() => chosen({ token: 1, logit }), { code: "model.logits", kind: "input" });
  }
  assert.deepEqual([createSampler().greedy, createSampler({ temperature: 0.1 }).greedy], [true, false]);
});

Deno.test("next() leaves the logits as they are", () => {
  const logits = logitsOf([1, 2, 3]);
  const before = logits.slice();
  createSampler({ temperature: 0.5, topP: 0.7, topK: 2 }).next(logits);
  assert.deepEqual(logits, before);
});

Deno.test("next() draws in proportion to the probabilities", () => {
  const weights = [5, 0, 3, 2];
  const counts = drawn({}, logitsOf(weights), 20_000);
  assert.equal(counts[1], 0);
  // Five standard deviations of a count of 20,000 draws are below 354.
  weights.forEach((weight, id) => assert.ok(Math.abs(counts[id] - weight * 2000) < 354, `seed ${SEED}: ${counts}`));
});

Deno.test("next() sharpens below temperature 1 and flattens above", () => {
  const logits = logitsOf([4, 1]);
  const share = (temperature: number) => drawn({ temperature }, logits, 20_000)[0] / 20_000;
  // Odds are 4^(1/temperature) to 1.
  assert.ok(Math.abs(share(0.5) - 16 / 17) < 0.02);
  assert.ok(Math.abs(share(2) - 2 / 3) < 0.02);
  assert.equal(share(1e-300), 1);
  assert.ok(Math.abs(share(1e300) - 0.5) < 0.02);
});

Deno.test("next() keeps the fewest tokens that reach topP", () => {
  const logits = logitsOf([0.1, 0.4, 0.2, 0.3]);
  const allowed = (topP: number) => drawn({ topP }, logits, 2000).flatMap((count, id) => count > 0 ? [id] : []);
  assert.deepEqual(allowed(1e-9), [1]);
  assert.deepEqual(allowed(0.39), [1]);
  assert.deepEqual(allowed(0.41), [1, 3]);
  assert.deepEqual(allowed(0.85), [1, 2, 3]);
  assert.deepEqual(allowed(0.95), [0, 1, 2, 3]);
  assert.deepEqual(allowed(1), [0, 1, 2, 3]);
});

Deno.test("next() with topP takes the lower ids of equal tokens", () => {
  const counts = drawn({ topP: 0.5 }, new Float32Array(10), 2000);
  assert.deepEqual(counts.map((count) => count > 0), Array.from({ length: 10 }, (_, id) => id < 5));
});

Deno.test("next() with topP draws what sorting all tokens would allow", () => {
  const logits = Float32Array.from({ length: 1000 }, (_, id) => 8 * Math.sin(id * id));
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
  for (const topP of [0.1, 0.5, 0.9, 0.999]) {
    let mass = 0;
    const nucleus = new Set<number>();
    for (const id of order) {
      if (mass >= topP * sum) break;
      nucleus.add(id);
      mass += Math.exp(logits[id]);
    }
    const ids = drawn({ topP }, logits, 500).flatMap((count, id) => count > 0 ? [id] : []);
    assert.ok(ids.every((id) => nucleus.has(id)), `topP ${topP}`);
  }
});

Deno.test("next() keeps exactly topK tokens, ties to the lower id, before topP", () => {
  const allowed = (options: SamplerOptions, logits: Float32Array) =>
    drawn(options, logits, 2000).flatMap((count, id) => count > 0 ? [id] : []);
  assert.deepEqual(allowed({ topK: 1 }, logitsOf([1, 2, 2])), [1]);
  assert.deepEqual(allowed({ topK: 2 }, logitsOf([2, 1, 2, 2])), [0, 2]);
  assert.deepEqual(allowed({ topK: 9 }, logitsOf([1, 1])), [0, 1]);
  assert.deepEqual(allowed({ topK: 3 }, new Float32Array([0, -Infinity, -Infinity, -Infinity])), [0]);
  // Of the two kept the first has 4/7 > 0.5; of all it would have 0.4.
  assert.deepEqual(allowed({ topK: 2, topP: 0.5 }, logitsOf([0.4, 0.3, 0.2, 0.1])), [0]);
});

Deno.test("next() gives the same ids for the same seed and other ids for another", () => {
  const logits = new Float32Array(1000);
  const ids = (seed?: number) => {
    const sampler = createSampler({ temperature: 1, seed });
    return Array.from({ length: 20 }, () => sampler.next(logits));
  };
  assert.deepEqual(ids(5), ids(5));
  assert.deepEqual(ids(), ids(0));
  assert.notDeepEqual(ids(5), ids(6));
  assert.notDeepEqual(ids(1), ids(1 + 2 ** 32));
});

const REFUSED: [keyof SamplerOptions, number[], string][] = [
  ["temperature", [-0.1, NaN, Infinity], "temperature"],
  ["topP", [0, -1, 1.01, NaN], "top-p"],
  ["topK", [0, 1.5, -1, NaN], "top-k"],
  ["seed", [-1, 0.5, 2 ** 53, NaN], "seed"],
];

Deno.test("createSampler() refuses values out of range by name", () => {
  for (const [option, values, name] of REFUSED) {
    for (const value of values) {
      assert.throws(() => createSampler({ [option]: value }), {
        name: "PalisadeError",
        kind: "usage",
        code: `sampler.${name}`,
        where: option,
        message: new RegExp(`^${option} .*not ${value}$`),
      });
    }
  }
});
