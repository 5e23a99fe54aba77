/** Runs a planned reading. */
import type { Device } from "../device.ts";
import { readAtRisk } from "./at_risk.ts";
import { readContext, readThreshold } from "./layers.ts";
import type { Reader, Reading, ReadOptions, ReadResult } from "./reading.ts";
import { readRolling } from "./rolling.ts";
import { readStreaming } from "./streaming.ts";

/** Every way is called alike. */
const READERS: { readonly [W in Reading["way"]]: Reader<Extract<Reading, { readonly way: W }>> } = {
  layers: readContext,
  threshold: readThreshold,
  risk: readAtRisk,
  streaming: readStreaming,
  rolling: readRolling,
};

/** Reads `ids` (at least one) as planned; what stays is stored as its type says. The caller owns the cache. */
export async function read(
  device: Device,
  ids: readonly number[],
  reading: Reading,
  options: ReadOptions,
): Promise<ReadResult> {
  const result = await readBy(device, ids, reading, options);
  try {
    await result.cache.packAll();
  } catch (error) {
    result.cache[Symbol.dispose]();
    throw error;
  }
  return result;
}

async function readBy(
  device: Device,
  ids: readonly number[],
  reading: Reading,
  options: ReadOptions,
): Promise<ReadResult> {
  switch (reading.way) {
    case "layers":
      return await READERS.layers(device, ids, { ...reading, ...options });
    case "threshold":
      return await READERS.threshold(device, ids, { ...reading, ...options });
    case "risk":
      return await READERS.risk(device, ids, { ...reading, ...options });
    case "streaming":
      return await READERS.streaming(device, ids, { ...reading, ...options });
    case "rolling":
      return await READERS.rolling(device, ids, { ...reading, ...options });
    default:
      throw new TypeError(`Unknown way of reading ${reading satisfies never}`);
  }
}
