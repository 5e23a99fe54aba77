/**
 * Exponential and logarithm from +, −, × and ÷ alone.
 *
 * `Math.exp` and `Math.log` differ in the last bit between JavaScript engines; a kept set must not. Both functions
 * here stay within 2 ulp of the true value and give the same bits wherever doubles are IEEE 754.
 */

/** ln 2 in two parts; the first has 21 trailing zero bits, so that k · LN2_HIGH is exact for |k| < 2¹¹. */
const LN2_HIGH = 0x162e42fee00000 / 2 ** 53;
const LN2_LOW = 1.9082149292705877e-10;
const INVERSE_LN2 = 1.4426950408889634;

/** 1 / n! for n = 13 … 0: the Taylor series of eˣ on |x| ≤ ln 2 / 2 leaves out less than 2⁻⁵⁷. */
const FACTORIALS = Array.from({ length: 14 }, (_, i) => 13 - i).map((n) => {
  let product = 1;
  for (let i = 2; i <= n; i++) product *= i;
  return 1 / product;
});

/** 2ᵏ for k = −1074 … 1023, exact. */
const POWERS = new Float64Array(1074 + 1024);
for (let k = 0, power = 1; k < 1024; k++, power *= 2) POWERS[1074 + k] = power;
for (let k = 0, power = 1; k <= 1074; k++, power /= 2) POWERS[1074 - k] = power;

/** eˣ. NaN → NaN, −∞ → 0, above 709.79 → ∞, below −745.14 → 0. */
export function exp(x: number): number {
  if (!(x > -745.2)) return x !== x ? x : 0;
  if (x > 709.8) return Infinity;
  const k = Math.floor(x * INVERSE_LN2 + 0.5);
  const r = (x - k * LN2_HIGH) - k * LN2_LOW;
  let sum = FACTORIALS[0];
  for (let i = 1; i < 14; i++) sum = sum * r + FACTORIALS[i];
  // In two steps where 2ᵏ alone would be too small or too large for a double.
  const half = k < -1000 ? -60 : k > 1000 ? 60 : 0;
  return sum * POWERS[1074 + k - half] * POWERS[1074 + half];
}

const bits = new DataView(new ArrayBuffer(8));

/** Natural logarithm. Negative or NaN → NaN, 0 → −∞, ∞ → ∞. */
export function ln(x: number): number {
  if (!(x > 0)) return x === 0 ? -Infinity : NaN;
  if (x === Infinity) return x;
  let k = 0;
  if (x < 2.2250738585072014e-308) { // subnormal: scale up first
    x *= 2 ** 54;
    k = -54;
  }
  bits.setFloat64(0, x);
  const high = bits.getUint32(0);
  k += (high >>> 20) - 1023;
  bits.setUint32(0, (high & 0xfffff) | (1023 << 20));
  let m = bits.getFloat64(0); // 1 ≤ m < 2
  if (m > 1.4142135623730951) {
    m /= 2;
    k++;
  }
  // ln m = 2·artanh(s), s = (m − 1)/(m + 1), |s| ≤ 0.1716: eleven terms leave out less than 2⁻⁵⁸.
  const s = (m - 1) / (m + 1), square = s * s;
  let tail = 1 / 23;
  for (let n = 21; n >= 3; n -= 2) tail = tail * square + 1 / n;
  return k * LN2_HIGH + (2 * s + (2 * s * square * tail + k * LN2_LOW));
}
