/** Runs a planned reading. */
import type { Device } from "../device.ts";
import { readAtRisk } from "./at_risk.ts";
import { readContext, readThreshold } from "./layers.ts";
import type { Reading, ReadOptions, ReadResult } from "./reading.ts";
import { readRolling } from "./rolling.ts";
import { readStreaming } from "./streaming.ts";

/** Reads `ids` (at least one) as planned. The caller owns the cache. */
export async function read(
  device: Device,
  ids: readonly number[],
  reading: Reading,
  options: ReadOptions,
): Promise<ReadResult> {
  switch (reading.way) {
    case "layers":
      return await readContext(device, ids, { ...reading, ...options });
    case "threshold":
      return await readThreshold(device, ids, { ...reading, ...options });
    case "risk":
      return await readAtRisk(device, ids, { ...reading, ...options });
    case "streaming":
      return await readStreaming(device, ids, { ...reading, ...options });
    case "rolling":
      return await readRolling(device, ids, { ...reading, ...options });
    default:
      throw new TypeError(`Unknown way of reading ${reading satisfies never}`);
  }
}
