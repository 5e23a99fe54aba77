/** Turns keys to other positions: read as float32, turned, stored anew, some rows of a head at a time. */
import type { KeyRotation } from "../../core/measure/rotation.ts";
import type { GpuBuffer } from "../device.ts";
import { ROWS } from "./shaders.ts";
import { kindOf, MOST_GROUPS, spread } from "./stages.ts";
import { storeRows } from "./store.ts";
import type { Piece, StoredHeads } from "./stored_heads.ts";

/** Floats that are turned at once. */
const AT_ONCE = 4 * 2 ** 20;

/** Row `i` of head `h` by `moves[h][i]` positions. `owner`: who is told of a key that can't be stored. */
export function turnKeys(
  stored: StoredHeads,
  owner: number,
  moves: readonly Int32Array[],
  rotation: KeyRotation,
): void {
  moves.forEach((list, head) => {
    if (list.some((move) => move !== 0)) turnHead(stored, owner, head, list, rotation);
  });
}

function turnHead(stored: StoredHeads, owner: number, head: number, moves: Int32Array, rotation: KeyRotation): void {
  const { gpu, shape: { headDim } } = stored.options;
  const { turns, circle } = circleOf(moves, rotation);
  const list = gpu.borrowIdle(turns.byteLength), points = gpu.borrowIdle(Math.max(8, circle.byteLength));
  gpu.write(list, 0, turns);
  gpu.write(points, 0, circle);
  const most = Math.max(1, Math.min(MOST_GROUPS, Math.floor(AT_ONCE / headDim)));
  for (const piece of stored.pieces(head, most)) turnRows(stored, owner, piece, rotation, { list, points });
  gpu.giveBack(list);
  gpu.giveBack(points);
}

function turnRows(
  stored: StoredHeads,
  owner: number,
  { block, origin, first, count }: Piece,
  { pairs, rotated }: KeyRotation,
  { list, points }: { list: GpuBuffer; points: GpuBuffer },
): void {
  const { gpu, shape: { headDim }, type } = stored.options;
  const constants = { D: headDim, KIND: kindOf(type) }, turned = gpu.borrow(4 * count * headDim);
  const partner = pairs === "interleaved" ? 1 : rotated / 2;
  gpu.run(gpu.stage(ROWS, { entry: "turned", constants: { ...constants, ROTATED: rotated, PARTNER: partner } }), {
    params: [count, origin, 0, first],
    buffers: [block.keys, list, undefined, turned, points],
    groups: spread(count * headDim),
  });
  storeRows(stored.options, {
    parts: [[turned, block.keys]],
    ...{ count, heads: 1, firstHead: 0, owner, words: [origin + first * stored.stride] },
  });
  gpu.giveBack(turned);
}

/** For each row the number of its turn, and each turn's cosines and sines, `[turns, rotated / 2, 2]`; in float64. */
function circleOf(moves: Int32Array, { frequencies }: KeyRotation) {
  const numbers = new Map<number, number>(), points: number[] = [];
  const turns = Int32Array.from(moves, (move) => {
    const known = numbers.get(move);
    if (known !== undefined) return known;
    numbers.set(move, numbers.size);
    for (const frequency of frequencies) points.push(Math.cos(move * frequency), Math.sin(move * frequency));
    return numbers.size - 1;
  });
  return { turns, circle: Float32Array.from(points) };
}
