/** Tensors mean the same on this side and on a device. */
import assert from "node:assert/strict";
import { ReusedTensors } from "../../core/backend/reused_tensors.ts";
import { HOST_TENSORS, readPart, Temporaries, type Tensor, type Tensors } from "../../core/backend/tensor.ts";
import { AwkwardMemory } from "../_helper/awkward_device.ts";

const KINDS: Record<string, () => Tensors> = {
  "on this side": () => HOST_TENSORS,
  "on this side, used again": () => new ReusedTensors(),
  "on an awkward device": () => new AwkwardMemory().tensors,
};

for (const [where, make] of Object.entries(KINDS)) {
  Deno.test(`tensors ${where} are uploaded, copied into each other and read`, async () => {
    const tensors = make();
    const from = tensors.upload(Float32Array.of(1, 2, 3, 4, 5)), to = tensors.zeros(4);
    assert.deepEqual([from.length, from.byteLength, to.length, tensors.zeros(0).length], [5, 20, 4, 0]);
    assert.deepEqual(await tensors.read(to), new Float32Array(4));
    tensors.copy(from, 1, 3, to, 1);
    tensors.copy(from, 5, 0, to, 4);
    assert.deepEqual(await tensors.read(to), Float32Array.of(0, 2, 3, 4));
    assert.deepEqual(await readPart(tensors, from, 3, 2), Float32Array.of(4, 5));
    assert.deepEqual(await tensors.read(from), Float32Array.of(1, 2, 3, 4, 5));
  });

  Deno.test(`tensors ${where} refuse ranges that don't fit`, () => {
    const tensors = make(), from = tensors.zeros(4), to = tensors.zeros(2);
    for (
      const [start, count, at] of [[3, 2, 0], [-1, 1, 0], [0, -1, 0], [NaN, 1, 0], [0, 3, 0], [0, 1, 2], [0, 1, -1]]
    ) {
      assert.throws(() => tensors.copy(from, start, count, to, at), RangeError, `${start}, ${count}, ${at}`);
    }
  });
}

Deno.test("Temporaries frees what it holds once, whatever happens, and can be used again", async () => {
  const memory = new AwkwardMemory(), { tensors } = memory, held: Tensor[] = [];
  const work = () => {
    using temporaries = new Temporaries(tensors);
    held.push(temporaries.add(tensors.zeros(3)), temporaries.add(tensors.zeros(0)));
    assert.equal(memory.alive, 2);
    throw new Error("in the middle");
  };
  assert.throws(work, /in the middle/);
  assert.equal(memory.alive, 0);
  for (const tensor of held) assert.throws(() => tensors.free(tensor), /freed/);
  const temporaries = new Temporaries(tensors);
  temporaries[Symbol.dispose]();
  temporaries.add(tensors.zeros(1));
  temporaries[Symbol.dispose]();
  temporaries[Symbol.dispose]();
  await assert.rejects(readPart(tensors, tensors.zeros(2), 1, 2), RangeError);
  assert.equal(memory.alive, 1, "the part that was made for it is gone");
});

/** Numbers from which on an array is used again. */
const LARGE = 4096;

Deno.test("an array that was freed comes again as zeros, once however often it is freed, where the length is the same", () => {
  const tensors = new ReusedTensors(), first = tensors.zeros(LARGE).fill(1), small = tensors.zeros(LARGE - 1);
  for (const tensor of [first, first, small]) tensors.free(tensor);
  assert.notEqual(tensors.zeros(LARGE + 1), first);
  assert.notEqual(tensors.zeros(LARGE - 1), small, "small ones are not kept");
  const again = tensors.zeros(LARGE);
  assert.equal(again, first);
  assert.deepEqual(again, new Float32Array(LARGE));
  assert.notEqual(tensors.zeros(LARGE), first, "it is in use");
});

Deno.test("room is such an array as it was left", () => {
  const tensors = new ReusedTensors(), first = tensors.room(LARGE).fill(1);
  assert.notEqual(tensors.room(LARGE), first);
  tensors.free(first);
  const again = tensors.room(LARGE);
  assert.equal(again, first);
  assert.equal(again[LARGE - 1], 1);
  assert.equal(tensors.room(0).length, 0);
});

Deno.test("an array that somebody has read, or uploaded, is never used again", async () => {
  const tensors = new ReusedTensors(), read = tensors.zeros(LARGE), uploaded = tensors.upload(new Float32Array(LARGE));
  await tensors.read(read);
  for (const tensor of [read, uploaded]) tensors.free(tensor);
  const next = tensors.zeros(LARGE);
  assert.ok(next !== read && next !== uploaded);
});

Deno.test("at most six free arrays of a length are kept, and 48 MiB in all", () => {
  const tensors = new ReusedTensors(), alike = Array.from({ length: 7 }, () => tensors.zeros(LARGE));
  for (const tensor of alike) tensors.free(tensor);
  const again = alike.map(() => tensors.zeros(LARGE));
  assert.equal(again.filter((tensor) => alike.includes(tensor)).length, 6);
  const lengths = Array.from({ length: 49 }, (_, i) => (1 << 18) - i), all = lengths.map((n) => tensors.zeros(n));
  for (const tensor of all) tensors.free(tensor);
  assert.deepEqual(lengths.map((n) => all.includes(tensors.zeros(n))), [false, ...Array(48).fill(true)]);
});
