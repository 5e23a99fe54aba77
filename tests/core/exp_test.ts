import assert from "node:assert/strict";
import fc from "fast-check";
import { exp, ln } from "../../core/measure/exp.ts";
import { holds } from "../_helper/property.ts";

/** Distance in units in the last place, for finite doubles of one sign. */
function ulps(a: number, b: number): number {
  const bits = new BigInt64Array(Float64Array.of(a, b).buffer);
  return Math.abs(Number(bits[0] - bits[1]));
}

function hex(value: number): string {
  return new BigUint64Array(Float64Array.of(value).buffer)[0].toString(16);
}

// Engines differ by 1 ulp from the true value themselves, so the bound is 2 + 1.
Deno.test("exp() stays within 3 ulp of Math.exp", () => {
  holds(
    fc.property(fc.double({ min: -745, max: 709, noNaN: true }), (x) => {
      assert.ok(ulps(exp(x), Math.exp(x)) <= 3, `${x}`);
    }),
    5000,
  );
});

Deno.test("ln() stays within 3 ulp of Math.log", () => {
  holds(
    fc.property(fc.double({ min: 5e-324, max: Number.MAX_VALUE, noNaN: true }), (x) => {
      assert.ok(ulps(ln(x), Math.log(x)) <= 3, `${x}`);
    }),
    5000,
  );
  for (let x = 0.5; x < 2; x += 1 / 512) assert.ok(x === 1 || ulps(ln(x), Math.log(x)) <= 3, `${x}`);
});

Deno.test("exp() and ln() know the ends of their ranges", () => {
  assert.deepEqual([exp(0), exp(-Infinity), exp(-746), exp(Infinity), exp(710)], [1, 0, 0, Infinity, Infinity]);
  assert.deepEqual([ln(1), ln(0), ln(-0), ln(Infinity)], [0, -Infinity, -Infinity, Infinity]);
  assert.ok([exp(NaN), ln(NaN), ln(-1)].every(Number.isNaN));
  assert.equal(exp(-745), 5e-324);
});

Deno.test("exp() and ln() give these very bits in every runtime", () => {
  assert.deepEqual([1, -1, 0.1, -20.5, 300.25, -708.4].map((x) => hex(exp(x))), EXP_BITS);
  assert.deepEqual([2, 3, 0.1, 1.0000001, 1e300, 5e-324].map((x) => hex(ln(x))), LN_BITS);
});

const EXP_BITS = [
  "4005bf0a8b14576a",
  "3fd78b56362cef38",
  "3ff1aec7b35a00d4",
  "3e157a3afeed00ac",
  "5b01fda3eaeb3d0e",
  "ff15b469edf89",
];
const LN_BITS = [
  "3fe62e42fefa39ef",
  "3ff193ea7aad030b",
  "c0026bb1bbb55515",
  "3e7ad7f2847b6491",
  "4085963447f87fb5",
  "c0874385446d71c3",
];
