/** Property tests: a fixed seed, printed; `PALISADE_RUNS` multiplies the number of runs. */
import process from "node:process";
import fc from "fast-check";

export const SEED = 20261013;

const factor = Number(process.env["PALISADE_RUNS"] ?? 1);
console.log(`fast-check seed ${SEED}, runs × ${factor}`);

/** Asserts that a property holds; `runs` is for the desk. */
export function holds<T>(property: fc.IProperty<T>, runs = 300): void {
  fc.assert(property, { seed: SEED, numRuns: Math.ceil(runs * factor) });
}

/** The same for a property that waits. */
export async function holdsAsync<T>(property: fc.IAsyncProperty<T>, runs = 300): Promise<void> {
  await fc.assert(property, { seed: SEED, numRuns: Math.ceil(runs * factor) });
}

/** Floats that break selectors: specials, ties, denormals, and plain ones. */
export const nastyFloat: fc.Arbitrary<number> = fc.oneof(
  fc.constantFrom(NaN, 0, -0, Infinity, -Infinity, 1e-45, -1e-45, 1e30, -1e30),
  fc.integer({ min: -3, max: 3 }),
  fc.float({ noNaN: true }),
);

/** A float32 array of exactly `length` nasty values. */
export function nastyArray(length: number): fc.Arbitrary<Float32Array> {
  return fc.array(nastyFloat, { minLength: length, maxLength: length }).map((values) => Float32Array.from(values));
}

/** A mask of exactly `length` zeros and ones. */
export function mask(length: number): fc.Arbitrary<Uint8Array> {
  return fc.array(fc.constantFrom(0, 0, 0, 1), { minLength: length, maxLength: length }).map((v) => Uint8Array.from(v));
}
