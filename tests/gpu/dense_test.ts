/** The dense stages against the plain loops, piece by piece, on models with every operation and every rotation. */
import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import { chosenOf } from "../../core/dense/operations.ts";
import { randomSource } from "../../core/measure/random.ts";
import { layerShape } from "../../core/shape.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import { listOf } from "../../gpu/dense/lists.ts";
import { DenseStages } from "../../gpu/dense/stages.ts";
import { GpuDevice } from "../../gpu/device.ts";
import { openDevice } from "../../gpu/open.ts";
import { createGpuTensors, type GpuTensor, type GpuTensors } from "../../gpu/tensors.ts";
import type { Dense } from "../../model/dense/dense.ts";
import { createGpuDense, type GpuDenseOptions } from "../../model/dense/gpu/engine.ts";
import { HostDense } from "../../model/dense/host.ts";
import { assertClose } from "../_helper/close.ts";
import { gpuTest } from "../_helper/gpu.ts";
import { plainDense } from "../_helper/plain_dense.ts";
import { openTiny, TINY_MODELS } from "../_helper/tiny_models.ts";

/** Largest difference over the largest magnitude: sums in another order; or factors of 11 bits, in three products. */
const TOLERANCES = { f32: 2e-5, f16: 4e-3 } as const;
/** One row, and more rows than a tile has. */
const COUNTS = [1, 18];
/** The first position. */
const FIRST = 5;

/** The device's tensors, read and freed. */
class Reader {
  readonly #tensors: GpuTensors;

  constructor(tensors: GpuTensors) {
    this.#tensors = tensors;
  }

  async take(tensor: GpuTensor): Promise<Float32Array> {
    const numbers = await this.#tensors.read(tensor);
    this.#tensors.free(tensor);
    return numbers;
  }
}

function noise(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next()) * 2 - 3);
}

async function assertSamePieces(
  [dense, tensors]: readonly [Dense<GpuTensor>, GpuTensors],
  plain: Dense<Float32Array>,
  count: number,
  tolerance: number,
): Promise<void> {
  const { width, vocabulary, layers } = dense.config, reader = new Reader(tensors), rows = noise(count * width, 7);
  const ids = Array.from({ length: count }, (_, i) => (i * 37) % vocabulary);
  assertClose(await reader.take(await dense.embed(ids)), await plain.embed(ids), 2e-7, "embeddings");
  const hidden = tensors.upload(rows.slice());
  for (let layer = 0; layer < layers; layer++) {
    const of = `of layer ${layer}, ${count} rows`, want = { unrotated: true };
    const got = await dense.project(layer, hidden, count, FIRST, want);
    const wanted = await plain.project(layer, rows, count, FIRST, want);
    for (const name of ["queries", "keys", "values", "unrotated"] as const) {
      assertClose(await reader.take(got[name]!), wanted[name]!, tolerance, `${name} ${of}`);
    }
    const { heads, headDim } = layerShape(dense.config, layer), attended = noise(count * heads * headDim, 11);
    const attention = tensors.upload(attended.slice());
    const next = await reader.take(await dense.finish(layer, hidden, attention, count, ids));
    assertClose(next, await plain.finish(layer, rows, attended, count, ids), tolerance, `finish ${of}`);
    tensors.free(attention);
  }
  const logits = await plain.logits(rows, count);
  assertClose(await reader.take(await dense.logits(hidden, count)), logits, tolerance, `logits, ${count} rows`);
  tensors.free(hidden);
}

/** Both forms of a model, and its device's tensors, of which none may be left. */
async function withModel(
  gpu: GpuDevice,
  model: typeof TINY_MODELS[number],
  options: GpuDenseOptions,
  body: (dense: Dense<GpuTensor>, plain: Dense<Float32Array>, tensors: GpuTensors) => Promise<void>,
): Promise<void> {
  const tensors = createGpuTensors(gpu);
  await using open = await openTiny(model);
  await using dense = await createGpuDense(open.file, open.config, gpu, tensors, options);
  await using plain = new HostDense(await plainDense(open.file, open.config));
  await body(dense, plain, tensors);
  assert.equal(tensors.alive, 0, "tensors were not freed");
}

for (const model of TINY_MODELS) {
  gpuTest(`the dense stages equal the plain loops on ${model}`, async (gpu) => {
    await withModel(gpu, model, { precision: "float32" }, async (dense, plain, tensors) => {
      for (const count of COUNTS) await assertSamePieces([dense, tensors], plain, count, TOLERANCES.f32);
    });
  }, { without: ["f16"] });
}

for (const model of ["qwen3-plain", "llama3-factors"] as const) {
  gpuTest(`the dense stages with 16-bit products equal the plain loops on ${model}, less exactly`, async (gpu) => {
    assert.ok(gpu.info.features.f16, "the device has no f16");
    await withModel(gpu, model, {}, async (dense, plain, tensors) => {
      assert.match(dense.detail, /16-bit/);
      for (const count of COUNTS) await assertSamePieces([dense, tensors], plain, count, TOLERANCES.f16);
    });
    await withModel(gpu, model, { precision: "float32" }, async (dense, plain, tensors) => {
      assert.doesNotMatch(dense.detail, /16-bit/);
      await assertSamePieces([dense, tensors], plain, 18, TOLERANCES.f32);
    });
  });
}

gpuTest(
  "matrices that a stage can't see as one are cut between rows, and lists over many rows between those",
  async (gpu) => {
    const largest = 4096;
    await withModel(gpu, "llama-biases", { largest }, async (dense, plain, tensors) => {
      await assertSamePieces([dense, tensors], plain, 5, TOLERANCES.f32);
      // Experts, too, and their stacks even within an expert, with their biases.
      for (const model of ["qwen3moe-plain", "gpt-oss-plain"] as const) {
        await withModel(gpu, model, { largest: 2000 }, async (experts, wanted, own) => {
          await assertSamePieces([experts, own], wanted, 3, TOLERANCES.f32);
        });
      }
      const narrow = { ...gpu.info, maxBinding: 4 * 7 * (dense.config.vocabulary + 8) };
      Object.assign(gpu, { info: narrow });
      const count = 18, rows = noise(count * dense.config.width, 3), hidden = tensors.upload(rows.slice());
      const { passes } = gpu.counts, logits = await dense.logits(hidden, count);
      assert.ok(gpu.counts.passes - passes >= 6, "three chunks of two stages at least");
      assertClose(await tensors.read(logits), await plain.logits(rows, count), TOLERANCES.f32, "logits in chunks");
      tensors.free(hidden);
      tensors.free(logits);
    });
  },
  { without: ["f16"] },
);

gpuTest("what no product reads is held as float16, or exactly where that is asked for", async (gpu) => {
  await withModel(gpu, "llama-iq", {}, async (half, plain, tensors) => {
    await assertSamePieces([half, tensors], plain, 1, 2e-3);
    await withModel(gpu, "llama-iq", { precision: "float32" }, (exact) => {
      assert.ok(half.weightBytes < 0.8 * exact.weightBytes, `${half.weightBytes} of ${exact.weightBytes} bytes`);
      return Promise.resolve();
    });
  });
}, { without: ["f16"] });

gpuTest(
  "a token's queries, keys and values are turned as late as they are looked at, by their own position",
  async (gpu) => {
    await withModel(gpu, "qwen3-plain", { precision: "float32" }, async (dense, plain, tensors) => {
      const row = noise(dense.config.width, 9), hidden = tensors.upload(row.slice()), reader = new Reader(tensors);
      using backend = createGpuBackend(gpu);
      const rows = backend.createRows(dense.config, 0, "f16");
      const product = await productsOf(gpu, dense, hidden, tensors), { passes } = gpu.counts;
      const first = await dense.project(0, hidden, 1, 3), second = await dense.project(0, hidden, 1, 700);
      rows.append(second.keys, second.values, 1);
      // Of the first the product and its turn, of the second the product and the stage that stores.
      assert.equal(gpu.counts.passes - passes, 2 * product + 2);
      for (const [got, at] of [[second, 700], [first, 3]] as const) {
        const want = await plain.project(0, row, 1, at);
        for (const name of ["queries", "keys", "values"] as const) {
          assertClose(await reader.take(got[name]), want[name], TOLERANCES.f32, `${name} at ${at}`);
        }
      }
      const want = await plain.project(0, row, 1, 700), { headDim } = dense.config;
      const { keys, values } = await rows.copyRows(1);
      assertClose(keys, want.keys.subarray(headDim, 2 * headDim), 1e-3, "stored keys");
      assertClose(values, want.values.subarray(headDim, 2 * headDim), 1e-3, "stored values");
      rows.free();
      tensors.free(hidden);
    });
  },
  { without: ["f16"] },
);

/** Stages of a product of queries, keys and values that nobody looks at. */
async function productsOf(gpu: GpuDevice, dense: Dense<GpuTensor>, hidden: GpuTensor, tensors: GpuTensors) {
  const { passes } = gpu.counts, made = await dense.project(0, hidden, 1, 0);
  for (const tensor of [made.queries, made.keys, made.values]) tensors.free(tensor);
  return gpu.counts.passes - passes;
}

gpuTest("tokens go to the experts of their largest numbers, the lower one among equals", async (gpu) => {
  const experts = 130, used = 5, tensors = createGpuTensors(gpu), rows = noise(3 * experts, 5);
  // Ties within and beyond a workgroup's 64 threads; and a row without any order.
  for (const i of [129, 3, 67, 64, 0, 65]) rows[experts + i] = 9;
  rows.fill(NaN, 2 * experts);
  const list = listOf([{ op: "choose", from: "x", to: "y", used }], { x: experts });
  const x = tensors.upload(rows.slice()), made = tensors.make(3 * 2 * used);
  new DenseStages(gpu, { normEpsilon: 0, f16: false }).run(list, { x: x.buffer }, 3, made.buffer);
  const got = await tensors.read(made);
  for (const t of [0, 1]) {
    const want = chosenOf(rows.subarray(t * experts, (t + 1) * experts), used), at = 2 * used * t;
    assert.deepEqual([...got.subarray(at, at + used)], want.experts);
    assertClose(got.subarray(at + used, at + 2 * used), want.shares, 1e-6, "shares");
  }
  assert.ok(
    got.subarray(4 * used, 5 * used).every((expert) => expert >= 0 && expert < experts),
    "experts that are there",
  );
  for (const tensor of [x, made]) tensors.free(tensor);
});

gpuTest("gates on the device are those of this side, gpt-oss's limited one among them", async (gpu) => {
  const half = 67, count = 3, tensors = createGpuTensors(gpu), rows = noise(2 * half * count, 4).map((x) => 4 * x);
  // Far beyond every limit, and where exponentials overflow.
  for (const [i, x] of [1e4, -1e4, 7, -7, 0].entries()) rows[i] = rows[half + 2 * i] = x;
  const x = tensors.upload(rows.slice());
  for (const activation of ["silu", "gelu", "limited"] as const) {
    const list = listOf([{ op: "gate", from: "x", to: "y", activation }], { x: 2 * half });
    const made = tensors.make(half * count), got = made.buffer;
    new DenseStages(gpu, { normEpsilon: 0, f16: false }).run(list, { x: x.buffer }, count, got);
    const want = Float32Array.from({ length: half * count }, (_, at) => {
      const i = 2 * half * Math.floor(at / half) + at % half, a = rows[i], b = rows[i + half];
      const most = Math.min(a, 7), up = Math.max(-7, Math.min(b, 7)) + 1;
      if (activation === "limited") return most / (1 + Math.exp(-1.702 * most)) * up;
      const inner = Math.sqrt(2 / Math.PI) * (a + 0.044715 * a ** 3);
      return (activation === "silu" ? a / (1 + Math.exp(-a)) : 0.5 * a * (1 + Math.tanh(inner))) * b;
    });
    const numbers = await tensors.read(made);
    want.forEach((y, i) => {
      const far = Math.abs(numbers[i] - y);
      assert.ok(far <= 1e-5 * Math.max(1, Math.abs(y)), `${activation}, ${i}: ${numbers[i]}, want ${y}`);
    });
    tensors.free(made);
  }
  tensors.free(x);
});

gpuTest("the choice is the lowest token of the largest logit, and shows a logit that is no number", async (gpu) => {
  await withModel(gpu, "llama-plain", {}, async (dense, plain, tensors) => {
    for (const seed of [1, 2, 3]) {
      const rows = noise(dense.config.width, seed), logits = await plain.logits(rows, 1);
      const hidden = tensors.upload(rows), { token, logit } = await dense.choose!(hidden);
      assert.equal(token, logits.indexOf(Math.max(...logits)));
      assert.ok(Math.abs(logit - logits[token]) < 1e-4);
      tensors.free(hidden);
    }
    const broken = tensors.upload(new Float32Array(dense.config.width).fill(NaN));
    assert.deepEqual(await dense.choose!(broken), { token: 0, logit: NaN });
    tensors.free(broken);
  });
});

gpuTest("what doesn't fit is refused by a RangeError, and so is everything after the end", async (gpu) => {
  const tensors = createGpuTensors(gpu);
  await using open = await openTiny("llama-plain");
  const dense = await createGpuDense(open.file, open.config, gpu, tensors);
  const { width, vocabulary, layers } = open.config, hidden = tensors.zeros(2 * width);
  for (const id of [vocabulary, -1, 0.5, NaN]) await assert.rejects(dense.embed([id]), RangeError);
  await assert.rejects(dense.project(0, hidden, 3, 0), RangeError);
  await assert.rejects(dense.project(layers, hidden, 2, 0), RangeError);
  await assert.rejects(dense.finish(0, hidden, hidden, 1), RangeError);
  await assert.rejects(dense.logits(hidden, 0), RangeError);
  await assert.rejects(dense.choose!(hidden), RangeError);
  assert.equal(tensors.alive, 1);
  const { bytes } = gpu.memory;
  assert.equal(dense.weightBytes > 0 && dense.weightBytes < bytes, true);
  await dense[Symbol.asyncDispose]();
  await dense[Symbol.asyncDispose]();
  assert.equal(gpu.memory.bytes, bytes - dense.weightBytes);
  await assert.rejects(dense.logits(hidden, 2), /disposed/);
  tensors.free(hidden);
});

gpuTest("loading tells its progress, stops between layers, and keeps nothing", async (gpu) => {
  const tensors = createGpuTensors(gpu), before = gpu.memory.bytes, stop = new AbortController();
  await using open = await openTiny("llama-plain");
  const seen: string[] = [], reason = new Error("stopped by the test");
  const onProgress = (done: number, total: number) => {
    seen.push(`${done}/${total}`);
    if (done === 1) stop.abort(reason);
  };
  await assert.rejects(
    createGpuDense(open.file, open.config, gpu, tensors, { onProgress, signal: stop.signal }),
    reason,
  );
  assert.deepEqual(seen, ["1/3"]);
  assert.equal(gpu.memory.bytes, before);
  const file = { ...open.file, tensors: open.file.tensors } as typeof open.file;
  file.readRaw = () => Promise.reject(new PalisadeError("input", "gguf.truncated", "cut off"));
  file.readFloat32 = (name, range) => open.file.readFloat32(name, range);
  await assert.rejects(createGpuDense(file, open.config, gpu, tensors), { code: "gguf.truncated" });
  assert.equal(gpu.memory.bytes, before);
});

gpuTest("memory that runs out at any buffer is told by its tensor, and nothing is kept", async () => {
  const opened = await openDevice(), failing = new FailingBuffers(opened.device);
  using gpu = new GpuDevice({ ...opened, device: failing.device });
  const tensors = createGpuTensors(gpu), before = gpu.memory.bytes, told = new Set<string>();
  await using open = await openTiny("llama-biases");
  let at = 0, held: Dense<GpuTensor> | undefined;
  while (!held) {
    failing.at = failing.made + ++at;
    held = await createGpuDense(open.file, open.config, gpu, tensors).catch((error) => {
      assert.ok(error instanceof PalisadeError && error.code === "gpu.memory" && error.kind === "resources");
      assert.match(error.message, /There is no room for .*: .*no memory left/);
      told.add(error.where);
      assert.equal(gpu.memory.bytes, before);
      return undefined;
    });
  }
  assert.ok(at > 10, `${at} buffers`);
  for (const name of ["output_norm", "token_embd", "blk.0.attn_q", "blk.1.ffn_down"]) {
    assert.ok(told.has(`${name}.weight`), `${name} is not among ${[...told]}`);
  }
  await held[Symbol.asyncDispose]();
  assert.equal(gpu.memory.bytes, before);
});

/** A device whose buffer number `at` finds no memory: it says so as devices do, when a scope ends. */
class FailingBuffers {
  made = 0;
  at = Infinity;
  readonly device: GPUDevice;
  readonly #scopes: GPUErrorFilter[] = [];
  #failed = false;

  constructor(device: GPUDevice) {
    this.device = new Proxy(device, {
      get: (target, name) => {
        if (name === "createBuffer") {
          return (wanted: GPUBufferDescriptor) => {
            if (++this.made === this.at) this.#failed = true;
            return target.createBuffer(wanted);
          };
        }
        if (name === "pushErrorScope") return (filter: GPUErrorFilter) => this.#push(target, filter);
        if (name === "popErrorScope") return () => this.#pop(target);
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  }

  #push(target: GPUDevice, filter: GPUErrorFilter): void {
    this.#scopes.push(filter);
    target.pushErrorScope(filter);
  }

  async #pop(target: GPUDevice): Promise<GPUError | null> {
    const tells = this.#scopes.pop() === "out-of-memory" && this.#failed;
    if (tells) this.#failed = false;
    const error = await target.popErrorScope();
    return tells ? { message: "no memory, the test says" } : error;
  }
}
