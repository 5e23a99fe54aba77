let table: Float32Array | undefined;

/** The float32 values of all 65536 float16 bit patterns, built at the first call (256 KiB). */
export function float16Table(): Float32Array {
  return table ??= Float32Array.from({ length: 65536 }, (_, bits) => float16(bits));
}

/** Value of an IEEE 754 binary16 bit pattern, exact in float32. */
function float16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}
