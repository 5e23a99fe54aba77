/** Whole models on a device: logits, what comes back, what is held, and answers. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { createGpuBackend, type GpuBackend } from "../../gpu/backend/backend.ts";
import type { GpuCounts, GpuDevice } from "../../gpu/device.ts";
import type { GpuTensor } from "../../gpu/tensors.ts";
import type { Dense } from "../../model/dense/dense.ts";
import { createGpuDense, type GpuDenseOptions } from "../../model/dense/gpu/engine.ts";
import { TokensAhead } from "../../model/decode/ahead.ts";
import { extend, extendByOne } from "../../model/decode/extend.ts";
import { createSampler } from "../../model/decode/sampler.ts";
import { loadModel, type LoadOptions, type Model } from "../../model/model.ts";
import { type Context, openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { randomGate } from "../_helper/gate.ts";
import { gpuTest, unhurried } from "../_helper/gpu.ts";
import { openTiny, TINY_MODELS } from "../_helper/tiny_models.ts";
import { PROSE } from "../_helper/workbench.ts";

type TinyModel = typeof TINY_MODELS[number];

const data = (name: string) => fileURLToPath(new URL(`../data/models/${name}`, import.meta.url));

interface Expected {
  readonly ids: number[];
  readonly positions: number[];
  readonly logits: number[][];
}

async function expected(model: TinyModel): Promise<Expected> {
  return JSON.parse(await readFile(data(`${model}.logits.json`), "utf8"));
}

interface OnGpu {
  readonly dense: Dense<GpuTensor>;
  readonly backend: GpuBackend;
}

/** A model on the device, of which nothing is left afterwards. */
async function onGpu(
  gpu: GpuDevice,
  model: TinyModel,
  options: GpuDenseOptions,
  body: (held: OnGpu) => Promise<void>,
): Promise<void> {
  const { bytes, spare } = gpu.memory;
  {
    using backend = createGpuBackend(gpu);
    await using open = await openTiny(model);
    await using dense = await createGpuDense(open.file, open.config, gpu, backend.tensors, options);
    await body({ dense, backend });
    assert.equal(backend.tensors.alive, 0, "tensors were not freed");
  }
  assert.equal(gpu.memory.bytes - gpu.memory.spare, bytes - spare, "the device holds something of the model");
}

function difference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  return Array.from(a, (x, i) => Math.abs(x - b[i])).reduce((most, each) => Math.max(most, each));
}

for (const model of TINY_MODELS) {
  gpuTest(`${model} on the device gives the logits of transformers`, async (gpu) => {
    const { ids, positions, logits } = await expected(model);
    await onGpu(gpu, model, { precision: "float32" }, async ({ dense, backend }) => {
      // All at once, and the last token by itself.
      const last = positions.length - 1, length = positions[last] + 1;
      using cache = new RaggedCache(backend, dense.config);
      const first = await extend(dense, cache, ids.slice(0, positions[0] + 1));
      assert.ok(difference(first, logits[0]) <= 2e-3, `position ${positions[0]}`);
      if (length > positions[0] + 2) await extend(dense, cache, ids.slice(positions[0] + 1, length - 1));
      const token = await extend(dense, cache, ids.slice(length - 1, length));
      assert.ok(difference(token, logits[last]) <= 2e-3, `position ${length - 1}: ${difference(token, logits[last])}`);
    });
  }, { without: ["f16"] });
}

/** What a piece of work cost. */
async function counted(gpu: GpuDevice, work: () => Promise<unknown>): Promise<Omit<GpuCounts, "bound">> {
  const before = gpu.counts;
  await unhurried(work);
  const { passes, submits, waits } = gpu.counts;
  return { passes: passes - before.passes, submits: submits - before.submits, waits: waits - before.waits };
}

/** The names of the stages that run, in order. */
function watch(gpu: GpuDevice): string[] {
  const seen: string[] = [], { run } = gpu;
  gpu.run = (stage, call) => {
    seen.push(stage.name.replace(/^.*\//, "").replace(/\.wgsl.*, /, " "));
    run.call(gpu, stage, call);
  };
  return seen;
}

/** One layer of a token, where q, k and v have one type. */
const LAYER = [
  // q, k and v of the normed hidden state, with their biases; RoPE while keys and values are stored.
  ...["multiply one_row", "store turned"],
  // Attention over all that is kept.
  ...["attention attend"],
  // Output projection added to the hidden state; gate and up of its norm; down of the gated, added.
  ...["multiply one_row", "multiply one_row", "multiply one_row"],
];

gpuTest("a token of an answer is one batch and one wait, and its stages are the plan's", async (gpu) => {
  await onGpu(gpu, "smollm3-plain", {}, async ({ dense, backend }) => {
    using cache = new RaggedCache(backend, dense.config);
    const greedy = createSampler(), layers = Array.from({ length: dense.config.layers }, () => LAYER).flat();
    const plan = ["multiply embed", ...layers, "multiply one_row", "choose parts", "choose whole"];
    let id = await extendByOne(dense, cache, [1, 2, 3, 4, 5, 6, 7], greedy);
    const stages = watch(gpu);
    for (let i = 0; i < 3; i++) {
      stages.length = 0;
      const counts = await counted(gpu, async () => id = await extendByOne(dense, cache, [id], greedy));
      assert.deepEqual(counts, { passes: plan.length, submits: 1, waits: 1 });
    }
    console.log(`A token of ${dense.config.layers} layers: ${stages.join(", ")}`);
    assert.deepEqual(stages, plan);
  });
}, { without: ["f16"] });

gpuTest(
  "tokens computed ahead are those that come one by one, are waited for together, and leave no trace",
  async (gpu) => {
    await onGpu(gpu, "llama-plain", {}, async ({ dense, backend }) => {
      using cache = new RaggedCache(backend, dense.config);
      const greedy = createSampler(), asked = [1, 2, 3, 4, 5], mark = cache.mark(), wanted: number[] = [];
      for (let next = asked; wanted.length < 22; next = wanted.slice(-1)) {
        wanted.push(await extendByOne(dense, cache, next, greedy));
      }
      cache.trim(mark);
      const tokens = new TokensAhead(dense, cache, greedy, { longest: Infinity }), got = [await tokens.first(asked)];
      const taken = async (count: number) => {
        while (got.length < count) got.push(await tokens.next(got[got.length - 1], 100));
      };
      // One, then two, and while these are waited for two more; four, eight, sixteen behind those.
      const { waits } = await counted(gpu, () => taken(1 + 15));
      assert.ok(waits <= 5, `${waits} waits`);
      assert.equal(cache.position, asked.length + (1 + 2 + 2 + 4 + 8) + 16);
      await taken(22);
      assert.deepEqual(got, wanted);
      assert.equal(tokens.position, asked.length + got.length - 1);
      assert.equal(cache.position, asked.length + 17 + 16 + 16, "sixteen more than those of which four were taken");
      await tokens.end();
      assert.equal(cache.position, tokens.position);
      assert.equal(cache.length(0, 0), cache.position);
      await taken(23);
      const { bound } = gpu.counts;
      await taken(23 + 16);
      await tokens.end();
      assert.ok(gpu.counts.bound - bound <= 100, `${gpu.counts.bound - bound} groups of buffers in sixteen tokens`);
      // No more are computed than will be wanted, and none for whoever stopped.
      const { position } = cache;
      await tokens.next(got[38], 3);
      assert.equal(cache.position, position + 3);
      const stopped = new TokensAhead(dense, cache, greedy, { signal: AbortSignal.abort(new Error("enough")) });
      await assert.rejects(stopped.next(got[38], 3), /enough/);
      await tokens.end();
    });
  },
  { without: ["f16"] },
);

gpuTest("the device gives the output projection that the file has, and nothing for what it rounded", async (gpu) => {
  await onGpu(gpu, "qwen3-plain", {}, async ({ dense, backend }) => {
    await using open = await openTiny("qwen3-plain");
    const held = (await dense.outputWeights!(1))!, wanted = await open.file.readFloat32("blk.1.attn_output.weight");
    assert.ok(difference(await backend.tensors.read(held), wanted) <= 1e-6);
    backend.tensors.free(held);
    await assert.rejects(dense.outputWeights!(99), RangeError);
  });
  await onGpu(gpu, "llama-iq", {}, async ({ dense, backend }) => {
    await using open = await openTiny("llama-iq");
    for (let layer = 0; layer < dense.config.layers; layer++) {
      const { type } = open.file.tensors.get(`blk.${layer}.attn_output.weight`)!;
      const held = await dense.outputWeights!(layer);
      assert.equal(held !== undefined, type.kernel === true, `${type.name} of layer ${layer}`);
      if (held) backend.tensors.free(held);
    }
  });
}, { without: ["f16"] });

gpuTest("a text that is not long is waited for twice, however many layers there are", async (gpu) => {
  for (const [policy, most] of [["layer-defensive", 2], ["snapkv", 2], ["gate", 2], ["full", 1]] as const) {
    await onGpu(gpu, "smollm3-plain", {}, async ({ dense, backend }) => {
      await using here = await loadModel(data("smollm3-plain.gguf"), await currentRuntime(), HERE);
      const model: Model = { ...here, dense, backend, gate: () => Promise.resolve(randomGate(here.config)) };
      const { layers } = dense.config;
      let context: Context | undefined;
      const counts = await counted(gpu, async () => context = await openContext(model, TEXT, { policy, keep: "20%" }));
      context![Symbol.dispose]();
      const { waits, submits } = counts;
      console.log(
        `Reading with ${policy}: ${waits} waits, ${submits} submits, ${counts.passes} stages, ${layers} layers`,
      );
      // For what the policy asks of all layers, and for the last hidden state.
      assert.ok(waits <= most, `${policy}: ${waits} waits for ${layers} layers`);
    });
  }
}, { without: ["f16"] });

gpuTest("the device holds the file's weights and the cache, and little beside", async (gpu) => {
  const fixed = gpu.memory.bytes;
  await onGpu(gpu, "llama3-factors", {}, async ({ dense, backend }) => {
    await using open = await openTiny("llama3-factors");
    const used = [...open.file.tensors.values()].filter(({ name }) => name !== "rope_freqs.weight");
    const inFile = used.reduce((sum, { byteLength }) => sum + byteLength, 0);
    assert.ok(Math.abs(dense.weightBytes / inFile - 1) < 0.05, `${dense.weightBytes} of ${inFile} bytes`);
    using cache = new RaggedCache(backend, dense.config);
    await extend(dense, cache, Array.from({ length: 120 }, (_, i) => i));
    const rows = cache.bytes().allocated, { bytes, spare } = gpu.memory;
    const formula = fixed + inFile + rows, held = bytes - spare;
    assert.ok(rows > 10_000 && Math.abs(held / formula - 1) < 0.05, `${held} bytes, want ${formula}`);
  });
}, { without: ["f16"] });

gpuTest(
  "twenty contexts that are read, asked and closed leave the counted bytes as the first left them",
  async (gpu) => {
    await onGpu(gpu, "llama-yarn", {}, async ({ dense, backend }) => {
      await using here = await loadModel(data("llama-yarn.gguf"), await currentRuntime(), HERE);
      const model: Model = { ...here, dense, backend }, held: number[] = [];
      for (let i = 0; i < 20; i++) {
        using context = await openContext(model, TEXT, { policy: "layer-defensive", keep: "20%" });
        await context.ask("How many?", { maxTokens: 3, allowLoops: true });
        context[Symbol.dispose]();
        assert.deepEqual([backend.tensors.alive, backend.memory().allocatedBytes], [0, 0]);
        held.push(gpu.memory.bytes - gpu.memory.spare);
      }
      assert.deepEqual(held, Array(20).fill(held[0]));
    });
  },
  { without: ["f16"] },
);

const HERE = { backend: "ts", dense: "wasm", precision: "float32", frame: "line" } as const;
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  3,
);
/** Steps of forced decoding. */
const STEPS = 200;

/** What this side says after a few tokens: `STEPS` greedy tokens, and the logits before each. */
async function spoken(model: TinyModel): Promise<{ begin: number[]; said: number[]; logits: Float32Array[] }> {
  await using here = await loadModel(data(`${model}.gguf`), await currentRuntime(), HERE);
  using cache = new RaggedCache(here.backend, here.config);
  const begin = [3, 1, 4, 1, 5], said: number[] = [], logits: Float32Array[] = [];
  let row = await extend(here.dense, cache, begin);
  while (said.length < STEPS) {
    logits.push(row);
    said.push(row.indexOf(row.reduce((most, each) => Math.max(most, each))));
    row = await extend(here.dense, cache, said.slice(-1));
  }
  return { begin, said, logits };
}

/** Steps whose first choice is another, and by how much this side prefers its own, over the largest error of a logit. */
function disagreements({ said, logits }: Awaited<ReturnType<typeof spoken>>, got: readonly Float32Array[]) {
  const error = Math.max(...got.map((row, i) => difference(row, logits[i])));
  const others = got.flatMap((row, i) => {
    const choice = row.indexOf(row.reduce((most, each) => Math.max(most, each)));
    return choice === said[i] ? [] : [logits[i][said[i]] - logits[i][choice]];
  });
  return { others, error };
}

gpuTest("forced decoding takes this side's first choice in 99 of 100 steps", async (gpu) => {
  const here = await spoken("mistral3-yarn");
  await onGpu(gpu, "mistral3-yarn", {}, async ({ dense, backend }) => {
    using cache = new RaggedCache(backend, dense.config);
    const got = [await extend(dense, cache, here.begin)];
    for (const id of here.said.slice(0, -1)) got.push(await extend(dense, cache, [id]));
    const { others, error } = disagreements(here, got);
    console.log(
      `f32, token by token: ${STEPS - others.length} of ${STEPS} alike, logits within ${error.toExponential(1)}`,
    );
    assert.ok(others.length <= 0.01 * STEPS && error <= 2e-3, `${others.length} differ, logits by ${error}`);
    for (const gap of others) assert.ok(gap <= 2 * error, `a choice is off by ${gap}, the logits by ${error}`);
  });
}, { without: ["f16"] });

gpuTest("with 16-bit products it does in 97 of 100, and what differs are near-ties", async (gpu) => {
  const here = await spoken("mistral3-yarn"), forced = [...here.begin, ...here.said.slice(0, -1)];
  await onGpu(gpu, "mistral3-yarn", {}, async ({ dense, backend }) => {
    using cache = new RaggedCache(backend, dense.config);
    const all = await extend(dense, cache, forced, { rows: STEPS }), { vocabulary } = dense.config;
    const got = here.said.map((_, i) => all.subarray(i * vocabulary, (i + 1) * vocabulary));
    const { others, error } = disagreements(here, got);
    console.log(`f16, many rows: ${STEPS - others.length} of ${STEPS} alike, logits within ${error.toExponential(1)}`);
    assert.ok(others.length <= 0.03 * STEPS && error <= 0.15, `${others.length} differ, logits by ${error}`);
    for (const gap of others) assert.ok(gap <= 2 * error, `a choice is off by ${gap}, the logits by ${error}`);
  });
});

const QUESTION = "How many stakes?";

gpuTest("a model on webgpu answers as on this side, and says where it runs", async () => {
  const runtime = await currentRuntime(), asked = { policy: "layer-defensive", keep: "30%" } as const;
  const told = async (options: LoadOptions) => {
    await using model = await loadModel(data("qwen3-plain.gguf"), runtime, { frame: "line", ...options });
    using context = await openContext(model, TEXT, asked);
    const { layers, kvHeads } = model.config, heads = Array.from({ length: layers * kvHeads }, (_, i) => i);
    const kept = heads.map((i) => context.cache.positions(Math.floor(i / kvHeads), i % kvHeads));
    const first = await context.ask(QUESTION, { maxTokens: 16 }),
      second = await context.ask(QUESTION, { maxTokens: 16 });
    assert.deepEqual(second.ids, first.ids, "the second answer begins where the first did");
    return { kept, ids: first.ids, names: [model.backend.name, model.dense.name] };
  };
  const here = await told(HERE), needed: number[] = [];
  const there = await told({ backend: "webgpu", precision: "float32", onNeeded: (bytes) => needed.push(bytes) });
  assert.deepEqual(there.names, ["webgpu", "webgpu"]);
  assert.deepEqual({ kept: there.kept, ids: there.ids }, { kept: here.kept, ids: here.ids });
  assert.equal(needed.length, 1);
  await using named = await loadModel(data("llama-plain.gguf"), runtime, { dense: "webgpu" });
  assert.deepEqual([named.backend.name, named.dense.name], ["webgpu", "webgpu"]);
});

gpuTest("a model on the device refits by the kernels of this side, as a model of this side does", async () => {
  const runtime = await currentRuntime(), path = data("llama-plain.gguf");
  const refitted = async (options: LoadOptions) => {
    await using model = await loadModel(path, runtime, { precision: "float32", frame: "line", ...options });
    const { products, solve, boundedLeastSquares } = model.backend;
    assert.ok(products && solve && boundedLeastSquares, `${model.backend.name} solves plainly`);
    using context = await openContext(model, PROSE.slice(0, 320), { policy: "kvzip", keep: "70%", refit: "both" });
    return { ...context.refit!, biased: context.cache.biased };
  };
  const here = await refitted({ backend: "wasm", dense: "wasm" }), there = await refitted({ backend: "webgpu" });
  assert.ok(here.heads > 0);
  assert.deepEqual([there.heads, there.of, there.biased], [here.heads, here.of, here.biased]);
  assert.ok(Math.abs(there.after - here.after) <= 1e-3 * here.after, `${there.after}, ${here.after}`);
});

Deno.test("halves of two places are refused before anything is started", async () => {
  const runtime = await currentRuntime();
  for (const options of [{ backend: "webgpu", dense: "wasm" }, { backend: "ts", dense: "webgpu" }] as const) {
    await assert.rejects(loadModel(data("llama-plain.gguf"), runtime, options), (error) => {
      assert.ok(error instanceof PalisadeError && error.code === "device.halves" && error.kind === "usage");
      assert.match(error.message, /can't be (wasm|ts) where .* is webgpu/);
      return true;
    });
  }
});
