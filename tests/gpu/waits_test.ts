/** How often a device is waited for while a text is read: what `docs/webgpu.md` says, counted. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import type { GpuDevice } from "../../gpu/device.ts";
import { createGpuDense } from "../../model/dense/gpu/engine.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { keyedGate, randomGate } from "../_helper/gate.ts";
import { gpuTest, unhurried } from "../_helper/gpu.ts";
import { openTiny } from "../_helper/tiny_models.ts";

const MODEL = "smollm3-plain", LAYERS = 5;
const PATH = fileURLToPath(new URL(`../data/models/${MODEL}.gguf`, import.meta.url));
const HERE = { backend: "ts", dense: "wasm", precision: "float32", frame: "line" } as const;
/** Three chunks, the last of them short. */
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  3,
);
const TOKENS = 156, CHUNK = 64, CHUNKS = 3;

interface Reading {
  readonly waits: number;
  /** True positions of what is kept, by layer and head. */
  readonly kept: readonly (readonly number[])[];
}

/** One reading by each policy, of which so many layers may wait for their eviction while later ones are read. */
async function readings(gpu: GpuDevice, policies: readonly string[], layers: number): Promise<Reading[]> {
  await using here = await loadModel(PATH, await currentRuntime(), HERE);
  await using open = await openTiny(MODEL);
  using backend = createGpuBackend(gpu);
  const options = { precision: "float32", chunk: CHUNK, waitingRows: layers * TOKENS } as const;
  await using dense = await createGpuDense(open.file, open.config, gpu, backend.tensors, options);
  const model: Model = { ...here, dense, backend, gate: () => Promise.resolve(randomGate(here.config)) };
  const all: Reading[] = [];
  for (const policy of policies) {
    const before = gpu.counts.waits;
    using context = await unhurried(() => openContext(model, TEXT, { policy, keep: "20%" }));
    const { waits } = gpu.counts, { cache, tokens } = context;
    assert.deepEqual([tokens, cache.shape.layers], [TOKENS, LAYERS]);
    const heads = Array.from({ length: LAYERS * cache.shape.kvHeads }, (_, i) => i);
    const kept = heads.map((i) => [...cache.positions(Math.floor(i / cache.shape.kvHeads), i % cache.shape.kvHeads)]);
    all.push({ waits: waits - before, kept });
  }
  return all;
}

/** What such a policy asks is answered together: the gate's scores of all chunks, a window's attention, norms, rows. */
const ONCE = ["layer-defensive", "snapkv", "tova", "gate", "keydiff"];

gpuTest(
  "layers that can't wait for their eviction are waited for once each, however many chunks there are",
  async (gpu) => {
    const together = await readings(gpu, ONCE, LAYERS), alone = await readings(gpu, ONCE, 0);
    for (const [i, policy] of ONCE.entries()) {
      // Beside the layers, the last hidden state.
      assert.equal(alone[i].waits, LAYERS + 1, policy);
      assert.equal(together[i].waits, 2, policy);
      assert.deepEqual(alone[i].kept, together[i].kept, `${policy} keeps the same`);
    }
    const [full] = await readings(gpu, ["full"], 0);
    assert.equal(full.waits, 1);
  },
  { without: ["f16"] },
);

gpuTest("layers may wait in part, and the first of them are waited for together", async (gpu) => {
  const [whole] = await readings(gpu, ["snapkv"], 0);
  for (let layers = 1; layers <= LAYERS; layers++) {
    const [snapkv] = await readings(gpu, ["snapkv"], layers);
    // How many of the later ones share a wait hangs on how fast the device is.
    assert.ok(snapkv.waits <= LAYERS - layers + 2, `${layers} may wait: ${snapkv.waits} waits`);
    assert.deepEqual(snapkv.kept, whole.kept, `${layers} may wait`);
  }
}, { without: ["f16"] });

gpuTest("column sums and statistics of queries are waited for with each chunk of each layer", async (gpu) => {
  const policies = ["h2o", "expected-attention"];
  const [together, alone] = [await readings(gpu, policies, LAYERS), await readings(gpu, policies, 0)];
  const chunks = CHUNKS * LAYERS;
  // h2o asks nothing more of a layer; expected-attention asks for norms of values.
  assert.deepEqual(together.map(({ waits }) => waits), [chunks + 1, chunks + 2]);
  assert.deepEqual(alone.map(({ waits }) => waits), [chunks + 1, chunks + LAYERS + 1]);
}, { without: ["f16"] });

gpuTest("a gate that looks at keys keeps on the device what it keeps here", async (gpu) => {
  await using here = await loadModel(PATH, await currentRuntime(), HERE);
  await using open = await openTiny(MODEL);
  using backend = createGpuBackend(gpu);
  for (const waitingRows of [0, LAYERS * TOKENS]) {
    const options = { precision: "float32", chunk: CHUNK, waitingRows } as const;
    await using dense = await createGpuDense(open.file, open.config, gpu, backend.tensors, options);
    const there: Model = { ...here, dense, backend }, gate = keyedGate(here.config);
    const kept = async (model: Model) => {
      using context = await openContext(model, TEXT, { policy: "gate", keep: "20%", gate });
      return Array.from({ length: LAYERS }, (_, layer) => [...context.cache.positions(layer, 0)]);
    };
    assert.deepEqual(await kept(there), await kept(here));
  }
}, { without: ["f16"] });
