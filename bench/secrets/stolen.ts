/** What somebody has who got hold of a snapshot's file, without its secret: keys and values as far as he can make them out. */
import type { ModelShape } from "../../core/shape.ts";
import { openSnapshot } from "../../model/snapshot/format.ts";
import { BLOCK, Cloak, newSalt } from "../../model/snapshot/cloak/cloak.ts";
import type { Secret } from "../../model/snapshot/seal/key.ts";
import { bufferSource, type Runtime } from "../../runtime/mod.ts";

/** One head: rows `[positions, headDim]`, and where each is taken to be from. */
export interface StolenHead {
  readonly positions: Int32Array;
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

/** `[layers][kvHeads]`. */
export type Stolen = readonly (readonly StolenHead[])[];

/**
 * The rows of a plain or cloaked file of an f32 cache: of a cloaked head, the first rows in the file's order, as they
 * stand there under their mask, which is the best that can be said of them.
 */
export async function stolenRows(bytes: Uint8Array<ArrayBuffer>, runtime: Runtime, shape: ModelShape): Promise<Stolen> {
  const file = await openSnapshot(bufferSource(bytes), () => runtime.sha256()), { kvHeads, headDim } = shape;
  const cloaked = file.metadata.has("cloak"), layers: StolenHead[][] = [];
  for (let layer = 0; layer < shape.layers; layer++) {
    const tensors = await file.read(`layer.${layer}`),
      ints = (name: string) => new Int32Array(tensors.get(name)!.bytes.buffer);
    const [keys, values] = ["keys", "values"].map((name) => tame(new Float32Array(tensors.get(name)!.bytes.buffer)));
    const lengths = ints("lengths"), positions = ints("positions");
    let row = 0, place = 0;
    layers.push(Array.from({ length: kvHeads }, (_, head) => {
      const length = lengths[head], part = (all: Float32Array) => all.slice(row * headDim, (row + length) * headDim);
      const stolen = { positions: positions.slice(place, place + length), keys: part(keys), values: part(values) };
      row += cloaked ? Math.ceil(length / BLOCK) * BLOCK : length;
      place += length;
      return stolen;
    }));
  }
  return layers;
}

/** What is no number, or no size that any row has, would only stop an attack. */
function tame(numbers: Float32Array): Float32Array {
  return numbers.map((x) => Math.abs(x) < 1e4 ? x : 0);
}

/** The first layer's plain rows under KV-Cloak alone, as published: whole blocks, without the mask that files have. */
export async function cloakedAlone(
  heads: readonly StolenHead[],
  secret: Secret,
  headDim: number,
  salt = newSalt(),
): Promise<StolenHead[]> {
  const cloak = await Cloak.of(secret, salt);
  return await Promise.all(heads.map(async (head, i) => ({ ...head, ...await cloak.cover(0, i, head, headDim) })));
}

/** The same of any rows: as many whole blocks as they have, for the attack on KV-Cloak. */
export function asBlocks(heads: readonly StolenHead[], headDim: number): StolenHead[] {
  const whole = (rows: Float32Array) => rows.subarray(0, rows.length - rows.length % (BLOCK * headDim));
  return heads.map((head) => ({ ...head, keys: whole(head.keys), values: whole(head.values) }));
}

/** A sealed file says nothing of where rows are: its bytes are taken for rows, one head after another. */
export function bytesAsRows(
  bytes: Uint8Array<ArrayBuffer>,
  { layers, kvHeads, headDim }: ModelShape,
  tokens: number,
): Stolen {
  const body = bytes.slice(96), numbers = tame(new Float32Array(body.buffer, 0, Math.floor(body.length / 4)));
  let at = 0;
  const next = () => {
    const rows = numbers.slice(at, at += tokens * headDim);
    return rows.length === tokens * headDim ? rows : new Float32Array(tokens * headDim);
  };
  const positions = Int32Array.from({ length: tokens }, (_, i) => i);
  return Array.from(
    { length: layers },
    () => Array.from({ length: kvHeads }, () => ({ positions, keys: next(), values: next() })),
  );
}

/** Rows of zeros: what an attack says that has nothing to go by. */
export function noRows({ layers, kvHeads, headDim }: ModelShape, tokens: number): Stolen {
  const positions = Int32Array.from({ length: tokens }, (_, i) => i), rows = new Float32Array(tokens * headDim);
  return Array.from(
    { length: layers },
    () => Array.from({ length: kvHeads }, () => ({ positions, keys: rows, values: rows })),
  );
}
