/** ‖row‖₂ of `[rows, headDim]`, keys or values, in doubles: `[rows]`. */
export function rowNorms(rows: Float32Array, headDim: number): Float64Array {
  return Float64Array.from({ length: rows.length / headDim }, (_, i) => {
    let sum = 0;
    for (let j = i * headDim; j < (i + 1) * headDim; j++) sum += rows[j] * rows[j];
    return Math.sqrt(sum);
  });
}
