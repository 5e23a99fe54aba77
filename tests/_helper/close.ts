/** One measure of how far two float arrays lie apart. */
import assert from "node:assert/strict";

/**
 * Asserts that every `got[i]` lies within `tolerance` of `want[i]`, relative to the largest magnitude in `want`; NaN and
 * infinities must stand where they are wanted.
 */
export function assertClose(got: ArrayLike<number>, want: ArrayLike<number>, tolerance: number, what: string): void {
  assert.equal(got.length, want.length, `${what}: length`);
  let largest = 0;
  for (let i = 0; i < want.length; i++) if (Number.isFinite(want[i])) largest = Math.max(largest, Math.abs(want[i]));
  for (let i = 0; i < want.length; i++) {
    if (Object.is(got[i], want[i]) || got[i] === want[i]) continue;
    const off = Math.abs(got[i] - want[i]);
    assert.ok(off <= tolerance * largest, `${what}[${i}]: ${got[i]}, want ${want[i]}, off by ${off / largest}`);
  }
}
