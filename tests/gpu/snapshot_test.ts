/** Snapshots that go from one backend to the other: saved here and restored on a device, and the reverse. */
import assert from "node:assert/strict";
import { CACHE_TYPES, type CacheType } from "../../core/cache/entry_type.ts";
import { createGpuBackend, type GpuBackend } from "../../gpu/backend/backend.ts";
import type { GpuDevice } from "../../gpu/device.ts";
import type { Context } from "../../model/context.ts";
import { extend } from "../../model/decode/extend.ts";
import { createGpuDense } from "../../model/dense/gpu/engine.ts";
import type { Model } from "../../model/model.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { gpuTest } from "../_helper/gpu.ts";
import {
  ASK,
  bytesSource,
  cacheContent,
  QUESTION,
  savedBytes,
  snapshotModel,
  TEXT as LONG,
} from "../_helper/snapshots.ts";
import { openTiny } from "../_helper/tiny_models.ts";

/** The device is emulated, so the text is short. */
const TEXT = LONG.slice(0, LONG.length / 2);
/** The same logits, as the models' tests have them. */
const LOGITS = 2e-3;
/** Rows that each side made for itself, against the largest number among them: what rounding may do in each type. */
const ROWS: Readonly<Record<string, number>> = { f32: 1e-4, f16: 2e-3, int8: 2 / 127 };
const EXACT = { without: ["f16"] } as const;

/** A model on this side, in WebAssembly, and the same on the device. */
async function bothSides(
  gpu: GpuDevice,
  name: "llama-plain" | "gemma3-windows" | "lfm2-plain",
  body: (here: Model, there: Model, device: GpuBackend) => Promise<void>,
): Promise<void> {
  using backend = createGpuBackend(gpu);
  await using open = await openTiny(name);
  await using dense = await createGpuDense(open.file, open.config, gpu, backend.tensors, { precision: "float32" });
  const engine = name === "lfm2-plain" ? "wasm" : "web";
  await using here = await snapshotModel(name, { backend: "wasm", dense: engine });
  await body(here, { ...here, dense, backend }, backend);
  assert.deepEqual([backend.tensors.alive, backend.memory().allocatedBytes], [0, 0], "nothing stays on the device");
}

/** What a context would say next after a few tokens. */
async function logitsOf({ dense }: Model, { cache }: Context): Promise<Float32Array> {
  const mark = cache.mark(), logits = await extend(dense, cache, [3, 1, 4, 1, 5]);
  cache.trim(mark);
  return logits;
}

/** The largest difference of two lists of numbers. */
function farthest(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i] - b[i]));
  return most;
}

/** Read by one model, restored by the other: every row bit by bit, the same answer, the same logits but for rounding. */
async function crosses(from: Model, to: Model, options: ContextOptions, title: string): Promise<void> {
  using context = await openContext(from, TEXT, options);
  const { ids } = await context.ask(QUESTION, ASK), bytes = await savedBytes(context);
  using restored = await to.restore(bytesSource(bytes), { maxCache: options.maxCache });
  assert.deepEqual(await cacheContent(restored), await cacheContent(context), `${title}: rows`);
  assert.equal(restored.reused, context.tokens);
  const far = farthest(await logitsOf(from, context), await logitsOf(to, restored));
  assert.ok(far <= LOGITS, `${title}: logits differ by ${far}`);
  assert.deepEqual((await restored.ask(QUESTION, ASK)).ids, ids, `${title}: answer`);
  // And back again, as a file of the other side.
  using back = await from.restore(bytesSource(await savedBytes(restored)), { maxCache: options.maxCache });
  assert.deepEqual(await cacheContent(back), await cacheContent(context), `${title}: rows that came back`);
}

gpuTest(
  "a snapshot saved here answers alike on the device, and one saved there here, in every type of rows",
  async (gpu) => {
    await bothSides(gpu, "llama-plain", async (here, there) => {
      for (const cacheType of CACHE_TYPES) {
        const options = { policy: "layer-defensive", keep: "30%", cacheType };
        await crosses(here, there, options, `${cacheType}, to the device`);
        await crosses(there, here, options, `${cacheType}, from the device`);
      }
      const others: [string, ContextOptions][] = [
        ["rows of another type", { policy: "snapkv(rows=int8)", keep: "50%" }],
        ["biases", { policy: "kvzip", refit: "both", keep: "30%" }],
        ["moved positions", { policy: "defensive", keep: "30%", positions: "rerotate" }],
        ["a gate's scores", { policy: "defensive", maxCache: { tokens: 40, rule: "gate" } }],
        ["certificates", { policy: "defensive", keep: "40%", explain: true }],
      ];
      for (const [title, options] of others) {
        await crosses(here, there, options, `${title}, to the device`);
        await crosses(there, here, options, `${title}, from the device`);
      }
    });
  },
  EXACT,
);

gpuTest("snapshots of a model with window layers go both ways", async (gpu) => {
  await bothSides(gpu, "gemma3-windows", async (here, there) => {
    await crosses(here, there, { policy: "snapkv", keep: "50%", cacheType: "f16" }, "to the device");
    await crosses(there, here, { policy: "snapkv", keep: "50%", cacheType: "f16" }, "from the device");
  });
}, EXACT);

gpuTest("a snapshot of a model that convolves goes from the device to this side and back", async (gpu) => {
  await bothSides(gpu, "lfm2-plain", async (here, there) => {
    await crosses(there, here, { policy: "snapkv", keep: "50%", cacheType: "f16" }, "from the device");
  });
}, EXACT);

gpuTest("rows that each side made for itself are the same but for rounding, in every type", async (gpu) => {
  await bothSides(gpu, "llama-plain", async (here, there) => {
    for (const cacheType of CACHE_TYPES) {
      const made: Awaited<ReturnType<typeof rowsRead>>[] = [];
      for (const model of [here, there]) made.push(await rowsRead(model, here, cacheType));
      const [ours, theirs] = made;
      assert.equal(ours.length, theirs.length);
      ours.forEach(({ keys, values, positions }, i) => {
        assert.deepEqual(positions, theirs[i].positions);
        for (const [mine, other] of [[keys, theirs[i].keys], [values, theirs[i].values]]) {
          const largest = farthest(mine, new Float32Array(mine.length)), far = farthest(mine, other);
          assert.ok(far <= ROWS[cacheType] * largest, `${cacheType}, list ${i}: ${far} of ${largest}`);
        }
      });
    }
  });
}, EXACT);

/** All rows of a text, read by `model`, as `reader` restores them. */
async function rowsRead(model: Model, reader: Model, cacheType: CacheType) {
  using context = await openContext(model, TEXT, { policy: "full", cacheType });
  using restored = await reader.restore(bytesSource(await savedBytes(context)));
  return (await cacheContent(restored)).content;
}

gpuTest("what the device can't hold is refused with the reason, and nothing of it stays there", async (gpu) => {
  await bothSides(gpu, "llama-plain", async (here, there, device) => {
    using context = await openContext(there, TEXT, { policy: "knorm", keep: "30%" });
    const before = await context.ask(QUESTION, ASK), held = device.memory().allocatedBytes;
    const cases: [ContextOptions, string, RegExp][] = [
      [{ policy: "snapkv", cacheType: "int4" }, "cache-type.backend", /webgpu backend has no rows of type int4/],
      [{ policy: "snapkv(rows=int4)" }, "cache-type.backend", /webgpu backend has no rows of type int4/],
      [{ policy: 'snapkv(rows="k=int8,v=int4")' }, "cache-type.backend", /no rows of type k=int8,v=int4/],
      [
        { policy: "snapkv", keyChannels: "60%" },
        "snapshot.backend",
        /channels left out, which the webgpu backend can't/,
      ],
      [{ policy: "fasa(entries=48)" }, "snapshot.backend", /which the webgpu backend can't/],
    ];
    for (const [options, code, message] of cases) {
      using read = await openContext(here, TEXT, { keep: "50%", ...options });
      const restored = there.restore(bytesSource(await savedBytes(read)));
      await assert.rejects(restored, { name: "PalisadeError", code, message }, JSON.stringify(options));
      assert.equal(device.memory().allocatedBytes, held, JSON.stringify(options));
    }
    assert.deepEqual((await context.ask(QUESTION, ASK)).ids, before.ids);
  });
}, EXACT);
