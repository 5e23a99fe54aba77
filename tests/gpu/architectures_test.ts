/** Models whose layers are of several kinds, on the device as on this side: what is kept, what is said, what goes on. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { layerShape } from "../../core/shape.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import type { GpuDevice } from "../../gpu/device.ts";
import { createGpuDense } from "../../model/dense/gpu/engine.ts";
import { extend } from "../../model/decode/extend.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { gpuTest, unhurried } from "../_helper/gpu.ts";
import { openTiny } from "../_helper/tiny_models.ts";

const MODELS = ["lfm2-plain", "gpt-oss-plain", "gemma4-shared", "gemma4-keys"] as const;
const HERE = { backend: "ts", dense: "wasm", precision: "float32", frame: "line" } as const;
/** Several chunks, the last of them short. */
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  2,
);
const CHUNK = 40;
const KEEP = "30%";
/**
 * What each evicts by. The values of gemma4 have norms alike, so that what layer-defensive floors at the mean is told apart
 * by the last bit alone.
 */
const policyOf = (model: typeof MODELS[number]) =>
  `${model.startsWith("gemma4") ? "snapkv" : "layer-defensive"}(window=8)`;
/** Tokens' own embeddings are decoded on this side between two layers, while the device may answer the first. */
const WAITS: Partial<Record<typeof MODELS[number], number>> = { "gemma4-shared": 3 };
/** As the models' tests have it; and of the same tokens on the same side. */
const LOGITS = 2e-3, FORK = 1e-4;
const QUESTION = "How many stakes?", ASKED = { maxTokens: 12, allowLoops: true } as const;

const path = (model: string) => fileURLToPath(new URL(`../data/models/${model}.gguf`, import.meta.url));

/** True positions of all that is held, `[layers][kvHeads]`. */
function positionsOf(cache: RaggedCache): number[][][] {
  const { shape } = cache;
  return Array.from({ length: shape.layers }, (_, layer) => {
    const { kvHeads } = layerShape(shape, layer);
    return Array.from({ length: kvHeads }, (_, head) => [...cache.positions(layer, head)]);
  });
}

/** Logits after a few tokens at once, and after three that come one by one. */
async function logitsOf({ dense }: Model, cache: RaggedCache): Promise<Float32Array[]> {
  const rows = [await extend(dense, cache, [3, 1, 4, 1, 5, 9])];
  for (const id of [2, 6, 5]) rows.push(await extend(dense, cache, [id]));
  return rows;
}

function assertSame(
  got: readonly Float32Array[],
  want: readonly Float32Array[],
  tolerance: number,
  what: string,
): void {
  assert.equal(got.length, want.length);
  for (const [i, row] of got.entries()) {
    assert.equal(row.length, want[i].length);
    const far = row.reduce((most, x, j) => Math.max(most, Math.abs(x - want[i][j])), 0);
    assert.ok(far <= tolerance, `${what}: ${i} differs by ${far}`);
  }
}

/** What a model keeps of the text, says to a question twice, and thinks of tokens, in the context and in a fork of it. */
async function life(model: Model, policy: string) {
  using context = await openContext(model, TEXT, { policy, keep: KEEP });
  const { cache } = context, kept = positionsOf(cache);
  const first = await context.ask(QUESTION, ASKED), second = await context.ask(QUESTION, ASKED);
  assert.deepEqual(second.ids, first.ids, "the second answer begins where the first did");
  assert.deepEqual(positionsOf(cache), kept);
  using fork = await cache.fork();
  const mark = cache.mark(), logits = await logitsOf(model, cache);
  cache.trim(mark);
  // Where a window layer's rows begin differs, and so does the order of sums.
  assertSame(await logitsOf(model, fork), logits, FORK, "a fork goes on as the context does");
  return { kept, ids: first.ids, logits };
}

/** A model on a device, in short chunks. */
async function onDevice(
  gpu: GpuDevice,
  name: typeof MODELS[number],
  body: (there: Model, here: Model) => Promise<void>,
) {
  await using here = await loadModel(path(name), await currentRuntime(), HERE);
  await using open = await openTiny(name);
  using backend = createGpuBackend(gpu);
  const options = { precision: "float32", chunk: CHUNK } as const;
  await using dense = await createGpuDense(open.file, open.config, gpu, backend.tensors, options);
  await body({ ...here, dense, backend }, here);
  assert.deepEqual([backend.tensors.alive, backend.memory().allocatedBytes], [0, 0], "nothing stays on the device");
}

for (const name of MODELS) {
  gpuTest(`${name} keeps, says and goes on as on this side, read in chunks`, async (gpu) => {
    await onDevice(gpu, name, async (there, here) => {
      const want = await life(here, policyOf(name)), got = await life(there, policyOf(name));
      assert.ok(want.kept[0][0].length > 0 && TEXT.length / CHUNK > 3);
      assert.deepEqual({ kept: got.kept, ids: got.ids }, { kept: want.kept, ids: want.ids });
      assertSame(got.logits, want.logits, LOGITS, "logits");
    });
  }, { without: ["f16"] });

  gpuTest(`${name} is read after ${WAITS[name] ?? 2} waits, and a token of it after one`, async (gpu) => {
    await onDevice(gpu, name, async (there) => {
      const before = gpu.counts.waits;
      using context = await unhurried(() => openContext(there, TEXT, { policy: policyOf(name), keep: KEEP }));
      assert.ok(gpu.counts.waits - before <= (WAITS[name] ?? 2), `${gpu.counts.waits - before} waits`);
      const { waits } = gpu.counts;
      await extend(there.dense, context.cache, [3]);
      assert.equal(gpu.counts.waits, waits + 1);
    });
  }, { without: ["f16"] });
}

gpuTest("auto takes the device for all of them", async () => {
  const judge = () => Promise.resolve({ taken: true, reason: "for a test" });
  for (const name of MODELS) {
    await using model = await loadModel(path(name), await currentRuntime(), { judge });
    assert.deepEqual([model.backend.name, model.dense.name], ["webgpu", "webgpu"]);
  }
});
