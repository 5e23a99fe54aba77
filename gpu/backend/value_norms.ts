/** Norms of values on their way through the output projection; see `core/measure/value_norms.ts`. */
import type { NormKind } from "../../core/policy/policy.ts";
import type { GpuBuffer } from "../device.ts";
import { NORMS } from "./shaders.ts";
import { GpuTensor } from "../tensors.ts";
import { checkSeen, kindOf } from "./stages.ts";
import { type Block, byHeads } from "./blocks.ts";
import type { StoredHeads } from "./stored_heads.ts";

/** `[kvHeads, rows]`; `wo`: `[width, heads · headDim]`. @throws PalisadeError `gpu.limit`. */
export async function measureNorms(
  stored: StoredHeads,
  wo: Float32Array | GpuTensor,
  width: number,
  kind: NormKind,
): Promise<Float32Array> {
  const { gpu, shape: { heads, kvHeads } } = stored.options, rows = stored.longest;
  if (rows === 0) return new Float32Array(0);
  checkSeen(gpu, "The norms of a layer's values", 4 * kvHeads * rows);
  const norms = gpu.borrow(4 * kvHeads * rows), call = { stored, width, kind, norms };
  for (const blocks of byHeads(stored.blocks)) {
    const { first, words } = blocks[0], all = { first, count: words.length };
    if (wo instanceof GpuTensor) normsOf(call, blocks, all, { buffer: wo.buffer, heads, first: 0 });
    else normsBySome(call, blocks, all, wo);
  }
  const read = gpu.read(norms, 0, 4 * kvHeads * rows);
  gpu.giveBack(norms);
  return new Float32Array(await read);
}

interface NormsCall {
  readonly stored: StoredHeads;
  readonly width: number;
  readonly kind: NormKind;
  readonly norms: GpuBuffer;
}

/** Some KV heads. */
interface Heads {
  readonly first: number;
  readonly count: number;
}

/** Columns of the projection: those of so many query heads, from KV head `first` on. */
interface Projection {
  readonly buffer: GpuBuffer;
  readonly heads: number;
  readonly first: number;
}

/** Norms of some heads of blocks that have the same ones. */
function normsOf(
  { stored, width, kind, norms }: NormsCall,
  blocks: readonly Block[],
  some: Heads,
  wo: Projection,
): void {
  const { gpu, shape: { heads, kvHeads, headDim }, type } = stored.options, group = heads / kvHeads;
  const constants = { D: headDim, KIND: kindOf(type), HEADS: wo.heads, GROUP: group, NORM: kind === "l1" ? 1 : 2 };
  const stage = gpu.stage(NORMS, { constants }), column = (some.first - wo.first) * group * headDim;
  for (const block of blocks) {
    const { from } = block, end = Math.min(block.to, stored.longest), at = some.first - block.first;
    if (from >= end) continue;
    gpu.run(stage, {
      params: [width, stored.longest, some.first, column, from, end, ...block.words.slice(at, at + some.count)],
      buffers: [block.values, wo.buffer, norms],
      groups: [Math.ceil((end - from) / 64), some.count],
    });
  }
}

/** The same with a projection of this side: as many KV heads at a time as a stage can see the columns of. */
function normsBySome(call: NormsCall, blocks: readonly Block[], { first, count }: Heads, wo: Float32Array): void {
  const { gpu, shape: { heads, kvHeads, headDim }, maxBinding } = call.stored.options, group = heads / kvHeads;
  const each = 4 * call.width * group * headDim, most = Math.max(1, Math.floor(maxBinding / each));
  checkSeen(gpu, "The output projection of a head's group", each);
  for (let i = 0; i < count; i += most) {
    const some = { first: first + i, count: Math.min(most, count - i) };
    const part = columnsOf(wo, heads * headDim, some.first * group * headDim, some.count * group * headDim);
    const buffer = gpu.borrowIdle(part.byteLength);
    gpu.write(buffer, 0, part);
    normsOf(call, blocks, some, { buffer, heads: some.count * group, first: some.first });
    gpu.giveBack(buffer);
  }
}

/** Columns `first … first + count` of a matrix with `inner` columns; the matrix itself where that is all. */
function columnsOf(matrix: Float32Array, inner: number, first: number, count: number): Float32Array<ArrayBuffer> {
  if (count === inner) return matrix as Float32Array<ArrayBuffer>;
  const part = new Float32Array(matrix.length / inner * count);
  for (let row = 0; row * inner < matrix.length; row++) {
    part.set(matrix.subarray(row * inner + first, row * inner + first + count), row * count);
  }
  return part;
}
