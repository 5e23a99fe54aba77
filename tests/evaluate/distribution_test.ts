import assert from "node:assert/strict";
import { randomSource } from "../../core/measure/random.ts";
import { Distribution } from "../../evaluate/results/distribution.ts";

Deno.test("Distribution.divergence() is the Kullback–Leibler divergence of the softmaxes", () => {
  const logits = (...p: number[]) => Float32Array.from(p, (each) => Math.log(each) + 3);
  // 0.5·ln(0.5/0.25) + 0.5·ln(0.5/0.75)
  const expected = 0.5 * Math.log(2) + 0.5 * Math.log(2 / 3);
  const even = new Distribution(logits(0.5, 0.5));
  assert.ok(Math.abs(even.divergence(logits(0.25, 0.75)) - expected) < 1e-6);
  assert.throws(() => even.divergence(logits(1, 1, 1)), RangeError);
});

Deno.test("Distribution.divergence() of a whole vocabulary agrees with plain doubles", () => {
  const random = randomSource(11), tokens = 50_000;
  const p = Float32Array.from({ length: tokens }, () => 12 * random() - 20);
  p[77] = 22;
  p[78] = 21;
  for (const step of [0, 1e-3, 0.1, 3]) {
    const q = p.map((logit) => logit + step * (random() - 0.5));
    const expected = plainDivergence(p, q);
    const found = new Distribution(p).divergence(q);
    assert.ok(Math.abs(found - expected) <= 1e-6 * expected + 1e-10, `${found} nats, not ${expected}`);
  }
});

function plainDivergence(p: Float32Array, q: Float32Array): number {
  const logarithms = (logits: Float32Array) => {
    const doubles = Array.from(logits), top = Math.max(...doubles);
    const sum = doubles.reduce((all, logit) => all + Math.exp(logit - top), 0);
    return doubles.map((logit) => logit - top - Math.log(sum));
  };
  const [lnP, lnQ] = [logarithms(p), logarithms(q)];
  return lnP.reduce((sum, ln, i) => sum + Math.exp(ln) * (ln - lnQ[i]), 0);
}
