/**
 * Cosines and sines from +, −, × and ÷ alone. `Math.cos` differs in the last bit between JavaScript engines; a kept set
 * must not.
 */

/** The point on the unit circle at some angle. */
export interface CosSin {
  readonly cos: number;
  readonly sin: number;
}

/** 1 / n! for n = 0 … 21: what the Taylor series leave out for |angle| ≤ 1 is below 2⁻⁵³. */
const INVERSE_FACTORIALS = Float64Array.from({ length: 22 });
INVERSE_FACTORIALS[0] = 1;
for (let n = 1, product = 1; n < 22; n++) INVERSE_FACTORIALS[n] = 1 / (product *= n);

/** The turn by `angle` radians. Within 1e−15 for |angle| ≤ 1; larger angles are halved and doubled again. */
export function cosSin(angle: number): CosSin {
  if (Math.abs(angle) > 1) {
    const half = cosSin(angle / 2);
    return sumOfAngles(half, half);
  }
  const square = angle * angle;
  let cos = 0, sin = 0;
  for (let n = 20; n >= 0; n -= 2) {
    cos = INVERSE_FACTORIALS[n] - square * cos;
    sin = INVERSE_FACTORIALS[n + 1] - square * sin;
  }
  return { cos, sin: sin * angle };
}

/** One turn after the other. */
export function sumOfAngles(a: CosSin, b: CosSin): CosSin {
  return { cos: a.cos * b.cos - a.sin * b.sin, sin: a.sin * b.cos + a.cos * b.sin };
}

/** `count` turns by `position · angle`, from position `first` on; the error grows by 1e−16 a position. */
export function* cosSinsFrom(angle: number, first: number, count: number): Generator<CosSin> {
  const step = cosSin(angle);
  let turn: CosSin = { cos: 1, sin: 0 };
  for (let position = 0; position < first + count; position++, turn = sumOfAngles(turn, step)) {
    if (position >= first) yield turn;
  }
}
