/**
 * Average pooling of a row, as `avg_pool1d` in torch: stride 1, zero padding `(kernel − 1)/2`, divisor always `kernel`.
 * Writes `to`; both arrays hold `length` values. `kernel`: odd, ≥ 1.
 */
export function poolRow(from: ArrayLike<number>, to: Float64Array | Float32Array, kernel: number): void {
  const length = to.length, reach = (kernel - 1) / 2;
  for (let i = 0; i < length; i++) {
    let sum = 0;
    for (let j = Math.max(0, i - reach); j <= i + reach && j < length; j++) sum += from[j];
    to[i] = sum / kernel;
  }
}

/** {@link poolRow} of each head's row: `[kvHeads, N]` → `[kvHeads, N]`. */
export function poolHeads(rows: Float32Array, kvHeads: number, kernel: number): Float32Array {
  const pooled = new Float32Array(rows.length), prefixLength = rows.length / kvHeads;
  for (let head = 0; head < kvHeads; head++) {
    const start = head * prefixLength, end = start + prefixLength;
    poolRow(rows.subarray(start, end), pooled.subarray(start, end), kernel);
  }
  return pooled;
}
