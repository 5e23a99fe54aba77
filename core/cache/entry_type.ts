/** How keys and values are stored. Attention and policies work on what is stored. */
import { inputError, option, type PalisadeError, say } from "../errors.ts";
import { GROUP, packedBytes, type Part } from "./packed.ts";

/** Ways to store a row of keys or of values. */
export const ROW_TYPES = ["f32", "f16", "int8", "int4"] as const;

/**
 * `f32`: as computed. `f16`: each number rounded to float16, off by at most 2⁻¹¹ of itself (2⁻²⁵ below 2⁻¹⁴). `int8`:
 * each row is one float32 scale times whole numbers from −127 to 127, off by at most 1/254 of the row's largest.
 * `int4`: 16 steps over the range of 32 numbers, off by at most 1/30 of it (`packed.ts`); `f16` until a layer is packed,
 * which happens once what stays of it is known, and for entries that come later.
 */
export type RowType = typeof ROW_TYPES[number];

/** How keys and values are stored: both alike, or apart. */
export type CacheType = RowType | `k=${RowType},v=${RowType}`;

/** Ways that every backend has: row by row, keys and values alike. */
export const CACHE_TYPES = ["f32", "f16", "int8"] as const;

/** All ways, those for keys and values alike first. */
export const ALL_CACHE_TYPES: readonly CacheType[] = [
  ...ROW_TYPES,
  ...ROW_TYPES.flatMap((keys) =>
    ROW_TYPES.filter((values) => values !== keys).map((values): CacheType => `k=${keys},v=${values}`)
  ),
];

/** The types of keys and of values. */
export function partsOf(type: CacheType): { readonly keys: RowType; readonly values: RowType } {
  const apart = /^k=(\w+),v=(\w+)$/.exec(type);
  return apart
    ? { keys: apart[1] as RowType, values: apart[2] as RowType }
    : { keys: type as RowType, values: type as RowType };
}

/** Whether rows of this type are packed (`LayerRows.pack`). */
export function packs(type: CacheType): boolean {
  const { keys, values } = partsOf(type);
  return keys === "int4" || values === "int4";
}

/** Largest magnitude that a row may hold; from 65520 on float16 would round to infinity. */
const LARGEST_HALF = 65520;

/**
 * `int8`, or `k=int4,v=int8`; parts in any order, blanks around them.
 * @throws PalisadeError (input) `cache-type.unknown`.
 */
export function checkCacheType(type: string): CacheType {
  const known = ALL_CACHE_TYPES.find((each) => each === type) ?? apart(type);
  if (known) return known;
  const message = `There is no cache type "${type}": want ${
    ROW_TYPES.join(", ")
  }, or keys and values apart: k=int4,v=int8`;
  throw inputError("cache-type.unknown", message, option("cacheType"));
}

function apart(text: string): CacheType | undefined {
  const parts = text.split(",").map((part) => /^\s*([kv])\s*=\s*(\w+)\s*$/.exec(part));
  const of = (name: string) => parts.filter((part) => part?.[1] === name).map((part) => part![2]);
  const [keys, values] = [of("k"), of("v")];
  if (parts.length !== 2 || keys.length !== 1 || values.length !== 1) return undefined;
  if (keys[0] === values[0]) return ROW_TYPES.find((each) => each === keys[0]);
  return ALL_CACHE_TYPES.find((each) => each === `k=${keys[0]},v=${values[0]}`);
}

/** Bytes of the number that a refit has attention add to a row's logits, whatever the type. */
export const BIAS_BYTES = 4;

/** Bytes of one key and one value of width `headDim`, packed where they are packed, in whole groups. */
export function entryBytes(headDim: number, type: CacheType): number {
  return headBytes(headDim, type, GROUP, GROUP) / GROUP;
}

/** Bytes of a head's `length` keys and values, of which the first `packed` are packed. */
export function headBytes(headDim: number, type: CacheType, length: number, packed: number): number {
  const { keys, values } = partsOf(type);
  const of = (part: Part, rows: RowType) => {
    if (rows !== "int4") return length * looseBytes(headDim, rows);
    return packedBytes(part, packed, headDim) + (length - packed) * looseBytes(headDim, rows);
  };
  return of("keys", keys) + of("values", values);
}

function looseBytes(headDim: number, type: RowType): number {
  return { f32: 4 * headDim, f16: 2 * headDim, int8: headDim + 4, int4: 2 * headDim }[type];
}

/** Bytes of `width` numbers of one key, not packed. */
export function rowBytes(width: number, type: CacheType): number {
  return looseBytes(width, partsOf(type).keys);
}

/** Bytes of one number of the list of which channels there are. */
export const CHANNEL_BYTES = 2;

/** A key or value that rows of this type can't hold. */
export function unstorable(type: CacheType): PalisadeError {
  const { keys, values } = partsOf(type);
  const limit = [keys, values].some(isHalf) ? ` or is ${LARGEST_HALF} or more` : "";
  const wanted = say`want ${option("cacheType")} f32`;
  const message = say`Cannot store a key or value as ${type}: it is not finite${limit}; ${wanted}`;
  return inputError("cache-type.range", message, option("cacheType"));
}

/** Whether rows of this type can hold all of `floats`; `f32` takes anything, NaN too. */
export function storable(floats: Float32Array, type: RowType): boolean {
  if (type === "f32") return true;
  const limit = isHalf(type) ? LARGEST_HALF : Infinity;
  for (let i = 0; i < floats.length; i++) if (!(Math.abs(floats[i]) < limit)) return false;
  return true;
}

/** Whether rows are float16, for a while at least. */
function isHalf(type: RowType): boolean {
  return type === "f16" || type === "int4";
}
