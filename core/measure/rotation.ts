/** Turning keys to other positions. RoPE rotates each pair of a key by position × frequency, so a move is a rotation. */

/** How keys turn with their position. The factor some RoPE variants put on top is no part of it: a move leaves it. */
export interface KeyRotation {
  /** `interleaved`: pairs (2j, 2j+1); `half`: pairs (j, j + rotated/2). */
  readonly pairs: "interleaved" | "half";
  /** Dimensions that are rotated, even, ≤ headDim. */
  readonly rotated: number;
  /** Angle per position of each pair, radians, `[rotated / 2]`. */
  readonly frequencies: Float64Array;
}

/**
 * Turns row `i` of `keys`, `[rows, headDim]`, in place by `moves[i]` positions (new − old, any sign), `[rows]`. Angles and
 * products are float64.
 * @throws RangeError when a size does not fit.
 */
export function rotateRows(keys: Float32Array, headDim: number, moves: Int32Array, rotation: KeyRotation): void {
  const { rotated, frequencies } = rotation;
  if (keys.length !== moves.length * headDim) {
    throw new RangeError(`Cannot turn ${keys.length} floats: want ${moves.length} rows of ${headDim}`);
  }
  checkRotation(headDim, rotation);
  const step = rotation.pairs === "interleaved" ? 2 : 1;
  const partner = rotation.pairs === "interleaved" ? 1 : rotated / 2;
  const cos = new Float64Array(rotated / 2).fill(1), sin = new Float64Array(rotated / 2);
  let turned = 0;
  moves.forEach((move, row) => {
    if (move === 0) return;
    // Rows between two evicted ones all move alike.
    if (move !== turned) {
      frequencies.forEach((frequency, j) => {
        cos[j] = Math.cos(move * frequency);
        sin[j] = Math.sin(move * frequency);
      });
      turned = move;
    }
    for (let j = 0; j < rotated / 2; j++) {
      const a = row * headDim + j * step, b = a + partner;
      const [xa, xb] = [keys[a], keys[b]];
      keys[a] = xa * cos[j] - xb * sin[j];
      keys[b] = xb * cos[j] + xa * sin[j];
    }
  });
}

/** @throws RangeError when the rotation does not fit keys of `headDim`. */
export function checkRotation(headDim: number, { rotated, frequencies }: KeyRotation): void {
  if (rotated % 2 !== 0 || rotated > headDim || frequencies.length !== rotated / 2) {
    throw new RangeError(`Cannot turn ${rotated} of ${headDim} dimensions by ${frequencies.length} frequencies`);
  }
}
