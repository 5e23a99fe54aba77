/** Rows of a layer in a cloaked snapshot: float32, whatever the cache's type, each head filled up to whole blocks. */
import { concatenate } from "../../../core/concatenate.ts";
import type { CopiedRows } from "../../../core/backend/interface.ts";
import type { SectionTensor, TensorSpec } from "../format.ts";
import { bytesOf } from "../rows.ts";
import { BLOCK, type Cloak, type CloakedHead } from "./cloak.ts";

/** Rows that a head of `length` rows has once cloaked. */
function filled(length: number): number {
  return Math.ceil(length / BLOCK) * BLOCK;
}

/** Cloaked rows of all heads of a layer. */
export function cloakedRows(lengths: ArrayLike<number>): number {
  return Array.from(lengths, filled).reduce((sum, rows) => sum + rows, 0);
}

/** What stands in place of a layer's rows; `rows`: cloaked ones, of all heads. */
export function cloakedSpecs(kvHeads: number, rows: number, headDim: number): TensorSpec[] {
  const numbers = (name: string): TensorSpec => ({ name, dtype: "F32", shape: [rows, headDim] });
  return [{ name: "largest", dtype: "F32", shape: [kvHeads, 2] }, numbers("keys"), numbers("values")];
}

/** The bytes of {@link cloakedSpecs}. */
export async function coveredBytes(cloak: Cloak, layer: number, heads: readonly CopiedRows[], headDim: number) {
  const covered: CloakedHead[] = [];
  for (const [head, rows] of heads.entries()) covered.push(await cloak.cover(layer, head, rows, headDim));
  const all = (parts: Float32Array[]) => bytesOf(concatenate(parts, Float32Array));
  const largest = Float32Array.from(covered.flatMap(({ largest }) => largest));
  return [bytesOf(largest), all(covered.map(({ keys }) => keys)), all(covered.map(({ values }) => values))];
}

/** The rows again, per head; the tensors have the sizes that {@link cloakedSpecs} says for these lengths. */
export async function uncoveredRows(
  cloak: Cloak,
  layer: number,
  tensors: ReadonlyMap<string, SectionTensor>,
  { lengths, headDim }: { readonly lengths: Int32Array; readonly headDim: number },
): Promise<{ keys: Float32Array[]; values: Float32Array[] }> {
  const [largest, keys, values] = ["largest", "keys", "values"].map((name) =>
    new Float32Array(tensors.get(name)!.bytes.buffer)
  );
  const uncovered: CopiedRows[] = [];
  for (let head = 0, at = 0; head < lengths.length; head++) {
    const end = at + filled(lengths[head]) * headDim;
    const cloaked: CloakedHead = {
      rows: lengths[head],
      keys: keys.subarray(at, end),
      values: values.subarray(at, end),
      largest: [largest[2 * head], largest[2 * head + 1]],
    };
    uncovered.push(await cloak.uncover(layer, head, cloaked, headDim));
    at = end;
  }
  return { keys: uncovered.map(({ keys }) => keys), values: uncovered.map(({ values }) => values) };
}

/**
 * What of a layer tells tokens: the cloaked rows too, whose blocks span what their rows span; and in the first layer,
 * scores and sizes follow from a token alone. A tensor's place in this list is part of the format.
 */
const MASKED = ["largest", "predicted", "certificate_figures", "certificate_masses", "bias", "keys", "values"];

/** Purposes of masks: those below are the file's. */
const FIRST_PURPOSE = 16, PURPOSES = 16;

async function maskOne(cloak: Cloak, layer: number, name: string, bytes: Uint8Array) {
  const place = MASKED.indexOf(name);
  return place < 0 ? bytes : await cloak.mask(FIRST_PURPOSE + PURPOSES * layer + place, bytes);
}

/** The bytes of a layer's tensors as they stand in the file. */
export async function maskedBytes(cloak: Cloak, layer: number, names: readonly string[], bytes: readonly Uint8Array[]) {
  return await Promise.all(names.map((name, i) => maskOne(cloak, layer, name, bytes[i])));
}

/** The tensors of a layer as they were. */
export async function unmasked(
  cloak: Cloak,
  layer: number,
  tensors: ReadonlyMap<string, SectionTensor>,
): Promise<ReadonlyMap<string, SectionTensor>> {
  const shown = new Map<string, SectionTensor>();
  for (const [name, tensor] of tensors) {
    const bytes = (await maskOne(cloak, layer, name, tensor.bytes)) as Uint8Array<ArrayBuffer>;
    shown.set(name, { ...tensor, bytes });
  }
  return shown;
}
