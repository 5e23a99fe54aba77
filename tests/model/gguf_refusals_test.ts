/**
 * Bad GGUF files: every field of header, metadata and tensor table wrong in turn. Each case names the error code and
 * the field; each runs in a worker under a 30 s watchdog; the source counts what is read.
 */
import assert from "node:assert/strict";
import type { ArrayItems, Built, Entry, FileSpec, TensorSpec, ValueType } from "../_helper/gguf_builder.ts";
import { build, integer, overwrite, VALUE_TYPE } from "../_helper/gguf_builder.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { GgufOpener, type Outcome } from "../_helper/gguf_opener.ts";

/** No read and no buffer may be larger. */
const LARGEST_READ = 64e6;

const METADATA: readonly Entry[] = [
  { key: "general.architecture", type: "string", value: "llama" },
  { key: "a.uint8", type: "uint8", value: 7 },
  { key: "a.int8", type: "int8", value: -7 },
  { key: "a.uint16", type: "uint16", value: 700 },
  { key: "a.int16", type: "int16", value: -700 },
  { key: "a.uint32", type: "uint32", value: 70000 },
  { key: "a.int32", type: "int32", value: -70000 },
  { key: "a.float32", type: "float32", value: 0.5 },
  { key: "a.bool", type: "bool", value: 1 },
  { key: "a.uint64", type: "uint64", value: 2n ** 60n },
  { key: "a.int64", type: "int64", value: -5n },
  { key: "a.float64", type: "float64", value: 0.1 },
  { key: "b.texts", type: "array", value: { of: "string", items: ["", "ä", "xyz"] } },
  { key: "b.bools", type: "array", value: { of: "bool", items: [0, 1] } },
  { key: "b.none", type: "array", value: { of: "string", items: [] } },
  {
    key: "b.nested",
    type: "array",
    value: { of: "array", items: [{ of: "uint16", items: [1, 2, 3] }, { of: "string", items: ["q"] }] },
  },
  ...(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "uint64", "int64", "float64"] as const).map(
    (of): Entry => ({ key: `c.${of}`, type: "array", value: { of, items: [1, 2, 3] } }),
  ),
  { key: "the.last", type: "uint8", value: 0 },
];

const F32 = 0;
const Q8_0 = 8;
const Q4_K = 12;

const TENSORS: readonly TensorSpec[] = [
  { name: "one", shape: [4, 2], type: F32, offset: 0 }, // bytes 0 to 32
  { name: "two", shape: [32, 1, 2, 1], type: Q8_0, offset: 32 }, // 32 to 100
  { name: "three", shape: [256], type: Q4_K, offset: 128 }, // 128 to 272
];

const GOOD: FileSpec = { metadata: METADATA, tensors: TENSORS, data: 272 };
const good = build(GOOD);

interface Case {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** Length of the file when zeros follow `bytes`. */
  readonly size?: number;
  /** Eight-byte integers further on. */
  readonly integers?: readonly (readonly [offset: number, value: number])[];
  readonly code: string;
  readonly where: string;
}

/** `where` overwritten by a value; the error is expected at `at`, or there. */
function wrong(where: string, what: string, value: Uint8Array, code: string, at: string = where): Case {
  return { name: `${where} = ${what}`, bytes: overwrite(good, where, value), code, where: at };
}

function wrongNumber(where: string, value: number | bigint, length: number, code: string, at?: string): Case {
  return wrong(where, `${value}`, integer(value, length), code, at);
}

/** The good file with one metadata entry replaced. */
function withEntry(name: string, entry: Entry, code: string, where: string): Case {
  const metadata = [entry, ...METADATA.slice(1)];
  return { name, bytes: build({ ...GOOD, metadata }).bytes, code, where };
}

/** The good file with one tensor changed. */
function withTensor(name: string, index: number, change: Partial<TensorSpec>, code: string, field: string): Case {
  const tensors = TENSORS.map((tensor, i) => i === index ? { ...tensor, ...change } : tensor);
  return { name, bytes: build({ ...GOOD, tensors }).bytes, code, where: `tensor[${index}].${field}` };
}

/** Counts no file can have: all bits, the sign bit, beyond 2^53, an overflow when multiplied by 8, 2^31, 2^40. */
const HUGE = [2n ** 64n - 1n, 2n ** 63n, 2n ** 53n + 1n, 2n ** 61n + 1n, 2n ** 31n, 2n ** 40n];

/** Byte sequences that are not UTF-8, each in three bytes. */
const NOT_UTF8: readonly (readonly [what: string, ...bytes: number[]])[] = [
  ["a byte that never occurs", 0x61, 0xff, 0x61],
  ["a lone continuation", 0x80, 0x61, 0x61],
  ["an overlong slash", 0x61, 0xc0, 0xaf],
  ["a surrogate", 0xed, 0xa0, 0x80],
  ["a cut-off sequence", 0x61, 0xe2, 0x82],
  ["beyond U+10FFFF", 0xf4, 0x90, 0x80],
];

function headerCases(): Case[] {
  const magics = ["GGUG", "GGML", "FUGG", "PK\x03\x04", "\0\0\0\0", "\x1bGGU"];
  const counts = ["header.tensorCount", "header.metadataCount"];
  return [
    ...magics.map((magic) =>
      wrong("header.magic", JSON.stringify(magic), new TextEncoder().encode(magic), "gguf.magic")
    ),
    ...[0, 1, 4, 65535, 2 ** 32 - 1].map((n) => wrongNumber("header.version", n, 4, "gguf.version")),
    ...[2, 3].map((n) => wrongNumber("header.version", n * 2 ** 24, 4, "gguf.endian")),
    ...counts.flatMap((where) => [...HUGE, 2 ** 16 + 1].map((n) => wrongNumber(where, n, 8, "gguf.count"))),
    wrongNumber("header.tensorCount", Math.floor((good.bytes.length - 16) / 33) + 1, 8, "gguf.count"),
    wrongNumber("header.metadataCount", Math.floor((good.bytes.length - 24) / 14) + 1, 8, "gguf.count"),
    // the padding before the data is read as a name's length, the last entry's type as a dimension count
    wrongNumber("header.tensorCount", TENSORS.length + 1, 8, "gguf.name", "tensor[3].name"),
    wrongNumber("header.metadataCount", METADATA.length - 1, 8, "gguf.shape", "tensor[0].dimensions"),
  ];
}

/** Of these something is computed: which of two values would be right? */
const TWICE: readonly (readonly Entry[])[] = [
  [{ key: "general.architecture", type: "string", value: "qwen2" }],
  [{ key: "llama.block_count", type: "uint32", value: 1 }, { key: "llama.block_count", type: "uint32", value: 2 }],
  [{ key: "llama.block_count", type: "uint32", value: 1 }, { key: "llama.block_count", type: "uint64", value: 1 }],
  ["a", "b"].map((item): Entry => ({
    key: "tokenizer.ggml.tokens",
    type: "array",
    value: { of: "string", items: [item] },
  })),
];

function keyCases(): Case[] {
  const key = "metadata[1].key";
  return [
    ...HUGE.map((n) => wrongNumber(`${key}.length`, n, 8, "gguf.name")),
    wrongNumber(`${key}.length`, 65536, 8, "gguf.name"),
    wrongNumber(`${key}.length`, 65535, 8, "gguf.truncated", key),
    withEntry("an empty key", { key: "", type: "uint8", value: 1 }, "gguf.name", "metadata[0].key"),
    ...TWICE.map((entries): Case => ({
      name: `${entries[0].key} is there twice with two values`,
      bytes: build({ ...GOOD, metadata: [...METADATA, ...entries] }).bytes,
      code: "gguf.duplicate",
      where: `metadata[${METADATA.length + entries.length - 1}].key`,
    })),
    {
      name: "a key of 65536 bytes that is all there",
      bytes: build({ ...GOOD, metadata: [{ key: "k".repeat(65536), type: "uint8", value: 1 }] }).bytes,
      code: "gguf.name",
      where: "metadata[0].key.length",
    },
  ];
}

function valueCases(): Case[] {
  const texts = 'metadata["b.texts"]';
  return [
    ...[13, 255, 2 ** 31, 2 ** 32 - 1].map((n) => wrongNumber('metadata["a.uint8"].type', n, 4, "gguf.type")),
    ...[2, 255].map((n) => wrongNumber('metadata["a.bool"].value', n, 1, "gguf.value")),
    ...[...HUGE, 2 ** 24 + 1].map((n) =>
      wrongNumber('metadata["general.architecture"].value.length', n, 8, "gguf.string")
    ),
    wrong(
      'metadata["general.architecture"].value.length',
      "the file's size",
      integer(good.bytes.length, 8),
      "gguf.truncated",
      'metadata["general.architecture"].value',
    ),
    ...NOT_UTF8.map(([what, ...bytes]) =>
      wrong('metadata["general.architecture"].value', what, Uint8Array.from(bytes), "gguf.utf8")
    ),
    ...["tokenizer.chat_template", "tokenizer.ggml.pre", "general.type", "llama.rope.scaling.type"].flatMap((key) =>
      NOT_UTF8.map(([what, ...bytes]) =>
        withEntry(
          `${key} with ${what}`,
          { key, type: "string", value: Uint8Array.from(bytes) },
          "gguf.utf8",
          `metadata["${key}"].value`,
        )
      )
    ),
    ...HUGE.map((n) => wrongNumber(`${texts}.value[1].length`, n, 8, "gguf.string")),
    wrongNumber(`${texts}.value[1].length`, 5000, 8, "gguf.truncated", `${texts}.value[1]`),
  ];
}

function arrayCases(): Case[] {
  const arrays: readonly (readonly [key: string, least: number])[] = [
    ["b.texts", 8],
    ["b.bools", 1],
    ["b.nested", 12],
    ["b.none", 8],
    ...(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "uint64", "int64", "float64"] as const).map(
      (of, i) => [`c.${of}`, [1, 1, 2, 2, 4, 4, 4, 8, 8, 8][i]] as const,
    ),
  ];
  const counts = arrays.flatMap(([key, least]) => {
    const where = `metadata["${key}"].count`;
    const field = good.fields.find((each) => each.where === where)!;
    const fits = Math.floor((good.bytes.length - field.offset - 8) / least);
    return [...HUGE, fits + 1].map((n) => wrongNumber(where, n, 8, "gguf.count"));
  });
  const inner = 'metadata["b.nested"].value[0]';
  return [
    ...counts,
    ...[13, 2 ** 32 - 1].flatMap((n) =>
      ['metadata["b.texts"]', 'metadata["c.uint8"]', inner].map((path) =>
        wrongNumber(`${path}.elementType`, n, 4, "gguf.type")
      )
    ),
    ...HUGE.map((n) => wrongNumber(`${inner}.count`, n, 8, "gguf.count")),
    ...[2, 255].map((n) => wrongNumber('metadata["b.bools"].value[1]', n, 1, "gguf.value")),
    withEntry("arrays five deep", { key: "deep", type: "array", value: nest(5) }, "gguf.depth", deepPath(3)),
    withEntry("arrays forty deep", { key: "deep", type: "array", value: nest(40) }, "gguf.depth", deepPath(3)),
    // 4,194,305 elements in a file that has room for them
    ...(["uint8", "float64", "string", "bool"] as const).map((of) => tooMany(of, 2 ** 22 + 1)),
    tooMany("array", 2 ** 16 + 1),
    tooManyTogether(),
  ];
}

/** `depth` arrays one in the other, the innermost of one byte. */
function nest(depth: number): ArrayItems {
  return depth === 1 ? { of: "uint8", items: [1] } : { of: "array", items: [nest(depth - 1)] };
}

function deepPath(level: number): string {
  return `metadata["deep"]${".value[0]".repeat(level)}.elementType`;
}

function tooMany(of: ValueType, count: number): Case {
  const built = build({ metadata: [{ key: "many", type: "array", value: { of, items: [] } }], tensors: [], data: 0 });
  const where = 'metadata["many"].count';
  return {
    name: `${count} elements of ${of} in a file of 100 MB`,
    bytes: overwrite(built, where, integer(count, 8)),
    size: 1e8,
    code: "gguf.count",
    where,
  };
}

/** Two arrays of 3,000,000 bytes: each may be, both are too many. */
function tooManyTogether(): Case {
  const built = build({
    metadata: [{ key: "first", type: "array", value: { of: "uint8", items: [] } }],
    tensors: [],
    data: 0,
  });
  const count = built.fields.find(({ where }) => where === 'metadata["first"].count')!.offset;
  const second = count + 8 + 3e6;
  const name = new DataView(new TextEncoder().encode("second\0\0").buffer).getBigUint64(0, true);
  return {
    name: "two arrays of 3000000 elements each",
    bytes: overwrite(built, "header.metadataCount", integer(2, 8)),
    size: 1e8,
    // key length, key, type and element type, count
    integers: [[count, 3e6], [second, 8], [second + 8, Number(name)], [second + 16, VALUE_TYPE.array], [
      second + 24,
      3e6,
    ]],
    code: "gguf.count",
    where: 'metadata["second\\u0000\\u0000"].count',
  };
}

function alignmentCases(): Case[] {
  const key = "general.alignment";
  const entry = (type: ValueType, value: Entry["value"]): Entry => ({ key, type, value });
  const types: readonly (readonly [ValueType, Entry["value"]])[] = [
    ["uint64", 32n],
    ["int32", 32],
    ["float32", 32],
    ["string", "32"],
    ["bool", 1],
    ["array", { of: "uint32", items: [32] }],
  ];
  return [
    ...[0, 1, 4, 12, 33, 2 ** 21 + 8, 2 ** 31, 2 ** 32 - 1].map((n) =>
      withEntry(`alignment ${n}`, entry("uint32", n), "gguf.alignment", `metadata["${key}"].value`)
    ),
    ...types.map(([type, value]) =>
      withEntry(`alignment of type ${type}`, entry(type, value), "gguf.type", `metadata["${key}"].type`)
    ),
    withEntry("offsets not of alignment 64", entry("uint32", 64), "gguf.alignment", "tensor[1].offset"),
  ];
}

function tensorNameCases(): Case[] {
  const name = "tensor[2].name";
  return [
    ...[...HUGE, 65].map((n) => wrongNumber(`${name}.length`, n, 8, "gguf.name")),
    withTensor("a tensor without a name", 1, { name: "" }, "gguf.name", "name"),
    withTensor("a tensor's name of 65 bytes", 1, { name: "n".repeat(65) }, "gguf.name", "name.length"),
    withTensor("a tensor's name of 33 two-byte letters", 1, { name: "ä".repeat(33) }, "gguf.name", "name.length"),
    withTensor("a tensor that is there twice", 2, { name: "one" }, "gguf.duplicate", "name"),
    ...NOT_UTF8.map(([what, ...bytes]) => wrong(name, what, Uint8Array.from(bytes), "gguf.utf8")),
  ];
}

function shapeCases(): Case[] {
  const dimensions = "tensor[1].dimensions";
  return [
    ...[0, 5, 2 ** 31, 2 ** 32 - 1].map((n) => wrongNumber(dimensions, n, 4, "gguf.shape")),
    ...[0, 1, 2, 3].map((d) => wrongNumber(`tensor[1].shape[${d}]`, 0, 8, "gguf.shape")),
    ...[2n ** 64n - 1n, 2n ** 63n, 2n ** 53n].map((n) => wrongNumber("tensor[1].shape[0]", n, 8, "gguf.shape")),
    ...[2n ** 64n - 1n, 2n ** 48n + 1n].map((n) => wrongNumber("tensor[1].shape[1]", n, 8, "gguf.shape")),
    withTensor("a product of 2^64", 0, { shape: [2n ** 32n, 2n ** 32n] }, "gguf.shape", "shape[1]"),
    withTensor("a product of 2^128", 0, { shape: [2n ** 52n, 1, 2n ** 63n] }, "gguf.shape", "shape[2]"),
    ...[1, 31, 33, 48].map((n) => wrongNumber("tensor[1].shape[0]", n, 8, "gguf.shape")),
    ...[1, 32, 128, 255, 257].map((n) => wrongNumber("tensor[2].shape[0]", n, 8, "gguf.shape")),
    withTensor("2^50 elements in 272 bytes", 0, { shape: [2n ** 50n] }, "gguf.truncated", "offset"),
    withTensor("rows beyond the end", 2, { shape: [256, 2] }, "gguf.truncated", "offset"),
  ];
}

function typeAndOffsetCases(): Case[] {
  const offset = "tensor[2].offset";
  return [
    ...[4, 5, 31, 36, 42, 1000, 2 ** 31, 2 ** 32 - 1].map((n) => wrongNumber("tensor[0].type", n, 4, "gguf.dtype")),
    ...[1, 16, 127, 129, 2n ** 64n - 1n, 2n ** 53n + 1n].map((n) => wrongNumber(offset, n, 8, "gguf.alignment")),
    ...[2n ** 64n - 32n, 2n ** 63n, 2n ** 53n, 2n ** 31n, 2n ** 20n].map((n) =>
      wrongNumber(offset, n, 8, "gguf.truncated")
    ),
    wrongNumber(offset, 160, 8, "gguf.truncated"),
    wrongNumber(offset, 256, 8, "gguf.truncated"),
    wrongNumber(offset, 0, 8, "gguf.overlap"),
    wrongNumber(offset, 32, 8, "gguf.overlap"),
    wrongNumber(offset, 96, 8, "gguf.overlap"),
    wrongNumber("tensor[0].offset", 32, 8, "gguf.overlap", "tensor[1].offset"),
    wrongNumber("tensor[0].offset", 128, 8, "gguf.overlap", offset),
    withTensor("a tensor that grows into the next", 0, { shape: [4, 3] }, "gguf.overlap", "offset"),
  ].map((each) => each.name.includes("grows") ? { ...each, where: "tensor[1].offset" } : each);
}

/** What a file cut at byte `end` must be refused for: the first field, or count, that no longer fits. */
function truncated(built: Built, end: number): Case {
  const name = `cut at byte ${end}`;
  const bytes = built.bytes.slice(0, end);
  for (const field of built.fields) {
    const after = end - field.offset - field.length;
    if (after < 0) return { name: `${name}, in ${field.where}`, bytes, code: "gguf.truncated", where: field.where };
    if (field.least !== undefined && field.least > after) {
      return { name: `${name}, after ${field.where}`, bytes, code: "gguf.count", where: field.where };
    }
  }
  const ends = [32, 100, 272].map((length) => built.dataStart + length);
  const index = ends.findIndex((last) => last > end);
  return { name: `${name}, in tensor ${index}`, bytes, code: "gguf.truncated", where: `tensor[${index}].offset` };
}

/** Cut before, inside and one byte before the end of each field, and in the tensor data. */
function truncationCases(): Case[] {
  const ends = good.fields.flatMap(({ offset, length }) => [offset, offset + (length >> 1), offset + length - 1]);
  for (const at of [0, 31, 32, 99, 100, 128, 271]) ends.push(good.dataStart + at);
  return [...new Set(ends)].filter((end) => end >= 0).map((end) => truncated(good, end));
}

function endlessCases(): Case[] {
  const zeros = build({ metadata: [], tensors: [], data: 0 });
  const count = (where: string, n: number): Case => ({
    name: `${where} ${n} followed by 100 MB of zeros`,
    bytes: overwrite(zeros, where, integer(n, 8)),
    size: 1e8,
    code: n > 65536 ? "gguf.count" : "gguf.name",
    where: n > 65536 ? where : where === "header.tensorCount" ? "tensor[0].name" : "metadata[0].key",
  });
  return [
    ...[65536, 65537, 1e6].flatMap((n) => ["header.tensorCount", "header.metadataCount"].map((at) => count(at, n))),
    { name: "a terabyte of zeros", bytes: new Uint8Array(0), size: 2 ** 40, code: "gguf.magic", where: "header.magic" },
    longTexts(),
  ];
}

/** Nine texts of 16 MiB are more than we read of a header. */
function longTexts(): Case {
  const items = Array.from({ length: 9 }, () => "");
  const built = build({
    metadata: [{ key: "long", type: "array", value: { of: "string", items } }],
    tensors: [],
    data: 0,
  });
  const first = built.fields.find((field) => field.where === 'metadata["long"].value[0].length')!.offset;
  return {
    name: "metadata of more than 128 MiB",
    bytes: built.bytes,
    size: 2 ** 30,
    integers: items.map((_, i) => [first + i * (2 ** 24 + 8), 2 ** 24]),
    code: "gguf.limit",
    where: 'metadata["long"].value[7]',
  };
}

function check(each: Case, outcome: Outcome): void {
  assert.deepEqual(
    { code: outcome.code, where: outcome.where },
    { code: each.code, where: each.where },
    outcome.message,
  );
  assert.equal(outcome.kind, "input");
  assert.ok(outcome.message.startsWith(`test.gguf: ${each.where}: `), outcome.message);
  const size = each.size ?? each.bytes.length;
  assert.ok(outcome.largestRead <= LARGEST_READ, `read ${outcome.largestRead} bytes at once`);
  assert.ok(outcome.totalBytes <= 2 * Math.min(size, 2 ** 27), `read ${outcome.totalBytes} of ${size} bytes`);
  assert.ok(outcome.closed, "the source was not closed");
}

const GROUPS: Record<string, Case[]> = {
  "header": headerCases(),
  "metadata keys": keyCases(),
  "metadata values": valueCases(),
  "metadata arrays": arrayCases(),
  "alignments": alignmentCases(),
  "tensor names": tensorNameCases(),
  "tensor shapes": shapeCases(),
  "tensor types and offsets": typeAndOffsetCases(),
  "truncated files": truncationCases(),
  "endless files": endlessCases(),
};

for (const [group, cases] of Object.entries(GROUPS)) {
  Deno.test(`openGguf() refuses bad ${group}, naming the field`, async (t) => {
    await using opener = new GgufOpener();
    for (const each of cases) {
      await t.step(each.name, async () => check(each, await opener.request(each)));
    }
  });
}

Deno.test("openGguf() refusals are at least 100 distinct files", () => {
  const cases = Object.values(GROUPS).flat();
  const distinct = new Set(cases.map(({ bytes, size, integers }) => `${size} ${integers} ${bytes.join()}`));
  console.log(
    `${cases.length} bad files, ${distinct.size} distinct, ${GROUPS["truncated files"].length} of them cut off`,
  );
  assert.equal(distinct.size, cases.length);
  assert.ok(distinct.size - GROUPS["truncated files"].length >= 100);
});

Deno.test("openGguf() accepts the well-formed small file behind the refusals, through windows of any size", async () => {
  await using opener = new GgufOpener();
  for (const windowBytes of [1, 2, 7, 64, 1000, undefined]) {
    const outcome = await opener.request({ bytes: good.bytes, windowBytes });
    assert.deepEqual([outcome.code, outcome.closed], ["ok", false], outcome.message);
  }
});

/** What nothing is computed from may be odd: the file opens and says so. */
const ODD: readonly (readonly [name: string, bytes: Uint8Array<ArrayBuffer>, where: string])[] = [
  ...NOT_UTF8.flatMap(([what, ...bytes]) =>
    ["metadata[1].key", 'metadata["b.texts"].value[2]'].map((where) =>
      [`${where} with ${what}`, overwrite(good, where, Uint8Array.from(bytes)), where] as const
    )
  ),
  [
    "a name that is not UTF-8",
    odd({ key: "general.name", type: "string", value: Uint8Array.of(0x61, 0xff) }),
    named("general.name"),
  ],
  ["a key that nothing reads, twice", odd({ key: "the.last", type: "uint8", value: 9 }), "metadata[27].key"],
  [
    "a key that counts, twice the same",
    odd({ key: "general.architecture", type: "string", value: "llama" }),
    "metadata[27].key",
  ],
  [
    "a token that is not UTF-8",
    odd({ key: "tokenizer.ggml.tokens", type: "array", value: { of: "string", items: [Uint8Array.of(0xff)] } }),
    'metadata["tokenizer.ggml.tokens"].value[0]',
  ],
];

function odd(entry: Entry): Uint8Array<ArrayBuffer> {
  return build({ ...GOOD, metadata: [...METADATA, entry] }).bytes;
}

function named(key: string): string {
  return `metadata["${key}"].value`;
}

for (const [name, bytes, where] of ODD) {
  Deno.test(`openGguf() opens a file with ${name}, and says so`, async () => {
    await using file = await openGguf(new CountingSource(bytes));
    assert.deepEqual(file.notices.map((notice) => notice.where), [where]);
    assert.equal(file.metadata.get("general.architecture"), "llama");
    assert.equal(file.metadata.get("the.last") ?? 0, 0);
    assert.equal(file.tensors.size, TENSORS.length);
  });
}

Deno.test("the watchdog of the refusal tests stops a reader that hangs", async () => {
  await using opener = new GgufOpener();
  const request = { bytes: good.bytes };
  await assert.rejects(opener.request({ ...request, hang: true }, 500), /no answer within 500 ms/);
  assert.equal((await opener.request(request)).code, "ok");
});
