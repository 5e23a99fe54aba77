/**
 * From the bytes that may stay to the entries that may: the whole context as float16 is the measure, whatever the entries
 * are stored as, so that shares of it can be set beside each other.
 */
import { BIAS_BYTES, type CacheType, CHANNEL_BYTES, entryBytes, partsOf, rowBytes } from "../cache/entry_type.ts";
import { packedWidth } from "../cache/packed.ts";
import { inputError, option } from "../errors.ts";
import { globalShape, type ModelShape } from "../shape.ts";

/** Bytes as asked for. */
export type Bytes = { readonly bytes: number } | { readonly share: number };

/** How entries are stored. */
export interface StoredAs {
  readonly type: CacheType;
  /** Whether each may have a bias. */
  readonly biased: boolean;
  /** Of each key but a head's last entries', so many channels are left; default all. */
  readonly thin?: { readonly channels: number; readonly recent: number };
}

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  k: 1e3,
  m: 1e6,
  g: 1e9,
  ki: 2 ** 10,
  mi: 2 ** 20,
  gi: 2 ** 30,
};

/**
 * `2MB`, `512KiB`, or a share of the float16 cache of the whole context: `1/16`, `6.25%`.
 * @throws PalisadeError input `bytes.syntax`.
 */
export function parseBytes(text: string): Bytes {
  const shares = /^\s*(\d+)\s*\/\s*(\d+)\s*$/.exec(text), percent = /^\s*(\d+(?:\.\d+)?)\s*%\s*$/.exec(text);
  const share = shares ? Number(shares[1]) / Number(shares[2]) : percent ? Number(percent[1]) / 100 : undefined;
  if (share !== undefined && share > 0 && share <= 1) return { share };
  const sized = /^\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*$/i.exec(text);
  const bytes = sized ? Math.floor(Number(sized[1]) * UNITS[(sized[2] ?? "").toLowerCase()]) : 0;
  if (share === undefined && bytes >= 1) return { bytes };
  const wanted = "want bytes such as 2MB or 512KiB, or a share of the whole float16 cache such as 1/16 or 5%";
  throw inputError("bytes.syntax", `Cannot read bytes "${text}": ${wanted}`, option("bytes"));
}

/** Bytes of all entries of the global layers as float16: what eviction has to do with. */
export function wholeBytes(length: number, whole: ModelShape): number {
  const { layers, kvHeads, headDim } = globalShape(whole);
  return length * layers * kvHeads * entryBytes(headDim, "f16");
}

/**
 * The most entries per KV head that fit, whichever heads they fall to: an int4 head's last group of keys is counted as
 * if every head's were one row long, and of thin keys all heads' last entries as whole.
 * @throws PalisadeError input `bytes.few` when not one does.
 */
export function entriesWithin(
  asked: Bytes,
  length: number,
  whole: ModelShape,
  { type, biased, thin }: StoredAs,
): number {
  const { layers, kvHeads, headDim } = globalShape(whole), heads = layers * kvHeads;
  const room = "bytes" in asked ? asked.bytes : asked.share * wholeBytes(length, whole);
  const each = entryBytes(headDim, type) + (biased ? BIAS_BYTES : 0);
  // Two float16 a channel for a group that is begun.
  const begun = partsOf(type).keys === "int4" ? 4 * packedWidth(headDim) * 31 / 32 : 0;
  // Keys beyond the recent ones take less, and each head lists their channels.
  const { channels, recent } = thin ?? { channels: headDim, recent: 0 };
  const listed = thin ? CHANNEL_BYTES * channels : 0, saved = rowBytes(headDim, type) - rowBytes(channels, type);
  const left = room / heads - begun - listed;
  const fitting = Math.max(Math.min(left / each, recent), (left - saved * recent) / (each - saved));
  const entries = Math.min(length, Math.floor(fitting + 1e-9));
  if (entries >= 1) return entries;
  const least = Math.ceil(heads * (each + begun + listed));
  throw inputError(
    "bytes.few",
    `${Math.floor(room)} bytes hold no entry as ${type}: want ${least} or more`,
    option("bytes"),
  );
}
