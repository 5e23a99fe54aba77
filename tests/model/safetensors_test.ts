/** Safetensors files: what is written is read, and hostile ones are refused by name. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { PalisadeError } from "../../core/errors.ts";
import { float16Table } from "../../model/file/gguf/float16.ts";
import { parseSafetensors, roundToFloat16, writeSafetensors } from "../../model/file/safetensors.ts";
import { holds } from "../_helper/property.ts";

/** A file with this header, as an object or as text, and so many bytes of data. */
function file(header: unknown, dataBytes = 0): Uint8Array {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  return bytes;
}

function tensor(shape: unknown, offsets: unknown, dtype: unknown = "F32") {
  return { dtype, shape, data_offsets: offsets };
}

function refused(bytes: Uint8Array, code: string, message: RegExp): void {
  assert.throws(() => parseSafetensors(bytes, "some.safetensors"), (error) => {
    assert.ok(error instanceof PalisadeError, String(error));
    assert.deepEqual([error.kind, error.code], ["input", `safetensors.${code}`]);
    assert.match(error.message, message);
    assert.match(error.message, /^some\.safetensors: /);
    return true;
  });
}

Deno.test("parseSafetensors() reads what writeSafetensors() wrote", () => {
  const data = Float32Array.of(1, -2.5, 0, 65504, 1e-7, -0);
  const bytes = writeSafetensors([
    { name: "half", dtype: "F16", shape: [2, 3], data },
    { name: "full", dtype: "F32", shape: [6], data },
    { name: "none", dtype: "F32", shape: [0, 4], data: new Float32Array(0) },
    { name: "scalar", dtype: "F32", shape: [], data: Float32Array.of(7) },
  ], { who: "me" });
  const { tensors, metadata } = parseSafetensors(bytes, "x");
  assert.deepEqual([...metadata], [["who", "me"]]);
  assert.deepEqual(tensors.get("full")!.read(), data);
  assert.deepEqual(tensors.get("half")!.shape, [2, 3]);
  assert.deepEqual(tensors.get("half")!.read(), roundToFloat16(data));
  assert.deepEqual([...tensors.get("scalar")!.read()], [7]);
  assert.equal(tensors.get("none")!.read().length, 0);
  assert.equal((8 + Number(new DataView(bytes.buffer).getBigUint64(0, true))) % 8, 0, "data is aligned");
});

Deno.test("parseSafetensors() reads from the middle of a buffer", () => {
  const bytes = writeSafetensors([{ name: "a", dtype: "F32", shape: [1], data: Float32Array.of(3) }], {});
  const shifted = new Uint8Array(bytes.length + 3);
  shifted.set(bytes, 3);
  assert.deepEqual([...parseSafetensors(shifted.subarray(3), "x").tensors.get("a")!.read()], [3]);
});

Deno.test("roundToFloat16() leaves every float16 alone and rounds others to the nearest, ties to even", () => {
  const all = float16Table().filter(Number.isFinite);
  assert.deepEqual(roundToFloat16(all), all);
  const sorted = [...all].sort((a, b) => a - b);
  holds(
    fc.property(fc.float({ min: -65504, max: 65504, noNaN: true }), (value) => {
      const [rounded] = roundToFloat16(Float32Array.of(value));
      let low = 0, high = sorted.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (sorted[middle] <= value) low = middle;
        else high = middle;
      }
      const best = Math.min(Math.abs(sorted[low] - value), Math.abs(sorted[high] - value));
      assert.equal(Math.abs(rounded - value), best);
    }),
    2000,
  );
  assert.deepEqual([...roundToFloat16(Float32Array.of(2049, 2051, 1 + 2 ** -11, 1 + 3 * 2 ** -11))], [
    2048,
    2052,
    1,
    1 + 2 ** -9,
  ]);
  for (const bad of [65520, -1e9, Infinity, NaN]) assert.throws(() => roundToFloat16(Float32Array.of(bad)), RangeError);
});

Deno.test("writeSafetensors() refuses a shape that does not fit", () => {
  const wrong = { name: "a", dtype: "F32", shape: [2, 2], data: new Float32Array(3) } as const;
  assert.throws(() => writeSafetensors([wrong], {}), /Tensor a has 3 values: want 2 × 2/);
});

Deno.test("parseSafetensors() refuses files too short for their header", () => {
  refused(new Uint8Array(0), "truncated", /0 bytes, want at least 8/);
  refused(new Uint8Array(7), "truncated", /7 bytes/);
  refused(file({}).subarray(0, 9), "truncated", /a header of 2 bytes in a file of 9/);
  const huge = file({});
  huge.set([255, 255, 255, 255], 0);
  refused(huge, "header", /a header of 4294967295 bytes: want at most/);
});

Deno.test("parseSafetensors() says of a text that it isn't a safetensors file", () => {
  refused(new TextEncoder().encode("This is not a gate, it is a text."), "header", /: it isn't a safetensors file$/);
  refused(new TextEncoder().encode("Short"), "truncated", /: it isn't a safetensors file/);
});

Deno.test("parseSafetensors() refuses headers that are no object of tensors", () => {
  for (const text of ["", "{", "[]", "null", "7", '"x"']) refused(file(text), "header", /header is no JSON/);
  refused(file(String.fromCharCode(0xd800)), "header", /header/);
  const broken = file('{"a":1}');
  broken[10] = 0xff;
  refused(broken, "header", /no JSON text/);
  refused(file({ a: 7 }), "header", /described by an object/);
  refused(file({ a: null }), "header", /described by an object/);
  refused(file({ __metadata__: [] }), "header", /object of texts/);
  refused(file({ __metadata__: { a: 1 } }), "header", /object of texts/);
  const many = Object.fromEntries(Array.from({ length: 65537 }, (_, i) => [`t${i}`, tensor([0], [0, 0], "U8")]));
  refused(file(many), "header", /more than 65536 tensors/);
});

Deno.test("parseSafetensors() refuses tensors of unknown types and impossible shapes", () => {
  for (const dtype of ["F17", 4, null, undefined, "constructor"]) {
    refused(file({ a: tensor([1], [0, 4], dtype ?? null) }, 4), "dtype", /unknown type/);
  }
  for (const shape of [undefined, 4, [1.5], [-1], ["2"], new Array(9).fill(1), [null]]) {
    refused(file({ a: tensor(shape, [0, 4]) }, 4), "shape", /whole numbers/);
  }
  refused(file({ a: tensor([2 ** 40, 2 ** 40], [0, 4]) }, 4), "shape", /too large/);
});

Deno.test("parseSafetensors() refuses offsets outside the data, overlapping or with holes", () => {
  for (const offsets of [undefined, 4, [0], [0, 4, 8], [4, 0], [-4, 0], [0, 4.5], ["0", "4"]]) {
    refused(file({ a: tensor([1], offsets) }, 8), "offsets", /two whole numbers/);
  }
  refused(file({ a: tensor([2], [0, 4]) }, 4), "offsets", /4 bytes for 2 F32, which takes 8/);
  refused(file({ a: tensor([], [0, 8]) }, 8), "offsets", /8 bytes for one F32/);
  refused(file({ a: tensor([2], [0, 8]) }, 4), "offsets", /ends at 8 of 4 bytes/);
  refused(
    file({ a: tensor([1], [0, 4]), b: tensor([1], [0, 4]) }, 4),
    "offsets",
    /begins at 0, the one before ends at 4/,
  );
  refused(file({ a: tensor([1], [0, 4]), b: tensor([1], [8, 12]) }, 12), "offsets", /begins at 8/);
  refused(file({ a: tensor([1], [0, 4]) }, 5), "offsets", /1 bytes after the last tensor/);
});

Deno.test("parseSafetensors() knows other types by size and refuses to read them as float32", () => {
  const { tensors } = parseSafetensors(file({ a: tensor([4], [0, 8], "BF16") }, 8), "x");
  assert.throws(() => tensors.get("a")!.read(), { code: "safetensors.dtype" });
});

Deno.test("parseSafetensors() answers any bytes with a file or a PalisadeError", () => {
  const good = writeSafetensors([{ name: "a", dtype: "F16", shape: [3], data: Float32Array.of(1, 2, 3) }], { k: "v" });
  holds(
    fc.property(
      fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { maxLength: 6 }),
      fc.nat(good.length),
      (edits, cut) => {
        const bytes = good.slice(0, cut % 3 === 0 ? good.length : cut);
        for (const [at, value] of edits) if (at < bytes.length) bytes[at] = value;
        try {
          for (const tensor of parseSafetensors(bytes, "x").tensors.values()) tensor.read();
        } catch (error) {
          assert.ok(error instanceof PalisadeError, String(error));
        }
      },
    ),
    2000,
  );
});
