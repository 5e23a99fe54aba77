/** How keys and values are stored. Attention and policies work on what is stored. */
import { inputError, option, type PalisadeError, say } from "../errors.ts";

/** Ways to store keys and values. */
export const CACHE_TYPES = ["f32", "f16", "int8"] as const;

/**
 * `f32`: as computed. `f16`: each number rounded to float16, off by at most 2⁻¹¹ of itself (2⁻²⁵ below 2⁻¹⁴). `int8`:
 * each row is one float32 scale times whole numbers from −127 to 127, off by at most 1/254 of the row's largest.
 */
export type CacheType = typeof CACHE_TYPES[number];

/** Largest magnitude that a row may hold; from 65520 on float16 would round to infinity. */
const LARGEST_HALF = 65520;

/** @throws PalisadeError (input) `cache-type.unknown`. */
export function checkCacheType(type: string): CacheType {
  const known = CACHE_TYPES.find((each) => each === type);
  if (known) return known;
  const message = `There is no cache type "${type}": want ${CACHE_TYPES.join(", ")}`;
  throw inputError("cache-type.unknown", message, option("cacheType"));
}

/** Bytes of the number that a refit has attention add to a row's logits, whatever the type. */
export const BIAS_BYTES = 4;

/** Bytes of one key and one value of width `headDim`. */
export function entryBytes(headDim: number, type: CacheType): number {
  return 2 * rowBytes(headDim, type);
}

/** Bytes of `width` numbers of one key or value. */
export function rowBytes(width: number, type: CacheType): number {
  return { f32: 4 * width, f16: 2 * width, int8: width + 4 }[type];
}

/** Bytes of one number of the list of which channels there are. */
export const CHANNEL_BYTES = 2;

/** A key or value that rows of this type can't hold. */
export function unstorable(type: CacheType): PalisadeError {
  const limit = type === "f16" ? ` or is ${LARGEST_HALF} or more` : "";
  const wanted = say`want ${option("cacheType")} f32`;
  const message = say`Cannot store a key or value as ${type}: it is not finite${limit}; ${wanted}`;
  return inputError("cache-type.range", message, option("cacheType"));
}

/** Whether rows of this type can hold all of `floats`; `f32` takes anything, NaN too. */
export function storable(floats: Float32Array, type: CacheType): boolean {
  if (type === "f32") return true;
  const limit = type === "f16" ? LARGEST_HALF : Infinity;
  for (let i = 0; i < floats.length; i++) if (!(Math.abs(floats[i]) < limit)) return false;
  return true;
}
