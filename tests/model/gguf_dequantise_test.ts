import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { randomSource } from "../../core/measure/random.ts";
import { dequantise, readableTypes, typeNamed } from "../../model/file/tensor_types.ts";

interface Blocks {
  /** Base64. */
  readonly bytes: string;
  /** Base64 of little-endian float32. */
  readonly floats: string;
}

const QUANTS: Record<string, Blocks> = JSON.parse(
  await readFile(new URL("../data/quants.json", import.meta.url), "utf8"),
);

for (const type of readableTypes()) {
  Deno.test(`dequantise() of ${type} equals PyPI gguf bit for bit`, () => {
    const bytes = Uint8Array.from(atob(QUANTS[type].bytes), (c) => c.charCodeAt(0));
    const expected = Uint8Array.from(atob(QUANTS[type].floats), (c) => c.charCodeAt(0));
    const out = new Float32Array(expected.length / 4);
    dequantise(typeNamed(type), bytes, out);
    assert.ok(out.length >= 1024);
    assert.deepEqual(new Uint32Array(out.buffer), new Uint32Array(expected.buffer));
  });

  Deno.test(`dequantise() of ${type} takes bytes and output at any offset of their buffers`, () => {
    const { block, bytes: size } = typeNamed(type);
    const bytes = Uint8Array.from(atob(QUANTS[type].bytes), (c) => c.charCodeAt(0)).subarray(0, 3 * size);
    const shifted = new Uint8Array(bytes.length + 1);
    shifted.set(bytes, 1);
    const alone = new Float32Array(3 * block);
    const inside = new Float32Array(3 * block + 2).fill(7);
    dequantise(typeNamed(type), bytes, alone);
    dequantise(typeNamed(type), shifted.subarray(1), inside.subarray(1, -1));
    assert.deepEqual([...inside], [7, ...alone, 7]);
  });
}

Deno.test("dequantise() gives the infinities and NaNs of float16", () => {
  const out = new Float32Array(4);
  dequantise(typeNamed("F16"), Uint8Array.of(0x00, 0x7c, 0x00, 0xfc, 0x01, 0x7c, 0x00, 0xfe), out);
  assert.deepEqual([...out], [Infinity, -Infinity, NaN, NaN]);
});

Deno.test("dequantise() of no blocks does nothing", () => {
  for (const type of readableTypes()) dequantise(typeNamed(type), new Uint8Array(0), new Float32Array(0));
});

Deno.test("dequantise() throws RangeError when bytes and elements do not match", () => {
  assert.throws(() => dequantise(typeNamed("F32"), new Uint8Array(7), new Float32Array(2)), RangeError);
  assert.throws(() => dequantise(typeNamed("Q8_0"), new Uint8Array(34), new Float32Array(31)), RangeError);
  assert.throws(() => dequantise(typeNamed("Q4_0"), new Uint8Array(9), new Float32Array(16)), RangeError);
  assert.throws(() => dequantise(typeNamed("Q4_K"), new Uint8Array(144), new Float32Array(512)), RangeError);
});

Deno.test("dequantise() throws TypeError for a type that can't be read", () => {
  assert.throws(() => dequantise(typeNamed("Q8_K"), new Uint8Array(292), new Float32Array(256)), TypeError);
  assert.throws(() => typeNamed("toString"), RangeError);
});

Deno.test("dequantise() makes numbers of any bytes, of every type", () => {
  const next = randomSource(5);
  for (const name of readableTypes()) {
    const type = typeNamed(name), count = Math.ceil(4096 / type.block);
    for (let run = 0; run < 30; run++) {
      const bytes = Uint8Array.from({ length: count * type.bytes }, () => Math.floor(next() * 256));
      const out = new Float32Array(count * type.block), other = new Float32Array(out.length).fill(12345);
      for (const each of [out, other]) dequantise(type, bytes, each);
      assert.deepEqual(new Uint32Array(other.buffer), new Uint32Array(out.buffer), `${name}: not all is written`);
      // A scale may be infinite or no number: then so are its block's values, and no other's.
      const wild = out.filter((x) => !Number.isFinite(x)).length;
      assert.ok(wild < out.length / 2, `${name}: ${wild} of ${out.length}`);
    }
  }
});
