/** Heads whose keys have lost channels, or whose queries read a part: what it takes in bytes, and what fits. */
import { type CacheType, CHANNEL_BYTES, rowBytes } from "../cache/entry_type.ts";
import type { Foresight, ThinKeys } from "./interface.ts";

/** What is known of one reduced head. */
export interface ReducedHead {
  /** The channels of the first `rows` rows' keys. */
  readonly thin?: { readonly channels: Int32Array; readonly rows: number };
  readonly foresight?: Foresight;
}

/** Bytes of a head of `length` rows, beside what as many whole rows take; below 0 where channels are gone. */
export function reducedBytes({ thin, foresight }: ReducedHead, length: number, headDim: number, type: CacheType) {
  const width = thin?.channels.length ?? 0;
  const saved = thin ? thin.rows * (rowBytes(headDim, type) - rowBytes(width, type)) : 0;
  const foreseen = foresight ? length * rowBytes(foresight.channels.length, "f32") : 0;
  return foreseen - saved + CHANNEL_BYTES * (width + (foresight?.channels.length ?? 0));
}

/** The head after rows went: `kept` of it, or all below a length. */
export function afterwards({ thin, ...rest }: ReducedHead, kept: Int32Array | number): ReducedHead {
  if (!thin) return rest;
  const rows = typeof kept === "number" ? Math.min(thin.rows, kept) : kept.filter((row) => row < thin.rows).length;
  return { ...rest, thin: { ...thin, rows } };
}

/**
 * Refuses what a head of `length` rows can't lose.
 * @throws RangeError
 */
export function checkThin({ channels, recent }: ThinKeys, head: ReducedHead, length: number, headDim: number): void {
  checkChannels(channels, headDim);
  if (head.thin || head.foresight) throw new RangeError("Cannot thin keys twice, or where queries read by channels");
  if (!(Number.isInteger(recent) && recent >= 0 && recent <= length)) {
    throw new RangeError(`Cannot keep the last ${recent} of ${length} keys whole`);
  }
}

/** @throws RangeError */
export function checkForesight(
  { channels, entries, sinks, recent }: Foresight,
  head: ReducedHead,
  headDim: number,
): void {
  checkChannels(channels, headDim);
  if (head.thin) throw new RangeError("Cannot read thin keys by channels");
  const counts = [entries, sinks, recent].every((count) => Number.isInteger(count) && count >= 0);
  if (!counts || entries < 1 || sinks + recent > entries) {
    throw new RangeError(`Cannot read ${entries} rows, the first ${sinks} and the last ${recent} among them`);
  }
}

function checkChannels(channels: Int32Array, headDim: number): void {
  const ascends = channels.every((channel, i) => channel >= 0 && channel < headDim && !(channel <= channels[i - 1]));
  if (channels.length === 0 || !ascends) {
    throw new RangeError(`Channels ${channels}: want one or more, ascending and below ${headDim}`);
  }
}
