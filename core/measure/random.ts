/**
 * Seeded random numbers: xoshiro128** (Blackman and Vigna 2018, https://prng.di.unimi.it), seeded by splitmix32.
 * 32-bit integer arithmetic only, so the same stream in every runtime. Not for secrets.
 */

/** A stream of doubles in [0, 1), 53 random bits each. `seed`: an integer; its low 53 bits count. */
export function randomSource(seed: number): () => number {
  if (!Number.isSafeInteger(seed)) throw new RangeError(`Cannot seed with ${seed}: want an integer`);
  const mix = splitmix(seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0);
  let a = mix(), b = mix(), c = mix(), d = mix();
  const next = () => {
    const result = Math.imul(rotate(Math.imul(b, 5), 7), 9) >>> 0;
    const shifted = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= shifted;
    d = rotate(d, 11);
    return result;
  };
  return () => ((next() >>> 5) * 2 ** 26 + (next() >>> 6)) / 2 ** 53;
}

function rotate(x: number, by: number): number {
  return (x << by) | (x >>> (32 - by));
}

/** Spreads a seed over 32-bit words. */
function splitmix(low: number, high: number): () => number {
  let state = low ^ Math.imul(high, 0x9e3779b1);
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return z ^ (z >>> 15);
  };
}
