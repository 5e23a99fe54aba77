/** Heads whose keys have lost channels, or whose queries read a part, in a layer's section: three lists of whole numbers. */
import type { ReducedHead } from "../../core/backend/reduced.ts";
import type { SectionTensor, TensorSpec } from "./format.ts";

/**
 * `channels` `[kvHeads, headDim]`: 1 for those that are there, or read by; `thinned` `[kvHeads]`: rows that have lost the
 * others; `reading` `[kvHeads, 3]`: rows that a query reads, the first and the last among them, zeros for all.
 */
export function reducedForm(kvHeads: number, headDim: number): TensorSpec[] {
  const list = (name: string, shape: number[]): TensorSpec => ({ name, dtype: "I32", shape });
  return [
    list("channels", [kvHeads, headDim]),
    list("thinned", [kvHeads]),
    list("reading", [kvHeads, 3]),
  ];
}

/** Their numbers; nothing where all heads are whole. */
export function reducedInts(heads: readonly ReducedHead[], headDim: number): [TensorSpec, Int32Array][] {
  if (heads.every(({ thin, foresight }) => !thin && !foresight)) return [];
  const mask = ({ thin, foresight }: ReducedHead) => {
    const there = thin?.channels ?? foresight?.channels;
    return Array.from({ length: headDim }, (_, j) => there?.includes(j) ? 1 : 0);
  };
  const numbers = [
    heads.flatMap(mask),
    heads.map(({ thin }) => thin?.rows ?? 0),
    heads.flatMap(({ foresight: f }) => f ? [f.entries, f.sinks, f.recent] : [0, 0, 0]),
  ];
  return reducedForm(heads.length, headDim).map((spec, i) => [spec, Int32Array.from(numbers[i])]);
}

/** Reads them back; `fail` refuses what doesn't fit heads of `lengths` rows. */
export function readReduced(
  tensors: ReadonlyMap<string, SectionTensor>,
  lengths: Int32Array,
  headDim: number,
  fail: (reason: string) => never,
): ReducedHead[] {
  const [masks, thinned, reading] = ["channels", "thinned", "reading"].map((name) => {
    return new Int32Array(tensors.get(name)!.bytes.buffer);
  });
  return Array.from(lengths, (length, head) => {
    const mask = masks.subarray(head * headDim, (head + 1) * headDim), rows = thinned[head];
    const channels = Int32Array.from(mask.keys()).filter((j) => mask[j] === 1);
    const [entries, sinks, recent] = reading.subarray(3 * head, 3 * head + 3);
    const reads = entries > 0, loses = !reads && channels.length > 0;
    const fits = mask.every((bit) => bit === 0 || bit === 1) && (loses ? rows >= 0 && rows <= length : rows === 0) &&
      (reads ? channels.length > 0 && sinks >= 0 && recent >= 0 && sinks + recent <= entries : entries === 0);
    if (!fits) fail(`head ${head} has channels that don't fit it`);
    if (reads) return { foresight: { channels, entries, sinks, recent } };
    return loses ? { thin: { channels, rows } } : {};
  });
}
