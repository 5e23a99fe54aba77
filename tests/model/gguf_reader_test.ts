import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { PalisadeError } from "../../core/errors.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { build, type Entry, type TensorSpec } from "../_helper/gguf_builder.ts";

const tiny = (name: string) => readFile(new URL(`../data/models/${name}.gguf`, import.meta.url));

function open(metadata: readonly Entry[], tensors: readonly TensorSpec[] = [], data = 0, alignment?: number) {
  return openGguf(new CountingSource(build({ metadata, tensors, data, alignment }).bytes));
}

async function value(entry: Omit<Entry, "key">) {
  const gguf = await open([{ key: "k", ...entry }]);
  return gguf.metadata.get("k");
}

Deno.test("openGguf() gives scalars as numbers, bools and strings", async () => {
  assert.equal(await value({ type: "uint8", value: 255 }), 255);
  assert.equal(await value({ type: "int8", value: -128 }), -128);
  assert.equal(await value({ type: "uint16", value: 65535 }), 65535);
  assert.equal(await value({ type: "int16", value: -32768 }), -32768);
  assert.equal(await value({ type: "uint32", value: 2 ** 32 - 1 }), 2 ** 32 - 1);
  assert.equal(await value({ type: "int32", value: -(2 ** 31) }), -(2 ** 31));
  assert.equal(await value({ type: "float32", value: 0.1 }), Math.fround(0.1));
  assert.equal(await value({ type: "float64", value: 0.1 }), 0.1);
  assert.equal(await value({ type: "bool", value: 1 }), true);
  assert.equal(await value({ type: "bool", value: 0 }), false);
  assert.equal(await value({ type: "string", value: "" }), "");
  assert.equal(await value({ type: "string", value: "\ufeffé🙂\0" }), "\ufeffé🙂\0");
});

Deno.test("openGguf() gives 64-bit integers as numbers where those are exact, else as bigints", async () => {
  assert.equal(await value({ type: "uint64", value: 2n ** 53n - 1n }), 2 ** 53 - 1);
  assert.equal(await value({ type: "uint64", value: 2n ** 53n }), 2n ** 53n);
  assert.equal(await value({ type: "uint64", value: 2n ** 64n - 1n }), 2n ** 64n - 1n);
  assert.equal(await value({ type: "int64", value: -(2n ** 53n) + 1n }), -(2 ** 53) + 1);
  assert.equal(await value({ type: "int64", value: -(2n ** 63n) }), -(2n ** 63n));
});

Deno.test("openGguf() gives arrays of numbers as typed arrays, of texts and bools as arrays", async () => {
  const array = (of: Entry["type"], items: number[] | string[]) => value({ type: "array", value: { of, items } });
  assert.deepEqual(await array("uint8", [1, 255]), Uint8Array.of(1, 255));
  assert.deepEqual(await array("int8", [1, -1]), Int8Array.of(1, -1));
  assert.deepEqual(await array("uint16", [1, 65535]), Uint16Array.of(1, 65535));
  assert.deepEqual(await array("int16", [1, -1]), Int16Array.of(1, -1));
  assert.deepEqual(await array("uint32", [1, 2 ** 32 - 1]), Uint32Array.of(1, 2 ** 32 - 1));
  assert.deepEqual(await array("int32", [1, -1]), Int32Array.of(1, -1));
  assert.deepEqual(await array("float32", [1, 0.5]), Float32Array.of(1, 0.5));
  assert.deepEqual(await array("float64", [1, 0.1]), Float64Array.of(1, 0.1));
  assert.deepEqual(await array("uint64", [1, 2]), BigUint64Array.of(1n, 2n));
  assert.deepEqual(await array("int64", [1, -2]), BigInt64Array.of(1n, -2n));
  assert.deepEqual(await array("string", ["a", "", "ß"]), ["a", "", "ß"]);
  assert.deepEqual(await array("bool", [1, 0]), [true, false]);
  assert.deepEqual(await array("int32", []), new Int32Array(0));
  assert.deepEqual(await array("string", []), []);
});

Deno.test("openGguf() reads arrays four deep", async () => {
  const innermost = { of: "uint8", items: [1, 2] } as const;
  const nested = { of: "array", items: [{ of: "array", items: [{ of: "array", items: [innermost] }] }] } as const;
  assert.deepEqual(await value({ type: "array", value: nested }), [[[Uint8Array.of(1, 2)]]]);
});

Deno.test("openGguf() reads version 2, an empty file and a file of metadata only", async () => {
  const empty = build({ version: 2, metadata: [], tensors: [], data: 0 });
  const gguf = await openGguf(new CountingSource(empty.bytes));
  assert.deepEqual([gguf.version, gguf.alignment, gguf.size], [2, 32, 32]);
  assert.deepEqual([gguf.metadata.size, gguf.tensors.size, gguf.name], [0, 0, "test.gguf"]);
  // without the padding, as writers leave it off
  assert.equal((await openGguf(new CountingSource(empty.bytes.slice(0, 24)))).size, 24);
});

Deno.test("openGguf() gives absolute offsets, in any order of the data and for other alignments", async () => {
  for (const alignment of [8, 24, 64]) {
    const metadata: Entry[] = [{ key: "general.alignment", type: "uint32", value: alignment }];
    const tensors: TensorSpec[] = [
      { name: "later", shape: [5], type: 0, offset: 3 * alignment },
      { name: "n".repeat(64), shape: [2, 1], type: 0, offset: 0 },
    ];
    const { bytes, dataStart } = build({ metadata, tensors, alignment, data: 3 * alignment + 20 });
    const gguf = await openGguf(new CountingSource(bytes));
    assert.equal(gguf.alignment, alignment);
    const later = gguf.tensors.get("later")!;
    assert.deepEqual([later.offset, later.byteLength, later.elements], [dataStart + 3 * alignment, 20, 5]);
    assert.deepEqual([later.shape, later.type.name], [[5], "F32"]);
    assert.deepEqual([...gguf.tensors.keys()], ["later", "n".repeat(64)]);
  }
});

Deno.test("openGguf() accepts a known tensor type it can't dequantise, and readFloat32() refuses it by name", async () => {
  const gguf = await open([], [{ name: "t", shape: [256], type: 15, offset: 0 }], 292);
  assert.equal(gguf.tensors.get("t")!.type.name, "Q8_K");
  assert.equal((await gguf.readRaw("t")).length, 292);
  await assert.rejects(gguf.readFloat32("t"), (error: PalisadeError) => {
    assert.deepEqual([error.code, error.where, error.kind], ["gguf.dtype", 'tensor["t"].type', "input"]);
    assert.match(error.message, /Q8_K; supported are F32, .*Q6_K/);
    return true;
  });
});

Deno.test("readRaw() gives whole tensors and parts of them, and nothing outside", async () => {
  const gguf = await open([], [{ name: "t", shape: [4, 3], type: 0, offset: 32 }], 80);
  const all = await gguf.readRaw("t");
  assert.deepEqual(all, Uint8Array.from({ length: 48 }, (_, i) => 32 + i));
  assert.deepEqual(await gguf.readRaw("t", { offset: 5, length: 3 }), all.slice(5, 8));
  assert.deepEqual(await gguf.readRaw("t", { offset: 40 }), all.slice(40));
  assert.equal((await gguf.readRaw("t", { offset: 48 })).length, 0);
  for (const range of [{ offset: -1 }, { offset: 49 }, { length: 49 }, { offset: 1, length: 48 }, { offset: 0.5 }]) {
    await assert.rejects(gguf.readRaw("t", range), RangeError);
  }
});

Deno.test("readRaw() reads into bytes that are given, its front, from sources that can and that can't", async () => {
  class Direct extends CountingSource {
    async readInto(offset: number, target: Uint8Array): Promise<void> {
      target.set(await this.read(offset, target.length));
    }
  }
  const { bytes } = build({ metadata: [], tensors: [{ name: "t", shape: [4, 3], type: 0, offset: 0 }], data: 48 });
  for (const source of [new CountingSource(bytes), new Direct(bytes)]) {
    const gguf = await openGguf(source), into = new Uint8Array(20).fill(255);
    const read = await gguf.readRaw("t", { offset: 5, length: 8, into });
    assert.deepEqual([read.buffer === into.buffer, [...read]], [true, [5, 6, 7, 8, 9, 10, 11, 12]]);
    assert.deepEqual([...into.subarray(8)], new Array(12).fill(255));
    await assert.rejects(gguf.readRaw("t", { into }), RangeError);
  }
});

Deno.test("openGguf() reads texts that lie across windows, and refuses those that are not UTF-8 by their place", async () => {
  const items = Array.from({ length: 40 }, (_, i) => "é".repeat(i % 7)), value = { of: "string", items } as const;
  const file = (key: string, text = value) =>
    build({ metadata: [{ key, type: "array", value: text }], tensors: [], data: 0 });
  const { bytes, fields } = file("k");
  for (const windowBytes of [1, 9, 64, 1000]) {
    const gguf = await openGguf(new CountingSource(bytes), { windowBytes });
    assert.deepEqual(gguf.metadata.get("k"), items);
  }
  const bad = file("tokenizer.ggml.merges"), at = (where: string) => bad.fields.find((each) => each.where === where)!;
  bad.bytes[at('metadata["tokenizer.ggml.merges"].value[5]').offset] = 0xff;
  const refused = { code: "gguf.utf8", where: 'metadata["tokenizer.ggml.merges"].value[5]' };
  await assert.rejects(openGguf(new CountingSource(bad.bytes)), refused);
  const long = bytes.slice();
  long[fields.find(({ where }) => where === 'metadata["k"].value[7].length')!.offset + 6] = 1;
  await assert.rejects(openGguf(new CountingSource(long)), { code: "gguf.string" });
});

Deno.test("readFloat32() gives rows", async () => {
  await using gguf = await openGguf(new CountingSource(await tiny("llama-plain")));
  const all = await gguf.readFloat32("blk.0.attn_q.weight");
  assert.equal(all.length, 64 * 64);
  assert.deepEqual(await gguf.readFloat32("blk.0.attn_q.weight", { firstRow: 3, rows: 2 }), all.slice(192, 320));
  assert.deepEqual(await gguf.readFloat32("blk.0.attn_q.weight", { firstRow: 63 }), all.slice(63 * 64));
  assert.equal((await gguf.readFloat32("blk.0.attn_q.weight", { rows: 0 })).length, 0);
  for (const range of [{ firstRow: 64, rows: 1 }, { rows: 65 }, { firstRow: -1 }, { rows: 1.5 }]) {
    await assert.rejects(gguf.readFloat32("blk.0.attn_q.weight", range), RangeError);
  }
});

Deno.test("readRaw() and readFloat32() refuse a tensor that isn't there", async () => {
  const gguf = await open([]);
  for (const read of [gguf.readRaw("no"), gguf.readFloat32("no")]) {
    await assert.rejects(read, { code: "gguf.missing", where: 'tensor["no"]' });
  }
});

Deno.test("readRaw() and readFloat32() read large tensors in slices of 16 MiB", async () => {
  const elements = 9 * 2 ** 20;
  const { bytes, dataStart } = build({
    metadata: [],
    tensors: [{ name: "t", shape: [elements / 4, 4], type: 0, offset: 0 }],
    data: 0,
  });
  const last = dataStart + 4 * elements - 8;
  const source = new CountingSource(bytes, dataStart + 4 * elements, [[dataStart + 2 ** 24, 7], [last, 5 * 2 ** 32]]);
  const gguf = await openGguf(source);
  const raw = await gguf.readRaw("t");
  assert.deepEqual([raw.length, raw[2 ** 24], raw.at(-4)], [4 * elements, 7, 5]);
  const floats = await gguf.readFloat32("t");
  assert.deepEqual(new Uint8Array(floats.buffer), raw);
  assert.equal(source.largestRead, 2 ** 24);
});

Deno.test("close() and asynchronous disposal close the source", async () => {
  for (const way of ["close", "dispose"]) {
    const source = new CountingSource(build({ metadata: [], tensors: [], data: 0 }).bytes);
    const gguf = await openGguf(source);
    assert.equal(source.closed, false);
    if (way === "close") await gguf.close();
    else await gguf[Symbol.asyncDispose]();
    assert.equal(source.closed, true);
  }
});

Deno.test("openGguf() passes on what the source throws, and closes it", async () => {
  class Broken extends CountingSource {
    override read(): Promise<Uint8Array<ArrayBuffer>> {
      return Promise.reject(new Error("disk on fire"));
    }
  }
  const source = new Broken(new Uint8Array(100));
  await assert.rejects(openGguf(source), /disk on fire/);
  assert.ok(source.closed);
});

Deno.test("openGguf() throws RangeError for a window that is none", async () => {
  for (const windowBytes of [0, -1, 0.5, NaN, 2 ** 24 + 1]) {
    await assert.rejects(openGguf(new CountingSource(new Uint8Array(0)), { windowBytes }), RangeError);
  }
});

Deno.test("openGguf() escapes and shortens names in messages", async () => {
  const key = "tokenizer.\x1b[2J" + "x".repeat(500);
  const twice: Entry[] = [{ key, type: "uint8", value: 1 }, { key, type: "uint8", value: 2 }];
  await assert.rejects(open(twice), (error: PalisadeError) => {
    assert.equal(error.code, "gguf.duplicate");
    assert.ok(!error.message.includes("\x1b") && error.message.length < 200, error.message);
    return true;
  });
});

Deno.test("openGguf() opens or refuses 3000 files with random bytes wrong, and never does anything else", async () => {
  const seed = 20250213;
  console.log(`seed ${seed}`);
  const next = random(seed);
  const whole = new Uint8Array(await tiny("qwen2-yarn")); // a Buffer's slice() would share its memory
  const headerBytes = 12000;
  const outcomes = new Map<string, number>();
  for (let i = 0; i < 3000; i++) {
    const bytes = whole.slice();
    const changes = 1 + next() % 4;
    for (let c = 0; c < changes; c++) bytes[next() % (i % 2 ? headerBytes : 400)] = next() % 256;
    const source = new CountingSource(bytes);
    const outcome = await openGguf(source).then(() => "ok", (error) => {
      assert.ok(error instanceof PalisadeError && error.kind === "input" && error.where !== "", error.stack);
      return error.code;
    });
    assert.ok(source.totalBytes <= 2 * bytes.length);
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
  }
  console.log(Object.fromEntries(outcomes));
  assert.ok(outcomes.size >= 8);
});

/** Xorshift, 32 bits. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}
