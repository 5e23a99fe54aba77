/** Whole files of every kind that a dump may be, and ways to damage them that leave much of each in order. */
import type { ChildResult } from "../../tools/child.ts";
import { randomSource } from "../../core/measure/random.ts";
import { build } from "./gguf_builder.ts";
import { bytesOf, npyOf, npzFile, safetensorsOf } from "./numpy_files.ts";
import { runPython } from "./python.ts";
import { fileURLToPath } from "node:url";

export const KINDS = ["safetensors", "npy", "npz", "gguf"] as const;
export type Kind = typeof KINDS[number];
type Bytes = Uint8Array<ArrayBuffer>;

/** Draws. */
export class Dice {
  readonly #next: () => number;

  constructor(seed: number) {
    this.#next = randomSource(seed);
  }

  below(count: number): number {
    return Math.floor(this.#next() * count);
  }

  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)];
  }
}

const FLOATS = Float32Array.from({ length: 24 }, (_, i) => i / 3 - 2);

/** The `i`-th damaged file of a kind, always the same. Every twentieth is whole. */
export function damagedFile(kind: Kind, i: number): Bytes {
  const dice = new Dice(7919 * i + KINDS.indexOf(kind));
  const file = kind === "safetensors" || kind === "npy" ? spoiltText(kind, dice) : whole(kind, dice);
  if (i % 20 === 0) return whole(kind, dice);
  // A spoilt text is damage enough, most of the time.
  const spoilt = kind === "safetensors" || kind === "npy", times = spoilt ? dice.of([0, 0, 0, 1]) : dice.of([1, 1, 2]);
  let bytes = file;
  for (let n = 0; n < times; n++) bytes = damaged(bytes, dice);
  return bytes;
}

function whole(kind: Kind, dice: Dice): Bytes {
  switch (kind) {
    case "safetensors":
      return safetensorsOf(header(dice), bytesOf(FLOATS));
    case "npy":
      return npyOf(dict(dice), bytesOf(FLOATS), dice.of([1, 1, 2, 3]));
    case "npz":
      return npzFile({ k: { data: FLOATS, shape: [24] }, "a/v": { data: FLOATS, shape: [4, 6] } }, dice.below(2) === 1);
    case "gguf":
      return build({
        metadata: [
          { key: "general.architecture", type: "string", value: "llama" },
          { key: "llama.context_length", type: "uint32", value: 7 },
          { key: "list", type: "array", value: { of: "int32", items: [1, 2, 3] } },
          { key: "names", type: "array", value: { of: "string", items: ["a", "bc"] } },
        ],
        tensors: [{ name: "a", shape: [4, 2], type: 0, offset: 0 }, { name: "b", shape: [32], type: 8, offset: 32 }],
        data: 66,
      }).bytes;
    default:
      return kind satisfies never;
  }
}

function header(dice: Dice): string {
  const value = {
    ...(dice.below(2) && { __metadata__: { by: "me" } }),
    a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] },
    "b/é": { dtype: "F16", shape: [4], data_offsets: [24, 32] },
    c: { dtype: "F8_E4M3", shape: [16], data_offsets: [32, 48] },
    d: { dtype: "F64", shape: [], data_offsets: [48, 56] },
    e: { dtype: "BF16", shape: [4, 5], data_offsets: [56, 96] },
  };
  return JSON.stringify(value) + " ".repeat(dice.below(9));
}

function dict(dice: Dice): string {
  const [descr, shape] = dice.of([["<f4", "(24,)"], [">f4", "(4, 6)"], ["<f2", "(48,)"], ["<f8", "(3, 4)"], [
    "<f4",
    "(2, 3, 4)",
  ]]);
  return `{'descr': '${descr}', 'fortran_order': ${dice.of(["False", "True"])}, 'shape': ${shape}, }`;
}

/** What may stand in a header's place: nearly right, or right in one reader's eyes and wrong in another's. */
const SPOILS: readonly (readonly [RegExp, readonly string[]])[] = [
  [/\d+/g, [
    "0",
    "1",
    "01",
    "-0",
    "-1",
    "1.0",
    "1e0",
    "24.0",
    "+4",
    "4_0",
    "0x4",
    "18446744073709551616",
    "9007199254740993",
    "4L",
    "",
    "null",
  ]],
  [/"[^"]*"|'[^']*'/g, [
    '"dtype"',
    '"shape"',
    '"a"',
    '"\\u0061"',
    '"\\ud800"',
    '"\\x61"',
    '"a\n"',
    '""',
    '"__metadata__"',
    "'descr'",
    "'<f4'",
    "'f4'",
    "'=f4'",
    "'|u1'",
    "'<U1'",
    "'O'",
    "u'<f4'",
    '"<f4"',
    "'<f' '4'",
    "b'<f4'",
  ]],
  [/[{}\[\](),:]/g, ["", ",", ",,", "{", "}", "[", "]", "(", ")", ":", " : ", ", ", "\t", "\n", "#", "[[", ",]", ",}"]],
  [/F32|F16|F64|BF16|F8_E4M3|True|False/g, [
    "F32",
    "F16",
    "F4",
    "F8_E5M2",
    "F8_E8M0",
    "U8",
    "C64",
    "f32",
    "BOOL",
    "true",
    "1",
    "None",
    "0",
  ]],
  [/^/g, [" ", "\n", "\ufeff", "{", "\0"]],
  [/$/g, [" ", "\n", "\0", "}", "{}", "\t \r\n", "\v", "\f", "\u00a0", ","]],
  [/"[a-e/é]+":\{[^}]*\},?/g, [
    "",
    '"a":{},',
    '"a":null,',
    '"z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},',
    '"z":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":[{}]},',
  ]],
];

/** A file whose header's text is changed in one to three places; lengths still fit it. */
function spoiltText(kind: "safetensors" | "npy", dice: Dice): Bytes {
  let text = kind === "safetensors" ? header(dice) : dict(dice);
  for (let n = 1 + dice.of([0, 0, 1, 2]); n > 0; n--) text = spoilt(text, dice);
  const data = bytesOf(FLOATS);
  return kind === "safetensors" ? safetensorsOf(text, data) : npyOf(text, data, dice.of([1, 2, 3]));
}

function spoilt(text: string, dice: Dice): string {
  const [pattern, instead] = dice.of(SPOILS), places = [...text.matchAll(pattern)];
  if (places.length === 0) return text;
  const place = dice.of(places), at = place.index, old = place[0];
  // Twice, or replaced.
  const put = dice.below(6) === 0 ? old + old : dice.of(instead);
  return text.slice(0, at) + put + text.slice(at + old.length);
}

/** One wound: bits, bytes, numbers of several bytes, cut, longer, a piece doubled or gone. */
function damaged(bytes: Bytes, dice: Dice): Bytes {
  const copy = bytes.slice(), at = dice.below(bytes.length), view = new DataView(copy.buffer);
  const numbers = [0, 1, 2, 8, 0x7f, 0xff, 0xffff, 0xffffffff, bytes.length, bytes.length - 1, bytes.length + 1];
  const length = 1 + dice.below(Math.min(40, bytes.length - at));
  switch (dice.below(8)) {
    case 0:
      copy[at] ^= 1 << dice.below(8);
      return copy;
    case 1:
      copy[at] = dice.below(256);
      return copy;
    case 2:
      if (at + 4 <= copy.length) view.setUint32(at, dice.of(numbers), true);
      return copy;
    case 3:
      if (at + 8 <= copy.length) {
        view.setBigUint64(at, BigInt.asUintN(64, dice.of([0n, 1n, -1n, 1n << 63n, 1n << 32n])), true);
      }
      return copy;
    case 4:
      return copy.slice(0, at);
    case 5:
      return joined(copy, copy.subarray(at, at + length));
    case 6:
      return joined(copy.subarray(0, at + length), copy.subarray(at));
    default:
      return joined(copy.subarray(0, at), copy.subarray(at + length));
  }
}

function joined(a: Uint8Array, b: Uint8Array): Bytes {
  const all = new Uint8Array(a.length + b.length);
  all.set(a);
  all.set(b, a.length);
  return all;
}

/** Whether the libraries of others (the `safetensors` crate, NumPy, `gguf`) take each of the files; one process. */
export async function judged(kind: Kind, files: readonly Uint8Array[]): Promise<boolean[]> {
  const lengths = files.map(({ length }) => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
    return bytes;
  });
  const input = new Uint8Array(await new Blob(files.flatMap((file, i) => [lengths[i], file as Bytes])).arrayBuffer());
  const judge = fileURLToPath(new URL("python/judge.py", import.meta.url));
  const { code, stdout, stderr, killed }: ChildResult = await runPython([judge, kind], { input });
  if (code !== 0 || stdout.length !== files.length) {
    throw new Error(`judge.py ended with ${code}: ${killed}\n${stderr}`);
  }
  return [...stdout].map((letter) => letter === "1");
}
