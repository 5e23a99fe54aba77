/** The oracle of the kernels' storage: float16 against the runtime's own, int8 against its definition. */
import assert from "node:assert/strict";
import { StoredRows } from "../../core/backend/stored_rows.ts";
import { entryBytes, type RowType, storable } from "../../core/cache/entry_type.ts";
import { randomSource } from "../../core/measure/random.ts";

function roundTrip(row: Float32Array, type: RowType): Float32Array {
  const rows = new StoredRows(row.length, type, "keys");
  rows.resize(1, 0);
  rows.set(0, row);
  return rows.floats(1);
}

/** Floats of every size that float16 has. */
function spread(count: number): Float32Array {
  const next = randomSource(7);
  return Float32Array.from({ length: count }, () => (next() < 0.5 ? -1 : 1) * 2 ** (next() * 42 - 26));
}

Deno.test("StoredRows rounds float16 as DataView does, ties to even", () => {
  const ties = [2049, 2051, 1 + 2 ** -11, 1 + 3 * 2 ** -11, 2 ** -25, 3 * 2 ** -25, 2 ** -14 - 2 ** -26, 65519.99, 0];
  const all = Float32Array.from([...ties, ...ties.map((x) => -x), ...spread(20000)]);
  const view = new DataView(new ArrayBuffer(2)) as DataView & {
    setFloat16?(at: number, x: number): void;
    getFloat16(at: number): number;
  };
  const got = roundTrip(all, "f16");
  all.forEach((x, i) => {
    const [exponent] = [Math.max(-14, Math.floor(Math.log2(Math.abs(x) || 1)))];
    assert.ok(Math.abs(got[i] - x) <= 2 ** (exponent - 11), `${x} as ${got[i]}`);
    if (!view.setFloat16) return;
    view.setFloat16(0, x);
    assert.ok(Object.is(got[i], view.getFloat16(0)), `${x} as ${got[i]}`);
  });
});

Deno.test("StoredRows keeps int8 rows within half a step, and stores again what it gave back", () => {
  const next = randomSource(3);
  for (let n = 0; n < 500; n++) {
    const row = Float32Array.from({ length: 65 }, () => (next() * 2 - 1) * 2 ** ((n - 250) / 2));
    const most = row.reduce((a, x) => Math.max(a, Math.abs(x)), 0), once = roundTrip(row, "int8");
    row.forEach((x, i) => assert.ok(Math.abs(x - once[i]) <= most / 253.9, `${x} as ${once[i]}`));
    assert.deepEqual(roundTrip(once, "int8"), once);
  }
  assert.deepEqual(roundTrip(new Float32Array(3), "int8"), new Float32Array(3));
  assert.deepEqual(roundTrip(Float32Array.of(1e-45, 0, -1e-45), "int8"), new Float32Array(3));
});

Deno.test("storable() refuses what a type would have to bend, and entryBytes() counts scales", () => {
  for (
    const [x, f16, int8] of [[65519, true, true], [65520, false, true], [NaN, false, false], [
      -Infinity,
      false,
      false,
    ]] as const
  ) {
    assert.deepEqual([storable(Float32Array.of(0, x), "f16"), storable(Float32Array.of(x), "int8")], [f16, int8]);
    assert.ok(storable(Float32Array.of(x), "f32"));
  }
  assert.deepEqual([entryBytes(64, "f32"), entryBytes(64, "f16"), entryBytes(64, "int8")], [512, 256, 136]);
});
