/** What dumps come in: numbers of every type, arrays of NumPy, zip files of them; hostile ones are refused by name. */
import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import { Crc32 } from "../../model/dump/crc32.ts";
import { countNotFinite, decodeFloats } from "../../model/dump/floats.ts";
import { writeNpy } from "../../model/dump/npy.ts";
import { openSource } from "../../model/dump/open.ts";
import { readObject } from "../../model/file/strict_json.ts";
import { bufferSource } from "../../runtime/sources.ts";
import { bytesOf, npyFile, npyOf, npzFile, safetensorsOf } from "../_helper/numpy_files.ts";

const ROW = Float32Array.of(1, -2.5, 3, 4, 5.25, 6);

async function read(bytes: Uint8Array<ArrayBuffer>, name = "dump.npy") {
  const container = await openSource(bufferSource(bytes, name));
  const found: Record<string, { shape: readonly number[]; values: number[] }> = {};
  for (const each of container.names) {
    const tensor = await container.tensor(each), size = tensor.shape.reduce((a, b) => a * b, 1);
    found[each] = { shape: tensor.shape, values: [...await tensor.read(0, size)] };
  }
  await container.close();
  return found;
}

async function refused(bytes: Uint8Array<ArrayBuffer>, code: string, message: RegExp): Promise<void> {
  await assert.rejects(read(bytes), (error) => {
    assert.ok(error instanceof PalisadeError, String(error));
    assert.equal(`${error.kind} ${error.code}`, `input ${code}`);
    assert.match(error.message, message);
    return true;
  });
}

Deno.test("decodeFloats() knows every type, specials too", () => {
  const decode = (type: Parameters<typeof decodeFloats>[0], bytes: number[], little?: boolean) => {
    const into = new Float32Array(bytes.length / { F64: 8, F32: 4, F16: 2, BF16: 2, F8_E4M3: 1, F8_E5M2: 1 }[type] + 1);
    decodeFloats(type, Uint8Array.from(bytes), into, 1, little);
    assert.equal(into[0], 0);
    return [...into.subarray(1)];
  };
  assert.deepEqual(decode("F64", [...bytesOf(Float64Array.of(1.5, -7))]), [1.5, -7]);
  assert.deepEqual(decode("F32", [0x3f, 0xc0, 0, 0], false), [1.5]);
  assert.deepEqual(decode("F16", [0, 0x3c, 0, 0xfc, 1, 0]), [1, -Infinity, 2 ** -24]);
  assert.deepEqual(decode("BF16", [0x80, 0x3f, 0x80, 0xff, 0xc0, 0x7f]), [1, -Infinity, NaN]);
  assert.deepEqual(decode("F8_E4M3", [0x38, 0x7e, 0xfe, 0x7f, 0xff, 0x01, 0x80]), [
    1,
    448,
    -448,
    NaN,
    NaN,
    2 ** -9,
    -0,
  ]);
  assert.deepEqual(decode("F8_E5M2", [0x3c, 0x7b, 0x7c, 0xfc, 0x7d, 0x01]), [
    1,
    57344,
    Infinity,
    -Infinity,
    NaN,
    2 ** -16,
  ]);
  assert.equal(countNotFinite(Float32Array.of(1, NaN, -Infinity, 0)), 2);
});

Deno.test("openSource() reads arrays of NumPy: versions, byte orders, both orders of indices", async () => {
  const wanted = { dump: { shape: [2, 3], values: [...ROW] } };
  for (const version of [1, 2, 3] as const) {
    assert.deepEqual(await read(npyFile(bytesOf(ROW), [2, 3], { version })), wanted);
  }
  const turned = bytesOf(Float32Array.of(1, 4, -2.5, 5.25, 3, 6));
  assert.deepEqual(await read(npyFile(turned, [2, 3], { fortran: true })), wanted);
  const big = new DataView(new ArrayBuffer(8));
  big.setFloat64(0, 2.5);
  assert.deepEqual((await read(npyFile(new Uint8Array(big.buffer), [1], { descr: ">f8" }))).dump.values, [2.5]);
  assert.deepEqual((await read(npyFile(bytesOf(Float32Array.of(7)), []))).dump, { shape: [], values: [7] });
  assert.deepEqual((await read(npyFile(new Uint8Array(0), [0, 3]))).dump.values, []);
});

Deno.test("openSource() refuses arrays that NumPy doesn't write", async () => {
  const four = new Uint8Array(4), header = (text: string) => npyOf(text, four);
  const fine = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
  await read(header(fine));
  for (
    const [from, to] of [
      ["(1,)", "(1)"],
      ["(1,)", "(01,)"],
      ["(1,)", "(-1,)"],
      ["(1,)", "(1.0,)"],
      ["(1,)", "[1]"],
      ["False", "0"],
      ["'fortran_order': False, ", ""],
      ["'shape'", "'shapes'"],
      ["}", "} 7"],
      ["'<f4'", "'<f4"],
      ["'<f4'", "'|f4'"],
      ["'<f4'", "'<f3'"],
      ["'<f4'", "'O'"],
      ["{", "{'descr': '<f4', "],
    ]
  ) await refused(header(fine.replace(from, to)), "npy.header", /dump\.npy: (the header|the shape|its type)/);
  await refused(npyOf(fine.replace("(1,)", "(9999999999, 9999999999)"), four), "npy.shape", /too large/);
  await refused(npyOf(fine.replace("(1,)", `(${"1, ".repeat(33)})`), four), "npy.shape", /too large/);
  await refused(npyFile(new Uint8Array(5), [1]), "npy.size", /5 bytes of numbers for 1, which take 4/);
  await refused(npyFile(new Uint8Array(5), []), "npy.size", /for one,/);
  await refused(npyFile(new Uint8Array(4), [1], { descr: "<i4" }), "dump.type", /its type is <i4/);
  const version = npyFile(four, [1]);
  version[6] = 4;
  await refused(version, "npy.header", /version is 4\.0/);
  await refused(npyFile(four, [1]).slice(0, 11), "npy.truncated", /11 bytes/);
  await refused(npyFile(four, [1]).slice(0, 40), "npy.truncated", /header of/);
  const long = npyFile(four, [1], { version: 2 });
  new DataView(long.buffer).setUint32(8, 1e6, true);
  await refused(long, "npy.header", /at most 10000/);
  await refused(new TextEncoder().encode("This is a text, no dump"), "dump.kind", /no dump: want/);
});

Deno.test("writeNpy() writes what is read", async () => {
  const bytes = writeNpy(Int32Array.of(1, 2, 3, 4, 5, 6), [2, 3]);
  assert.equal(bytes.length % 64, 24);
  const container = await openSource(bufferSource(bytes, "kept.npy"));
  const { shape, type } = await container.tensor("kept");
  assert.deepEqual([shape, type], [[2, 3], "<i4"]);
  assert.match(new TextDecoder("latin1").decode(writeNpy(Int32Array.of(1), [1])), /'shape': \(1,\)/);
  assert.throws(() => writeNpy(Int32Array.of(1), [2]), /don't fit/);
});

const ARRAYS = { k: { data: ROW, shape: [2, 3] }, "layers/0/v": { data: Float32Array.of(9), shape: [1] } };
const WANTED = { k: { shape: [2, 3], values: [...ROW] }, "layers/0/v": { shape: [1], values: [9] } };

Deno.test("openSource() reads zip files of arrays, stored and packed, in any order of indices", async () => {
  for (const packed of [false, true]) assert.deepEqual(await read(npzFile(ARRAYS, packed)), WANTED);
  const many = Float32Array.from({ length: 300_000 }, (_, i) => i % 1000 / 8);
  for (const packed of [false, true]) {
    const container = await openSource(bufferSource(npzFile({ a: { data: many, shape: [300, 1000] } }, packed)));
    const tensor = await container.tensor("a");
    assert.deepEqual(await tensor.read(5000, 3), many.slice(5000, 5003));
    assert.deepEqual(await tensor.read(0, many.length), many);
  }
});

/** A copy with another number at a place; 16 or 32 bits. */
function changed(
  bytes: Uint8Array<ArrayBuffer>,
  at: number,
  value: number,
  bits: 16 | 32 = 16,
): Uint8Array<ArrayBuffer> {
  const copy = bytes.slice(), view = new DataView(copy.buffer);
  if (bits === 16) view.setUint16(at, value, true);
  else view.setUint32(at, value, true);
  return copy;
}

Deno.test("openSource() refuses zip files that say two things, or lie", async () => {
  const file = npzFile({ a: { data: ROW, shape: [6] } }), view = new DataView(file.buffer);
  const end = file.length - 22, directory = view.getUint32(end + 16, true);
  assert.equal(view.getUint32(directory, true), 0x02014b50);
  await refused(file.slice(0, -1), "npz.directory", /doesn't end/);
  await refused(file.slice(0, 17), "npz.directory", /outside/);
  await refused(changed(file, end + 4, 1), "npz.directory", /not where/);
  await refused(changed(file, end + 8, 2), "npz.directory", /not where/);
  await refused(changed(changed(file, end + 8, 2), end + 10, 2), "npz.directory", /not 2 entries/);
  await refused(changed(file, end + 16, directory - 1, 32), "npz.directory", /not where/);
  await refused(changed(file, end + 10, 0xffff), "npz.directory", /zip64/);
  await refused(changed(file, directory, 7), "npz.directory", /damaged/);
  await refused(changed(file, directory + 28, 999), "npz.directory", /cut off/);
  await refused(changed(file, directory + 46, 0x0a61), "npz.names", /plain letters/);
  await refused(changed(file, directory + 6, 64), "npz.packing", /asks for version 6\.4/);
  await refused(changed(file, directory + 8, 1), "npz.packing", /encrypted/);
  await refused(changed(file, directory + 10, 12), "npz.packing", /method 12/);
  await refused(changed(file, directory + 24, 99, 32), "npz.size", /can't have 99/);
  await refused(changed(file, directory + 24, 0xffffffff, 32), "npz.directory", /sizes of a are damaged/);
  await refused(changed(file, directory + 42, directory, 32), "npz.overlap", /reaches into/);
  await refused(changed(file, 8, 8), "npz.entry", /not what the directory says/);
  await refused(changed(file, 30, 0x6262), "npz.entry", /not what the directory says/);
  await refused(changed(file, 28, 9999), "npz.entry", /not what the directory says/);
  await refused(changed(file, directory - 2, 0), "npz.checksum", /damaged/);
  const two = npzFile({ a: { data: ROW, shape: [6] }, b: { data: ROW, shape: [6] } });
  const second = two.indexOf(0x62, new DataView(two.buffer).getUint32(two.length - 6, true));
  const twice = two.slice();
  twice[second] = 0x61;
  await refused(twice, "npz.names", /a comes twice/);
  const at = new DataView(two.buffer).getUint32(two.length - 6, true);
  await refused(changed(two, at + 42, 10, 32), "npz.overlap", /begins inside/);
});

Deno.test("openSource() refuses packed arrays that unpack to something else", async () => {
  const file = npzFile({ a: { data: new Float32Array(5000), shape: [5000] } }, true), view = new DataView(file.buffer);
  const directory = view.getUint32(file.length - 6, true), size = view.getUint32(directory + 24, true);
  const data = 30 + view.getUint16(26, true) + view.getUint16(28, true);
  await refused(changed(file, directory + 24, size - 4, 32), "npz.size", /unpacks to more/);
  await refused(changed(file, directory + 24, 2 ** 30, 32), "npz.size", /can't have/);
  await refused(changed(file, directory + 16, 1, 32), "npz.checksum", /damaged/);
  await refused(changed(file, data, 0xffff), "npz.packing", /can't be unpacked/);
  await refused(changed(file, directory + 24, 20, 32), "npz.size", /unpacks to more/);
});

Deno.test("openSource() reads the sizes of zip64, and refuses damaged ones", async () => {
  const file = npzFile({ a: { data: ROW, shape: [6] } }), view = new DataView(file.buffer), end = file.length - 22;
  const directory = view.getUint32(end + 16, true), length = view.getUint32(end + 12, true);
  const size = view.getUint32(directory + 24, true);
  /** The directory's entry with a field of eight-byte numbers, then the records of zip64. */
  const zip64 = (numbers: readonly number[], field = 8 * numbers.length, id = 1) => {
    const extra = 4 + 8 * numbers.length, out = new Uint8Array(file.length + extra + 76), to = new DataView(out.buffer);
    out.set(file.subarray(0, directory + length));
    for (const at of [20, 24, 42]) to.setUint32(directory + at, 0xffffffff, true);
    to.setUint16(directory + 30, extra, true);
    let at = directory + length;
    to.setUint16(at, id, true);
    to.setUint16(at + 2, field, true);
    numbers.forEach((number, i) => to.setBigUint64(at + 4 + 8 * i, BigInt(number), true));
    const record = at += extra;
    to.setUint32(at, 0x06064b50, true);
    to.setBigUint64(at + 4, 44n, true);
    [[24, 1], [32, 1], [40, length + extra], [48, directory]].forEach(([place, value]) => {
      to.setBigUint64(at + place, BigInt(value), true);
    });
    to.setUint32(at += 56, 0x07064b50, true);
    to.setBigUint64(at + 8, BigInt(record), true);
    out.set(file.subarray(end), at += 20);
    to.setUint16(at + 10, 0xffff, true);
    return out;
  };
  assert.deepEqual(await read(zip64([size, size, 0])), { a: { shape: [6], values: [...ROW] } });
  await refused(zip64([size, size]), "npz.directory", /sizes/);
  await refused(zip64([size, size, 0, 0]), "npz.directory", /sizes/);
  await refused(zip64([size, size, 0], 23), "npz.directory", /sizes/);
  await refused(zip64([size, size, 0], 99), "npz.directory", /sizes/);
  await refused(zip64([size, size, 0], 24, 2), "npz.directory", /sizes/);
  await refused(zip64([size, size, Number.MAX_SAFE_INTEGER]), "npz.overlap", /reaches/);
  const cut = zip64([size, size, 0]);
  await refused(changed(cut, cut.length - 98, 7, 32), "npz.directory", /zip64/);
});

Deno.test("openSource() reads safetensors in ranges, and only the floats", async () => {
  const header = {
    a: { dtype: "F32", shape: [2], data_offsets: [0, 8] },
    n: { dtype: "I64", shape: [1], data_offsets: [8, 16] },
  };
  const container = await openSource(bufferSource(safetensorsOf(header, bytesOf(Float32Array.of(1, 2, 3, 4)))));
  assert.deepEqual([...await (await container.tensor("a")).read(1, 1)], [2]);
  await assert.rejects((await container.tensor("n")).read(0, 1), /its type is I64/);
  const stopped = AbortSignal.abort(new Error("enough"));
  await assert.rejects((await container.tensor("a")).read(0, 2, stopped), /enough/);
});

Deno.test("readObject() takes JSON as strict readers do", () => {
  const parse = (text: string) => {
    const found: [string, unknown][] = [];
    readObject(text, (name, value) => found.push([name, value]));
    return found;
  };
  assert.deepEqual(parse(' {"a" : [1, -2, 1.5, 1e3, 12345678901234567890] } '.trim()), [["a", [
    1,
    NaN,
    NaN,
    NaN,
    NaN,
  ]]]);
  assert.deepEqual(parse('{"a":{"__proto__":null,"b":[true,false,"\\u00e9\\\\"]},"":[[]]}\n'), [
    ["a", new Map<string, unknown>([["__proto__", null], ["b", [true, false, "é\\"]]])],
    ["", [[]]],
  ]);
  for (
    const text of [
      ...["", " {}", "[]", "{", '{"a"}', '{"a":1,}', '{,"a":1}', '{"a":1 "b":2}', '{"a":1}x', '{"a":1}{}', '{"a":01}'],
      ...['{"a":+1}', '{"a":.5}', '{"a":1.}', '{"a":1e999}', '{"a":nul}', '{"a":"\n"}', '{"a":"\\x"}', '{"a":"\\u12"}'],
      ...[
        '{"a":"\\ud800"}',
        '{"a":1,"\\u0061":2}',
        '{"a":[1,2}',
        `{"a":${"[".repeat(9)}${"]".repeat(9)}}`,
        '{"a":"b',
        "{a:1}",
      ],
      ...['{"a":{"b":1,"b":1}}', '{"a":[,]}', '{"a":undefined}', '{"a":NaN}', "\ufeff{}"],
    ]
  ) assert.throws(() => parse(text), SyntaxError, text);
});

Deno.test("Crc32 is that of zip files", () => {
  const sum = new Crc32();
  for (const part of ["12345", "6789"]) sum.add(new TextEncoder().encode(part));
  assert.equal(sum.value, 0xcbf43926);
});

Deno.test("what torch.save wrote is refused by what it is, before its directory is looked for", async () => {
  const name = new TextEncoder().encode("archive/data.pkl"), bytes = new Uint8Array(120);
  bytes.set([0x50, 0x4b, 3, 4]);
  bytes[26] = name.length;
  bytes.set(name, 30);
  await refused(bytes, "npz.pickle", /torch\.save wrote it, as a pickle: want tensors written by safetensors/);
  await refused(bytes.slice(0, 29), "npz.directory", /end as a zip file/);
});
