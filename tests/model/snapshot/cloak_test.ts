import assert from "node:assert/strict";
import { refusalOf } from "../../_helper/refusal.ts";
import fc from "fast-check";
import type { CopiedRows } from "../../../core/backend/interface.ts";
import { rotateRows } from "../../../core/measure/rotation.ts";
import { cloakOf, maskedIds, newCloak } from "../../../model/snapshot/cloak/file.ts";
import { BLOCK, Cloak, newSalt } from "../../../model/snapshot/cloak/cloak.ts";
import {
  keyMaterial,
  keySecret,
  passphraseSecret,
  SCRYPT_COST,
  type Secret,
} from "../../../model/snapshot/seal/key.ts";
import { SecretSource } from "../../../model/snapshot/cloak/secrets.ts";
import { holdsAsync } from "../../_helper/property.ts";

const KEY: Secret = { kind: "key", bytes: new Uint8Array(32).fill(7) }, ZERO = keySecret(new Uint8Array(32));
const SALT = new Uint8Array(32).fill(8);

function rowsOf(count: number, headDim: number, seed = 1, size = 1): CopiedRows {
  let state = seed;
  const next = () => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 31 - 1) * size;
  const side = () => Float32Array.from({ length: count * headDim }, next);
  return { keys: side(), values: side() };
}

function worst(a: Float32Array, b: Float32Array): number {
  assert.equal(a.length, b.length);
  return a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);
}

Deno.test("cloaked rows of any count, width and size come back in their order, to 1e-6 of the largest", async () => {
  const cloak = await Cloak.of(KEY, SALT);
  const shape = fc.record({
    count: fc.nat(50),
    half: fc.integer({ min: 1, max: 40 }),
    seed: fc.nat(),
    size: fc.constantFrom(1e-20, 1e-3, 1, 300, 1e30),
  });
  await holdsAsync(
    fc.asyncProperty(shape, async ({ count, half, seed, size }) => {
      const rows = rowsOf(count, 2 * half, seed, size), before = structuredClone(rows);
      const cloaked = await cloak.cover(3, 1, rows, 2 * half);
      const back = await cloak.uncover(3, 1, cloaked, 2 * half);
      assert.deepEqual(rows, before, "the rows themselves stay");
      for (const side of ["keys", "values"] as const) {
        assert.equal(cloaked[side].length, Math.ceil(count / BLOCK) * BLOCK * 2 * half);
        assert.ok(worst(back[side], rows[side]) <= 1e-6 * size, `${worst(back[side], rows[side])} of ${size}`);
      }
    }),
    200,
  );
});

Deno.test("one row far beyond the others comes back too, and so do zeros", async () => {
  const cloak = await Cloak.of(KEY, SALT), rows = rowsOf(20, 8);
  rows.keys.fill(-1e6, 40, 48);
  rows.values.fill(0);
  const back = await cloak.uncover(0, 0, await cloak.cover(0, 0, rows, 8), 8);
  assert.ok(worst(back.keys, rows.keys) <= 1);
  assert.ok(worst(back.values, rows.values) <= 1e-6);
});

Deno.test("what is cloaked says nothing plain: no row, no order, no beacon stands out", async () => {
  const count = 64, headDim = 32, rows = rowsOf(count, headDim), cloak = await Cloak.of(KEY, SALT);
  const { keys } = await cloak.cover(0, 0, rows, headDim);
  const row = (of: Float32Array, i: number) => of.subarray(i * headDim, (i + 1) * headDim);
  const cosine = (a: Float32Array, b: Float32Array) => {
    let [ab, aa, bb] = [0, 0, 0];
    for (let i = 0; i < a.length; i++) [ab, aa, bb] = [ab + a[i] * b[i], aa + a[i] ** 2, bb + b[i] ** 2];
    return ab / Math.sqrt(aa * bb);
  };
  for (let i = 0; i < count; i++) {
    const best = Math.max(
      ...Array.from({ length: count }, (_, j) => Math.abs(cosine(row(keys, i), row(rows.keys, j)))),
    );
    assert.ok(best < 0.8, `row ${i}: ${best}`);
  }
  // The beacon is spread over the block: every row is larger than any plain one.
  const norms = Array.from({ length: count }, (_, i) => Math.hypot(...row(keys, i)));
  assert.ok(Math.max(...norms) > 5);
});

Deno.test("other keys, salts, layers, heads and sides have other secrets; the same have the same", async () => {
  const rows = rowsOf(16, 8);
  const of = async (key: Secret, salt: Uint8Array<ArrayBuffer>, layer: number, head: number) =>
    await (await Cloak.of(key, salt)).cover(layer, head, rows, 8);
  const first = await of(KEY, SALT, 0, 0);
  assert.deepEqual(await of(KEY, SALT, 0, 0), first);
  const others = [
    of(ZERO, SALT, 0, 0),
    of(KEY, newSalt(), 0, 0),
    of(KEY, SALT, 1, 0),
    of(KEY, SALT, 0, 1),
  ];
  for (const other of await Promise.all(others)) {
    assert.ok(worst(other.keys, first.keys) > 0.5);
    assert.ok(worst(other.values, first.values) > 0.5);
  }
  const same = rowsOf(16, 8).keys,
    { keys, values } = await (await Cloak.of(KEY, SALT)).cover(0, 0, { keys: same, values: same }, 8);
  assert.ok(worst(keys, values) > 0.5);
});

Deno.test("a wrong key is told by its check, which the right one passes", async () => {
  const cloak = await Cloak.of(KEY, SALT), { check } = cloak;
  assert.equal(check.length, 16);
  assert.ok((await Cloak.of(KEY, SALT)).isKeyOf(check));
  assert.ok(!(await Cloak.of(ZERO, SALT)).isKeyOf(check));
  assert.ok(!(await Cloak.of(KEY, newSalt())).isKeyOf(check));
  assert.ok(!cloak.isKeyOf(check.slice(1)));
  check.fill(0);
  assert.ok(!cloak.isKeyOf(check), "the copy that was given out is not its own");
});

Deno.test("a passphrase cloaks as well, and bytes that are no rows are masked and come back", async () => {
  const cost = { logN: 4, r: 1, p: 1 }, phrase = passphraseSecret("seventeen stakes");
  const cloak = await Cloak.of(phrase, SALT, cost), bytes = new Uint8Array(1000);
  assert.ok(!(await Cloak.of(passphraseSecret("sixteen stakes"), SALT, cost)).isKeyOf(cloak.check));
  const masked = await cloak.mask(0, bytes);
  assert.ok(masked.filter((byte) => byte === 0).length < 20);
  assert.notDeepEqual(await cloak.mask(1, bytes), masked);
  assert.deepEqual(await cloak.mask(0, masked), bytes);
});

Deno.test("the secrets are what the paper asks for", async () => {
  const { keys, values, order, lit, filling } =
    await (await SecretSource.of(await keyMaterial(KEY, SALT, SCRYPT_COST), SALT)).head(0, 0, 200, 64);
  for (const { mix, cos, sin, beacon } of [keys, values]) {
    for (let i = 0; i < BLOCK; i++) {
      for (let j = 0; j < BLOCK; j++) {
        let product = 0;
        for (let k = 0; k < BLOCK; k++) product += mix[i * BLOCK + k] * mix[j * BLOCK + k];
        assert.ok(Math.abs(product - (i === j ? 1 : 0)) < 1e-13, "S is orthogonal");
      }
    }
    cos.forEach((c, i) => assert.ok(Math.abs(c * c + sin[i] * sin[i] - 1) < 1e-13));
    assert.ok(beacon.length === 64 && beacon.every((a) => a >= 3 && a < 4));
  }
  assert.equal(lit.length, 13);
  for (let b = 0; b < 13; b++) {
    assert.deepEqual([...order.subarray(b * BLOCK, (b + 1) * BLOCK)].sort((x, y) => x - y), [...Array(BLOCK).keys()]);
  }
  assert.notDeepEqual(order.subarray(0, BLOCK), order.subarray(BLOCK, 2 * BLOCK));
  assert.ok(new Set(lit).size > 4);
  assert.ok(filling.every((x) => Math.abs(x) <= 0.25));
});

Deno.test("turning by M commutes with the rotation of positions, as the paper wants", async () => {
  const headDim = 16, frequencies = Float64Array.from({ length: 8 }, (_, i) => 1 / (i + 1));
  const rotation = { pairs: "half", rotated: headDim, frequencies } as const, moves = new Int32Array(BLOCK).fill(5);
  const cloak = await Cloak.of(KEY, SALT), rows = rowsOf(BLOCK, headDim);
  // With a whole block and no shuffle undone, S·Π mixes rows of one move alike: so the two ways differ by A alone.
  const moved = rows.keys.slice();
  rotateRows(moved, headDim, moves, rotation);
  const cloaked = await cloak.cover(0, 0, rows, headDim), after = cloaked.keys.slice();
  const unlit = (keys: Float32Array, zero: Float32Array) => keys.map((x, i) => x - zero[i]);
  const tiny = { keys: new Float32Array(rows.keys.length), values: rows.values };
  const beacon = (await cloak.cover(0, 0, tiny, headDim)).keys.map((x) => x * cloaked.largest[0]);
  const turned = unlit(after, beacon);
  rotateRows(turned, headDim, moves, rotation);
  const other = await cloak.cover(0, 0, { keys: moved, values: rows.values }, headDim);
  const wanted = unlit(other.keys, beacon.map((x) => x / cloaked.largest[0] * other.largest[0]));
  assert.ok(worst(turned, wanted) < 1e-5, `${worst(turned, wanted)}`);
});

Deno.test("what can't be cloaked is refused", async () => {
  const cloak = await Cloak.of(KEY, SALT);
  for (const bad of [NaN, Infinity, -1e37]) {
    const rows = rowsOf(3, 4);
    rows.values[7] = bad;
    await assert.rejects(cloak.cover(0, 0, rows, 4), { code: "cloak.range" });
  }
  await assert.rejects(cloak.cover(0, 0, rowsOf(3, 5), 5), RangeError);
  await assert.rejects(cloak.cover(0, 0, { keys: new Float32Array(8), values: new Float32Array(4) }, 4), RangeError);
  const cloaked = await cloak.cover(0, 0, rowsOf(3, 4), 4);
  await assert.rejects(cloak.uncover(0, 0, { ...cloaked, rows: 17 }, 4), RangeError);
  await assert.rejects(cloak.uncover(0, 0, { ...cloaked, values: new Float32Array(0) }, 4), RangeError);
  await assert.rejects(Cloak.of(KEY, SALT.slice(1)), RangeError);
});

Deno.test("a file's cloak opens by its secret alone, and masks what is no rows", async () => {
  const { cloak, metadata } = await newCloak(KEY), there = new Map(Object.entries(metadata)), ids = [0, 7, 49151];
  const again = await cloakOf(there, "a", KEY), hidden = await maskedIds(cloak, ids);
  assert.notDeepEqual(hidden, ids);
  assert.deepEqual(await maskedIds(again, hidden), ids);
  assert.deepEqual(await maskedIds(undefined, ids), ids);
  assert.equal(await refusalOf(cloakOf(there, "a")), "cloak.secret header");
  assert.equal(await refusalOf(cloakOf(there, "a", ZERO)), "cloak.key header");
  assert.equal(await refusalOf(cloakOf(there, "a", passphraseSecret("a"))), "cloak.secret-kind header");
  const phrase = passphraseSecret("a"), worded = await newCloak(phrase, { logN: 4, r: 1, p: 1 });
  assert.ok(await cloakOf(new Map(Object.entries(worded.metadata)), "a", phrase));
  assert.equal(
    await refusalOf(cloakOf(new Map(Object.entries(worded.metadata)), "a", KEY)),
    "cloak.secret-kind header",
  );
  const other = passphraseSecret("b");
  assert.equal(await refusalOf(cloakOf(new Map(Object.entries(worded.metadata)), "a", other)), "cloak.key header");
});

Deno.test("what a file says of its cloak is refused unless it has the form, whatever it is", async () => {
  const good = { version: 2, kind: "key", cost: { logN: 17, r: 8, p: 1 }, salt: "0".repeat(64), check: "0".repeat(32) };
  const of = (record: unknown) => refusalOf(cloakOf(new Map([["cloak", JSON.stringify(record)]]), "a", KEY));
  assert.equal(await of(good), "cloak.key header");
  assert.equal(await refusalOf(cloakOf(new Map(), "a")), "not refused");
  const bad = [{ version: 1 }, { kind: "none" }, { cost: undefined }, { cost: { logN: 25, r: 8, p: 1 } }, {
    salt: "0",
  }];
  for (const change of [...bad, { salt: 0 }, { check: "x".repeat(32) }, { cost: { logN: 0.5, r: 1, p: 1 } }]) {
    assert.equal(await of({ ...good, ...change }), "cloak.form header", JSON.stringify(change));
  }
  for (const text of ["", "{", "null", "7", "[]", '"x"']) {
    assert.equal(await refusalOf(cloakOf(new Map([["cloak", text]]), "a", KEY)), "cloak.form header", text);
  }
  const anything = fc.record({
    version: fc.constantFrom(2, 2, 1),
    kind: fc.constantFrom("key", "key", "passphrase", 1),
    cost: fc.oneof(fc.constant(good.cost), fc.anything()),
    salt: fc.oneof(fc.constant(good.salt), fc.string(), fc.anything()),
    check: fc.oneof(fc.constant(good.check), fc.string()),
  });
  await holdsAsync(fc.asyncProperty(anything, async (record) => assert.match(await of(record), /^cloak\./)), 2000);
});
