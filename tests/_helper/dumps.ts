/** Small dumps for property tests, hostile ones among them. */
import fc from "fast-check";
import type { LayerDump } from "../../core/dump/evict.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { AttentionShape } from "../../core/shape.ts";

export interface DumpCase {
  readonly shape: AttentionShape;
  readonly length: number;
  readonly layers: readonly LayerDump[];
  /** How it was made, so that a failure says it. */
  readonly made: string;
}

/**
 * What a dump may hold. `spike`: one query looks at one entry only. `equal`: all the same, so that ties decide. `zero`:
 * all keys 0. `zero values`. `denormal`, `huge` (1e30): rows underflow or saturate. `broken`: NaN and ±∞ among the keys.
 */
export const FLAVOURS = ["plain", "spike", "equal", "zero", "zero values", "denormal", "huge", "broken"] as const;
export type Flavour = typeof FLAVOURS[number];

export const FINITE: readonly Flavour[] = FLAVOURS.filter((flavour) => flavour !== "broken");

/** Those whose log-sum-exps a float32 can tell. */
export const MODERATE: readonly Flavour[] = FINITE.filter((flavour) => flavour !== "huge");

export interface DumpSizes {
  readonly length: number;
  readonly kvHeads: number;
  readonly group: number;
  readonly layers: number;
  readonly headDim?: number;
}

const SCALES: Partial<Record<Flavour, number>> = { denormal: 1e-45, huge: 1e30 };

export function makeDump(seed: number, sizes: DumpSizes, flavour: Flavour = "plain"): DumpCase {
  const { length, kvHeads, group, layers, headDim = 2 } = sizes;
  const shape = { heads: kvHeads * group, kvHeads, headDim };
  const next = randomSource(seed);
  const floats = (count: number, scale = 1) => Float32Array.from({ length: count }, () => (next() * 4 - 2) * scale);
  const made = `${flavour} dump ${seed}, L ${length}, ${kvHeads} × ${group} heads, ${layers} layers`;
  const dump = (): LayerDump => {
    const each = {
      queries: floats(shape.heads * length * headDim, SCALES[flavour] ? 1 : 1.5),
      queryRows: length,
      keys: floats(kvHeads * length * headDim, SCALES[flavour]),
      values: floats(kvHeads * length * headDim),
      wo: floats(3 * shape.heads * headDim),
      reconstruction: floats(kvHeads * length).map(Math.abs),
      gate: floats(kvHeads * length),
      selfGate: new Float32Array(kvHeads * length),
      softTokens: new Float32Array(kvHeads * length),
      rotation: { pairs: "half" as const, rotated: headDim, frequencies: new Float64Array(headDim / 2).fill(0.1) },
    };
    each.softTokens.set(each.reconstruction.toReversed());
    each.selfGate.set(each.gate.toReversed());
    hurt(each, flavour, Math.floor(next() * each.keys.length), Math.floor(next() * shape.heads * length));
    return each;
  };
  return { shape, length, made, layers: Array.from({ length: layers }, dump) };
}

function hurt({ queries, keys, values }: LayerDump, flavour: Flavour, at: number, row: number): void {
  if (flavour === "spike") {
    // One query along one key: all of its attention goes there.
    const headDim = 2;
    queries.fill(300, row * headDim, (row + 1) * headDim);
    keys.fill(3, at - at % headDim, at - at % headDim + headDim);
  }
  if (flavour === "equal") { for (const array of [queries, keys, values]) array.fill(0.5); }
  if (flavour === "zero") keys.fill(0);
  if (flavour === "zero values") values.fill(0);
  if (flavour === "broken") {
    [NaN, Infinity, -Infinity].forEach((bad, i) => keys[(at + 5 * i) % keys.length] = bad);
  }
}

/** A number from 0 to 1, evenly: `fc.double` gives mostly tiny ones. */
export const evenShare: fc.Arbitrary<number> = fc.integer({ min: 0, max: 1000 }).map((thousandths) =>
  thousandths / 1000
);

/** Dumps of `shortest` … `longest` tokens, all sizes and flavours given. */
export function dumpCases(
  longest: number,
  flavours: readonly Flavour[] = FLAVOURS,
  shortest = 1,
): fc.Arbitrary<DumpCase> {
  return fc.record({
    seed: fc.integer({ min: 0, max: 1e9 }),
    length: fc.integer({ min: shortest, max: longest }),
    kvHeads: fc.integer({ min: 1, max: 2 }),
    group: fc.integer({ min: 1, max: 2 }),
    layers: fc.integer({ min: 1, max: 2 }),
    flavour: fc.constantFrom(...flavours),
  }).map(({ seed, flavour, ...sizes }) => makeDump(seed, sizes, flavour));
}
