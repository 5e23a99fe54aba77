/** Repacked blocks say the same numbers as the file: each form is unpacked by its definition and compared. */
import assert from "node:assert/strict";
import { type BlockWeights, inHalves, withZeroPoints } from "../../model/dense/ort/blocks.ts";
import { dequantise, TENSOR_TYPES, toBlocks, typeNamed } from "../../model/file/tensor_types.ts";

const TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K"] as const;
const ROWS = 3;
/** Columns, of 512 random bytes or so per row. */
const COLUMNS = 512;

/** Rows of a type: random bytes (xorshift32, fixed seed) with the float16 fields made finite and of mixed sign. */
function randomRows(type: typeof TYPES[number]): Uint8Array {
  const { block, bytes } = typeNamed(type);
  let state = 99;
  const raw = Uint8Array.from({ length: ROWS * COLUMNS / block * bytes }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state & 255;
  });
  const fields = { Q4_0: [0], Q4_1: [0, 2], Q5_0: [0], Q8_0: [0], Q4_K: [0, 2], Q6_K: [208] }[type];
  for (let at = 0; at < raw.length; at += bytes) {
    // Clears the exponent's highest bit: magnitudes below 2.
    for (const field of fields) raw[at + field + 1] &= 0xbf;
  }
  return raw;
}

/** `scale·(q − zero) + offset`, `[rows, columns]`, in double precision. */
function unpack(weights: BlockWeights & { readonly zeroPoints?: Float32Array }): number[] {
  const { bits, block, quants, scales, offsets, zeroPoints } = weights;
  return Array.from({ length: scales.length * block }, (_, i) => {
    const b = Math.floor(i / block);
    const q = bits === 8 ? quants[i] : quants[i >> 1] >> (i & 1) * 4 & 15;
    const zero = zeroPoints ? zeroPoints[b] : 2 ** (bits - 1);
    return scales[b] * (q - zero) + (zeroPoints ? 0 : offsets?.[b] ?? 0);
  });
}

/** Equal up to the rounding of an offset or zero point: 2^-20 of the largest magnitude in the rows. */
function assertSame(actual: ArrayLike<number>, expected: Float32Array): void {
  assert.equal(actual.length, expected.length);
  const scale = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  expected.forEach((value, i) => {
    assert.ok(Math.abs(actual[i] - value) <= scale * 2 ** -20, `element ${i}: ${actual[i]}, not ${value}`);
  });
}

for (const type of TYPES) {
  Deno.test(`toBlocks() keeps every weight of ${type}, also as halves and with zero points`, () => {
    const raw = randomRows(type);
    const expected = new Float32Array(ROWS * COLUMNS);
    dequantise(typeNamed(type), raw, expected);
    const blocks = toBlocks(typeNamed(type), raw);
    assertSame(unpack(blocks), expected);
    assertSame(unpack(withZeroPoints(blocks)), expected);
    if (blocks.bits === 8) assertSame(sumOfHalves(inHalves(blocks, ROWS)), expected);
  });
}

/** The weights that multiplying the input twice over amounts to. */
function sumOfHalves({ offsets, ...halves }: ReturnType<typeof inHalves>): number[] {
  const wide = unpack(halves);
  return Array.from({ length: ROWS * COLUMNS }, (_, i) => {
    const at = Math.floor(i / COLUMNS) * 2 * COLUMNS + i % COLUMNS;
    return wide[at] + wide[at + COLUMNS] + offsets[Math.floor(i / halves.block)];
  });
}

Deno.test("withZeroPoints() keeps blocks whose scale is 0", () => {
  const raw = new Uint8Array(20);
  // d = 0, m = 1.5, all q = 15: every weight is 1.5.
  raw.set([0, 0, 0, 0x3e]);
  raw.fill(255, 4);
  assert.deepEqual(unpack(withZeroPoints(toBlocks(typeNamed("Q4_1"), raw))), new Array(32).fill(1.5));
});

Deno.test("every type that is read has blocks, but the floating ones", () => {
  const names = [...TENSOR_TYPES.values()].filter(({ blocks }) => blocks).map(({ name }) => name);
  assert.deepEqual(names, [...TYPES]);
  assert.ok(TYPES.every((type) => typeNamed(type).decode));
});

Deno.test("toBlocks() refuses other types and broken blocks", () => {
  assert.throws(() => toBlocks(typeNamed("F16"), new Uint8Array(64)), RangeError);
  assert.throws(() => toBlocks(typeNamed("Q4_0"), new Uint8Array(17)), RangeError);
});
