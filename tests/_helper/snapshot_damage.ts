/** Ways to spoil a snapshot, some of them with hashes that hold. */
import { createHash } from "node:crypto";
import type { Runtime } from "../../runtime/interface.ts";
import { openSnapshot } from "../../model/snapshot/format.ts";
import { bytesSource } from "./snapshots.ts";

type Bytes = Uint8Array<ArrayBuffer>;
type Header = Record<string, unknown>;
type Entry = { data_offsets: [number, number] };

const hashOf = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest();

/** Where the sections begin. */
export function headerEnd(bytes: Bytes): number {
  return 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true));
}

function headerOf(bytes: Bytes): Header {
  return JSON.parse(new TextDecoder().decode(bytes.subarray(8, headerEnd(bytes))));
}

/** Bytes to flip all over the file, and the part that each is of. */
export async function flips(bytes: Bytes, runtime: Runtime, each = 24) {
  const start = headerEnd(bytes), header = headerOf(bytes);
  const file = await openSnapshot(bytesSource(bytes), () => runtime.sha256());
  const places: { at: number; part: string }[] = [];
  const spread = (from: number, to: number, part: string) => {
    const step = Math.max(1, Math.floor((to - from) / each));
    for (let at = from; at < to; at += step) places.push({ at, part });
    places.push({ at: to - 1, part });
  };
  spread(0, start, "header");
  for (const part of [...file.sections, "manifest"]) {
    const offsets = Object.entries(header).filter(([name]) => name.slice(0, name.lastIndexOf(".")) === part)
      .flatMap(([, entry]) => (entry as Entry).data_offsets);
    spread(start + Math.min(...offsets), start + Math.max(...offsets), part);
  }
  return { places };
}

/** The snapshot with another header and a manifest that says so: what only the meaning can refuse. */
export function rewritten(bytes: Bytes, change: (header: Header) => void): Bytes {
  const header = headerOf(bytes), { data_offsets: [from, to] } = header["manifest.sha256"] as Entry;
  change(header);
  const text = new TextEncoder().encode(JSON.stringify(header)), padded = Math.ceil(text.length / 8) * 8;
  const data = bytes.slice(headerEnd(bytes)), result = new Uint8Array(8 + padded + data.length).fill(0x20);
  new DataView(result.buffer).setBigUint64(0, BigInt(padded), true);
  result.set(text, 8);
  data.set(hashOf(result.subarray(0, 8 + padded)), from);
  data.set(hashOf(data.subarray(from, to - 32)), to - 32);
  result.set(data, 8 + padded);
  return result;
}

/** The snapshot with hashes that hold for whatever its data are now. */
export function resealed(bytes: Bytes, change: (data: Uint8Array, header: Header) => void): Bytes {
  const result = bytes.slice(), start = headerEnd(result), header = headerOf(result), data = result.subarray(start);
  change(data, header);
  const { data_offsets: [from, to] } = header["manifest.sha256"] as Entry;
  const sections = new Map<string, [number, number]>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__" || name === "manifest.sha256") continue;
    const section = name.slice(0, name.lastIndexOf(".")), [first, last] = (entry as Entry).data_offsets;
    const before = sections.get(section) ?? [first, last];
    sections.set(section, [Math.min(first, before[0]), Math.max(last, before[1])]);
  }
  let at = from + 32;
  for (const [first, last] of [...sections.values()].sort(([a], [b]) => a - b)) {
    for (let chunk = first; chunk < last; chunk += 4 * 2 ** 20, at += 32) {
      data.set(hashOf(data.subarray(chunk, Math.min(last, chunk + 4 * 2 ** 20))), at);
    }
  }
  data.set(hashOf(data.subarray(from, to - 32)), to - 32);
  return result;
}

/** The snapshot with two equally long parts of it exchanged, several times. */
export async function cutChunks(bytes: Bytes, runtime: Runtime): Promise<Bytes[]> {
  const file = await openSnapshot(bytesSource(bytes), () => runtime.sha256());
  const start = headerEnd(bytes), header = headerOf(bytes);
  const placeOf = (section: string) => start + (header[`${section}.keys`] as Entry).data_offsets[0];
  const layers = file.sections.filter((name) => name.startsWith("layer."));
  return layers.slice(1).map((layer, i) => {
    const [a, b] = [placeOf(layers[i]), placeOf(layer)], result = bytes.slice();
    result.copyWithin(a, b, b + 64);
    result.set(bytes.subarray(a, a + 64), b);
    return result;
  });
}
