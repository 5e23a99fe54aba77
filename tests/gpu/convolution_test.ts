/** The stages of layers that convolve, against the loops of this side. */
import assert from "node:assert/strict";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import type { Backend, LayerRows } from "../../core/backend/interface.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import { listOf } from "../../gpu/dense/lists.ts";
import { DenseStages } from "../../gpu/dense/stages.ts";
import { createGpuTensors } from "../../gpu/tensors.ts";
import { ConvolvedRows } from "../../model/decode/convolution.ts";
import { assertClose } from "../_helper/close.ts";
import { gpuTest } from "../_helper/gpu.ts";

/** Sums of a few products in float32. */
const TOLERANCE = 1e-6;

function floats(count: number, seed: number): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => random() * 2 - 1);
}

/** A backend and rows of it. */
type Side = readonly [Backend, LayerRows];

/** Appends `count` rows, and gives the convolution of these. */
async function step([{ tensors }, rows]: Side, taps: Float32Array, count: number, seed: number): Promise<Float32Array> {
  const { heads, kvHeads, headDim } = rows.shape, each = [kvHeads, kvHeads, heads];
  const made = each.map((some, i) => tensors.upload(floats(count * some * headDim, seed + i)));
  rows.append(made[0], made[1], count);
  const { output } = await new ConvolvedRows(rows, tensors, taps).decodeAttention(made[2], count);
  const numbers = await tensors.read(output);
  for (const tensor of [...made, output]) tensors.free(tensor);
  return numbers;
}

const tapsOf = ({ heads, headDim }: AttentionShape, each: number) => floats(heads * headDim * each, each);

gpuTest("a convolution over rows of the device is that of this side, whatever was let go of", async (gpu) => {
  using plain = createReferenceBackend();
  // Two heads of the second shape share a buffer, the third has its own; those of the last have one for each page.
  const two = 2 * 4 * 192 * 33, page = 4 * 64 * 33;
  for (
    const [kvHeads, headDim, each, maxBinding] of [[1, 1, 2, two], [3, 33, 3, two], [2, 64, 5, two], [2, 33, 5, page]]
  ) {
    const shape = { heads: 2 * kvHeads, kvHeads, headDim, reach: each }, taps = tapsOf(shape, each);
    using device = createGpuBackend(gpu, { maxBinding });
    let sides: Side[] = [plain as Backend, device as Backend].map((side) => [side, side.createRows(shape, 0)]);
    const steps = async (count: number, seed: number) => {
      const [want, got] = [await step(sides[0], taps, count, seed), await step(sides[1], taps, count, seed)];
      assertClose(got, want, TOLERANCE, `${kvHeads} heads of ${headDim}, ${each} taps, ${count} rows`);
    };
    // Fewer rows than taps, one token, several; then what a mark trims, what a window lets go of, and a fork.
    for (const [seed, count] of [1, 1, 70, 1, 3].entries()) await steps(count, 10 * seed);
    const before = gpu.counts.waits;
    for (const [, rows] of sides) rows.truncate(Array(kvHeads).fill(72));
    await steps(2, 60);
    assert.equal(gpu.counts.waits - before, 1, "nothing but the numbers that the test reads is waited for");
    for (const [, rows] of sides) {
      rows.compact(
        Array.from({ length: kvHeads }, () => Int32Array.from({ length: each - 1 }, (_, i) => 74 - each + 1 + i)),
      );
    }
    await steps(1, 70);
    const forks: Side[] = [];
    for (const [side, rows] of sides) forks.push([side, await rows.clone()]);
    await steps(1, 80);
    for (const [, rows] of sides) rows.free();
    sides = forks;
    await steps(4, 90);
    for (const [, rows] of sides) rows.free();
    assert.deepEqual([device.tensors.alive, device.memory().allocatedBytes], [0, 0]);
  }
});

gpuTest("a convolution that doesn't fit its rows is refused", async (gpu) => {
  using device = createGpuBackend(gpu);
  const shape = { heads: 4, kvHeads: 2, headDim: 3 }, { tensors } = device, rows = device.createRows(shape, 0);
  const [keys, queries] = [tensors.zeros(2 * 6), tensors.zeros(2 * 12)];
  rows.append(keys, keys, 2);
  await assert.rejects(rows.convolve!(queries, 2, new Float32Array(11)), /taps have 11 floats/);
  await assert.rejects(rows.convolve!(queries, 1, tapsOf(shape, 3)), /queries have 24 floats/);
  const many = tensors.zeros(3 * 12);
  await assert.rejects(rows.convolve!(many, 3, tapsOf(shape, 3)), RangeError);
  rows.truncate([2, 1]);
  const one = tensors.zeros(12);
  await assert.rejects(rows.convolve!(one, 1, tapsOf(shape, 3)), /different lengths/);
  for (const tensor of [keys, queries, many, one]) tensors.free(tensor);
  rows.free();
  await assert.rejects(rows.convolve!(queries, 2, tapsOf(shape, 3)), /freed/);
  // Rows that are rounded hold keys and values, and so do those of other heads.
  assert.equal(device.createRows(shape, 0, "f16").convolve, undefined);
  assert.equal(device.createRows({ ...shape, heads: 2 }, 0).convolve, undefined);
});

gpuTest("what is coupled takes the place of both on the device", async (gpu) => {
  const first = 5, span = 67, width = first + 2 * span, count = 3, tensors = createGpuTensors(gpu);
  const list = listOf([{ op: "couple", from: "x", to: "y", first, width: span }], { x: width });
  const rows = floats(count * width, 3), x = tensors.upload(rows.slice()), made = tensors.make(count * (first + span));
  new DenseStages(gpu, { normEpsilon: 0, f16: false }).run(list, { x: x.buffer }, count, made.buffer);
  const want = Float32Array.from({ length: made.length }, (_, at) => {
    const i = at % (first + span), own = Math.floor(at / (first + span)) * width + i;
    return i < first ? rows[own] : rows[own] * rows[own + span];
  });
  assert.deepEqual(await tensors.read(made), want);
  for (const tensor of [x, made]) tensors.free(tensor);
});
