/** float16 patterns, bit for bit as the kernels make them. */
const FLOAT = new Float32Array(1);
const BITS = new Uint32Array(FLOAT.buffer);

/**
 * The float16 pattern next to a finite |x| < 65520, ties to even. Normal halves: the mantissa loses 13 bits, with a
 * carry; subnormal ones: adding ½ leaves multiples of 2⁻²⁴ in the low bits.
 */
export function toHalf(x: number): number {
  FLOAT[0] = x;
  const sign = BITS[0] >>> 16 & 0x8000, magnitude = BITS[0] & 0x7fffffff;
  if (magnitude >= 0x38800000) return sign | magnitude - 0x38000000 + 0xfff + (magnitude >>> 13 & 1) >>> 13;
  FLOAT[0] = Math.abs(x) + 0.5;
  return sign | BITS[0] - 0x3f000000;
}

/** Exact. */
export function fromHalf(half: number): number {
  const exponent = half >>> 10 & 31, mantissa = half & 1023;
  const magnitude = exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}
