/** Rows of a head as float32, read back in pieces that a stage can see. */
import { originOf } from "./blocks.ts";
import { ROWS } from "./shaders.ts";
import { kindOf, spread } from "./stages.ts";
import type { Piece, StoredHeads } from "./stored_heads.ts";

/** `list` of `rows.wgsl` where there is none. */
const NO_LIST = 0xffffffff;

/** All rows of a head, or the `wanted`, in any order: `[rows, headDim]`. All pieces wait together. */
export async function readRows(
  stored: StoredHeads,
  part: "keys" | "values",
  head: number,
  wanted?: Int32Array,
): Promise<Float32Array> {
  const { headDim } = stored.options.shape, all = new Float32Array((wanted?.length ?? stored.lengths[head]) * headDim);
  if (!wanted) {
    await Promise.all(
      [...stored.pieces(head)].map(async (piece) =>
        all.set(await floatsOf(stored, part, piece), piece.first * headDim)
      ),
    );
    return all;
  }
  await Promise.all(
    wantedPieces(stored, head, wanted).map(async ({ places, ...piece }) => {
      const floats = await floatsOf(stored, part, piece, places.map((place) => wanted[place]));
      places.forEach((place, i) => all.set(floats.subarray(i * headDim, (i + 1) * headDim), place * headDim));
    }),
  );
  return all;
}

/** Pieces of the `wanted` rows, each of one block, and their places among them. */
function wantedPieces(stored: StoredHeads, head: number, wanted: Int32Array): (Piece & { places: Int32Array })[] {
  const most = stored.mostFloats, every = Int32Array.from(wanted.keys());
  return stored.blocksOf(head).flatMap((block) => {
    const inside = every.filter((place) => wanted[place] >= block.from && wanted[place] < block.to);
    return Array.from({ length: Math.ceil(inside.length / most) }, (_, i) => {
      const places = inside.subarray(i * most, (i + 1) * most);
      return { block, origin: originOf(block, head), first: 0, count: places.length, places };
    });
  });
}

async function floatsOf(
  { options: { gpu, shape: { headDim }, type } }: StoredHeads,
  part: "keys" | "values",
  { block, origin, first, count }: Piece,
  rows?: Int32Array<ArrayBuffer>,
): Promise<Float32Array> {
  const out = gpu.borrow(4 * count * headDim), list = gpu.borrowIdle(4 * (rows?.length ?? 1));
  if (rows) gpu.write(list, 0, rows);
  gpu.run(gpu.stage(ROWS, { entry: "floats", constants: { D: headDim, KIND: kindOf(type) } }), {
    params: [count, origin, rows ? 0 : NO_LIST, first],
    buffers: [block[part], list, undefined, out],
    groups: spread(count * headDim),
  });
  const read = gpu.read(out, 0, 4 * count * headDim);
  gpu.giveBack(out);
  gpu.giveBack(list);
  return new Float32Array(await read);
}
