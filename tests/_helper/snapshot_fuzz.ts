/** Bad snapshots by the thousand: bytes changed anywhere, and headers and numbers changed under hashes that hold. */
import { PalisadeError } from "../../core/errors.ts";
import type { Model } from "../../model/model.ts";
import { readHeader, readTokens } from "../../model/snapshot/restore.ts";
import { headerEnd, resealed, rewritten } from "./snapshot_damage.ts";
import { bytesSource } from "./snapshots.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** Whole numbers below a bound, the same for the same seed (mulberry32). */
export function dice(seed: number): (below: number) => number {
  return (below) => {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return Math.floor(((t ^ t >>> 14) >>> 0) / 2 ** 32 * below);
  };
}

/** What takes the place of a value in a header. */
const VALUES: readonly unknown[] = [
  ...[0, -1, 1, 2 ** 31, 2 ** 53, 1e300, 0.5, "", "x", "__proto__", null, true, [], {}, [0, 0], [-1, 5], "F64", "I8"],
  ...[[2 ** 31, 2 ** 31], "\u0000", "2", [[[[]]]], { toString: 1 }, "é".repeat(300)],
];

type Json = { [name: string]: Json } | Json[] | string | number | boolean | null;

/** The list or object that a text is. */
function parsed(text: string): Json | undefined {
  try {
    return /^[[{]/.test(text) ? JSON.parse(text) : undefined;
  } catch {
    return undefined;
  }
}

/** Changes one value somewhere inside, JSON in texts included. */
function changed(value: Json, roll: (below: number) => number): Json {
  const inner = typeof value === "string" && roll(4) > 0 ? parsed(value) : undefined;
  if (inner !== undefined) return JSON.stringify(changed(inner, roll));
  if (typeof value !== "object" || value === null || roll(12) === 0) return VALUES[roll(VALUES.length)] as Json;
  const copy = structuredClone(value) as { [name: string]: Json }, names = Object.keys(copy);
  if (names.length === 0) return VALUES[roll(VALUES.length)] as Json;
  const name = names[roll(names.length)], what = roll(10);
  if (what === 0) delete copy[name];
  else if (what === 1) copy[`${name}x`] = copy[name];
  else copy[name] = changed(copy[name], roll);
  return copy;
}

/** One bad input. */
export function badSnapshot(good: Bytes, roll: (below: number) => number): Bytes {
  const kind = roll(5);
  if (kind === 0) return good.slice(0, roll(good.length));
  if (kind <= 2) {
    const bytes = good.slice(), end = kind === 1 ? headerEnd(good) : good.length;
    for (let flips = 1 + roll(4); flips > 0; flips--) bytes[roll(end)] ^= 1 << roll(8);
    return bytes;
  }
  if (kind === 3) {
    return resealed(good, (data) => {
      for (let flips = 1 + roll(8); flips > 0; flips--) data[roll(data.length - 512)] = roll(256);
    });
  }
  return rewritten(good, (header) => {
    const next = changed(header as Json, roll);
    for (const name of Object.keys(header)) delete header[name];
    Object.assign(header, next);
  });
}

export interface FuzzFigures {
  readonly inputs: number;
  readonly refused: number;
  /** Inputs that were taken: changes without a meaning, such as another label. */
  readonly taken: number;
  /** Anything but a PalisadeError, the first few. */
  readonly failures: readonly string[];
  /** The longest that one input took, milliseconds. */
  readonly slowestMs: number;
}

/** Opens and reads bad inputs; every `restoreEach`-th is given to the model too. */
export async function fuzzSnapshots(
  good: Bytes,
  model: Model,
  { inputs, seed, restoreEach }: { readonly inputs: number; readonly seed: number; readonly restoreEach: number },
): Promise<FuzzFigures> {
  const roll = dice(seed), failures: string[] = [];
  let refused = 0, taken = 0, slowestMs = 0;
  for (let i = 0; i < inputs; i++) {
    const source = bytesSource(badSnapshot(good, roll)), start = performance.now();
    try {
      const opened = await readHeader(source, model);
      await readTokens(opened, "");
      if (i % restoreEach === 0) (await model.restore(source))[Symbol.dispose]();
      taken++;
    } catch (error) {
      if (error instanceof PalisadeError) refused++;
      else if (failures.length < 5) failures.push(`input ${i}: ${(error as Error).stack}`);
    }
    slowestMs = Math.max(slowestMs, performance.now() - start);
  }
  return { inputs, refused, taken, failures, slowestMs };
}
