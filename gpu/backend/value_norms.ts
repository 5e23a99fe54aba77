/** Norms of values on their way through the output projection; see `core/measure/value_norms.ts`. */
import type { NormKind } from "../../core/policy/policy.ts";
import type { GpuBuffer } from "../device.ts";
import { tooLarge } from "../errors.ts";
import { NORMS } from "./shaders.ts";
import { GpuTensor } from "../tensors.ts";
import { kindOf } from "./stages.ts";
import type { Block, StoredHeads } from "./stored_heads.ts";

/** `[kvHeads, rows]`; `wo`: `[width, heads · headDim]`. @throws PalisadeError `gpu.limit`. */
export async function measureNorms(
  stored: StoredHeads,
  wo: Float32Array | GpuTensor,
  width: number,
  kind: NormKind,
): Promise<Float32Array> {
  const { gpu, shape: { kvHeads } } = stored.options, rows = stored.longest;
  if (rows === 0) return new Float32Array(0);
  const norms = gpu.borrow(4 * kvHeads * rows);
  for (const block of stored.blocks) {
    if (wo instanceof GpuTensor) normsOnDevice(stored, block, wo, width, kind, norms);
    else normsOfBlock(stored, block, wo, width, kind, norms);
  }
  const read = gpu.read(norms, 0, 4 * kvHeads * rows);
  gpu.giveBack(norms);
  return new Float32Array(await read);
}

/** With a projection that is on the device, all of which a stage can see. */
function normsOnDevice(
  stored: StoredHeads,
  { first, words, values }: Block,
  wo: GpuTensor,
  width: number,
  kind: NormKind,
  norms: GpuBuffer,
): void {
  const { gpu, shape: { heads, kvHeads, headDim }, type } = stored.options, group = heads / kvHeads;
  const constants = { D: headDim, KIND: kindOf(type), HEADS: heads, GROUP: group, NORM: kind === "l1" ? 1 : 2 };
  gpu.run(gpu.stage(NORMS, { constants }), {
    params: [width, stored.longest, first, first * group * headDim, ...words],
    buffers: [values, wo.buffer, norms],
    groups: [Math.ceil(stored.longest / 64), words.length],
  });
}

/** As many KV heads at a time as their part of the projection can be seen of. */
function normsOfBlock(
  stored: StoredHeads,
  block: Block,
  wo: Float32Array,
  width: number,
  kind: NormKind,
  norms: GpuBuffer,
): void {
  const { gpu, shape: { heads, kvHeads, headDim }, maxBinding } = stored.options, group = heads / kvHeads;
  const each = 4 * width * group * headDim, most = Math.floor(maxBinding / each);
  if (most === 0) throw tooLarge("The output projection of a head's group", each, maxBinding);
  for (let i = 0; i < block.words.length; i += most) {
    const words = block.words.slice(i, i + most), first = block.first + i;
    const part = columnsOf(wo, heads * headDim, first * group * headDim, words.length * group * headDim);
    const weights = gpu.borrowIdle(part.byteLength);
    gpu.write(weights, 0, part);
    const constants = { D: headDim, KIND: kindOf(stored.options.type), HEADS: words.length * group, GROUP: group };
    gpu.run(gpu.stage(NORMS, { constants: { ...constants, NORM: kind === "l1" ? 1 : 2 } }), {
      params: [width, stored.longest, first, 0, ...words],
      buffers: [block.values, weights, norms],
      groups: [Math.ceil(stored.longest / 64), words.length],
    });
    gpu.giveBack(weights);
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
