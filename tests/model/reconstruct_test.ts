/** KVzip's scores against plain masked attention, and how they reach a policy. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { PalisadeError } from "../../core/errors.ts";
import { globalLayers, windowOf } from "../../core/shape.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { project } from "../../model/dense/project.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { engineOf } from "../_helper/host.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { readContext } from "../../model/read/layers.ts";
import { type RepeatPrompt, repeatPrompts } from "../../model/read/reconstruct.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  4,
);

async function tiny(name: string, backend: "ts" | "wasm" = "ts"): Promise<Model> {
  const path = fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
  return await loadModel(path, await currentRuntime(), { dense: "web", backend, precision: "float32" });
}

/** Importance of every layer, `[layers][kvHeads · L]`, as the reader gives it. */
async function measured(
  model: Model,
  ids: readonly number[],
  prompts: readonly RepeatPrompt[],
  contribution = false,
) {
  using cache = new RaggedCache(model.backend, model.config);
  const needs = { reconstruction: { chunk: 1, postfix: 1, contribution } };
  const outputWeights = (layer: number) => outputWeightsOf(model, layer);
  using reader = await LayerReader.open(model, cache, ids, { needs, window: 0, prompts, outputWeights });
  const layers: Float32Array[] = [];
  for (let layer = 0; layer < model.config.layers; layer++) layers.push((await reader.layer(layer)).reconstruction!);
  const { kvHeads } = model.config;
  for (const layer of cache.globals) {
    assert.equal(cache.layerEntries(layer), ids.length * kvHeads, "no prompt's rows stay");
  }
  return layers;
}

/**
 * The same by brute force: for each prompt a whole forward pass over context and prompt with plain attention, and at
 * every layer the softmax over the allowed subset, written out.
 */
async function bruteForce(
  model: Model,
  ids: readonly number[],
  prompts: readonly RepeatPrompt[],
  contribution = false,
) {
  const { config } = model, dense = engineOf(model.dense);
  const { heads, kvHeads, headDim, layers, width } = config, L = ids.length, group = heads / kvHeads;
  const importance = Array.from({ length: layers }, () => new Float32Array(kvHeads * L));
  for (const prompt of prompts) {
    const all = [...ids, ...prompt.ids];
    let hidden = dense.embed(all);
    for (let layer = 0; layer < layers; layer++) {
      const wo = await outputWeightsOf(model, layer);
      const { queries, keys, values } = project(
        config,
        layer,
        await dense.qkv(layer, hidden, all.length),
        all.length,
        0,
      );
      const output = new Float32Array(all.length * heads * headDim);
      for (let h = 0; h < heads; h++) {
        const g = Math.floor(h / group);
        const logit = (t: number, i: number) => {
          let dot = 0;
          for (let d = 0; d < headDim; d++) {
            dot += queries[(t * heads + h) * headDim + d] * keys[(i * kvHeads + g) * headDim + d];
          }
          return dot / Math.sqrt(headDim);
        };
        const softmax = (t: number, seen: number[]) => {
          const logits = seen.map((i) => logit(t, i)), top = Math.max(...logits);
          const sum = logits.reduce((sum, each) => sum + Math.exp(each - top), 0);
          return logits.map((each) => Math.exp(each - top) / sum);
        };
        for (let t = 0; t < all.length; t++) {
          const seen = Array.from({ length: t + 1 }, (_, i) => i).filter((i) => i > t - windowOf(config, layer));
          softmax(t, seen).forEach((weight, at) => {
            for (let d = 0; d < headDim; d++) {
              output[(t * heads + h) * headDim + d] += weight * values[(seen[at] * kvHeads + g) * headDim + d];
            }
          });
          if (t < L || windowOf(config, layer) < Infinity) continue;
          const subset = seen.filter((i) => i < 4 || (i >= prompt.first && i < prompt.end) || i >= L);
          softmax(t, subset).forEach((weight, at) => {
            const i = subset[at];
            if (i >= L) return;
            const value = contribution
              ? weight *
                movedBy(wo, heads, values.subarray((i * kvHeads + g) * headDim, (i * kvHeads + g + 1) * headDim), h) /
                Math.hypot(...hidden.subarray(t * width, (t + 1) * width))
              : weight;
            importance[layer][g * L + i] = Math.max(importance[layer][g * L + i], value);
          });
        }
      }
      hidden = await dense.finish(layer, hidden, output, all.length);
    }
    assert.equal(hidden.length, all.length * width);
  }
  for (const layer of importance) for (let g = 0; g < kvHeads; g++) layer.fill(1, g * L, g * L + 4);
  return importance;
}

/** `[width, heads · headDim]`. */
async function outputWeightsOf({ file }: Model, layer: number): Promise<Float32Array> {
  return await file.readFloat32(`blk.${layer}.attn_output.weight`);
}

/** ‖Wo_h · v‖, `wo`: `[width, heads · headDim]`. */
function movedBy(wo: Float32Array, heads: number, value: Float32Array, head: number): number {
  const headDim = value.length, row = heads * headDim;
  let square = 0;
  for (let at = head * headDim; at < wo.length; at += row) {
    square += value.reduce((sum, x, d) => sum + x * wo[at + d], 0) ** 2;
  }
  return Math.sqrt(square);
}

for (const name of ["llama-plain", "qwen2-plain", "gemma3-windows"]) {
  for (const [chunk, contribution] of [[2048, false], [30, false], [2048, true], [30, true]] as const) {
    for (const backend of ["ts", "wasm"] as const) {
      const what = `${name}, chunks of ${chunk}, ${backend}${contribution ? ", by contribution" : ""}`;
      Deno.test(`Reconstruction gives the scores of brute force: ${what}`, async () => {
        await using model = await tiny(name, backend);
        const ids = contextIds(model.frame, model.tokenizer, TEXT).slice(0, 90);
        const prompts = repeatPrompts(model, ids, { chunk, postfix: 8 }, true);
        assert.equal(prompts.length > 1, chunk === 30);
        const ours = await measured(model, ids, prompts, contribution);
        const theirs = await bruteForce(model, ids, prompts, contribution);
        for (const layer of globalLayers(model.config)) {
          const scores = theirs[layer];
          const worst = scores.reduce((worst, score, i) => Math.max(worst, Math.abs(score - ours[layer][i])), 0);
          const most = scores.reduce((most, score) => Math.max(most, score), 1);
          assert.ok(worst <= 1e-5 * most, `layer ${layer} differs by ${worst}`);
        }
      });
    }
  }
}

Deno.test("repeatPrompts() cuts the context into equal chunks that cover it, the template's beginning in the first", async () => {
  await using model = await tiny("llama-plain");
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  for (const chunk of [16, 31, 64, ids.length, 4096]) {
    const prompts = repeatPrompts(model, ids, { chunk, postfix: 8 }, true);
    assert.equal(prompts[0].first, 0);
    assert.equal(prompts.at(-1)!.end, ids.length);
    prompts.forEach(({ first, end, ids: own }, i) => {
      assert.ok(i === 0 || first === prompts[i - 1].end);
      const repeated = Math.min(end - first, own.length);
      if (i > 0) assert.deepEqual(own.slice(-repeated), ids.slice(first, end));
      assert.ok(i === 0 || end - first <= chunk);
    });
  }
});

Deno.test("repeatPrompts() refuses what would leave the trained context, with the way out", async () => {
  await using model = await tiny("llama-plain");
  const ids = new Array(model.config.contextLength - 20).fill(1);
  assert.throws(() => repeatPrompts(model, ids, { chunk: 2048, postfix: 8 }), (error) => {
    assert.ok(error instanceof PalisadeError);
    assert.equal(error.code, "context.too-long");
    assert.match(error.message, /kvzip\(chunk=…\)/);
    return true;
  });
  assert.ok(repeatPrompts(model, ids, { chunk: 2048, postfix: 8 }, true).length > 0);
});

Deno.test("LayerReader refuses needs it has no sources for", async () => {
  await using model = await tiny("llama-plain");
  using cache = new RaggedCache(model.backend, model.config);
  const read = (needs: object) => LayerReader.open(model, cache, [1, 2], { needs, window: 0 });
  await assert.rejects(read({ gate: true }), /without one/);
  await assert.rejects(read({ reconstruction: { chunk: 9, postfix: 0 } }), /without prompts/);
});

Deno.test("kvzip holds at most the budget, one layer with one prompt behind it, and the scores", async () => {
  await using model = await tiny("llama-plain");
  const { kvHeads, headDim } = model.config, row = 2 * headDim * 4;
  using context = await openContext(model, TEXT, { policy: "kvzip", keep: "20%" });
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  const [prompt] = repeatPrompts(model, ids, { chunk: 2048, postfix: 8 });
  const most = (context.budget.total + (ids.length + prompt.ids.length) * kvHeads) * row + context.budget.total * 13;
  assert.ok(context.cache.bytes().peak <= most, `${context.cache.bytes().peak} of ${most}`);
});

Deno.test("readContext() with kvzip stops when it is aborted in the middle of repeating", async () => {
  await using model = await tiny("llama-plain");
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  const policy = resolvePolicy("kvzip"), controller = new AbortController();
  const project = model.dense.project.bind(model.dense);
  let calls = 0;
  const dense = Object.assign(Object.create(model.dense), {
    config: model.config,
    project: (...call: Parameters<typeof project>) => {
      if (++calls === 2) controller.abort();
      return project(...call);
    },
    embed: model.dense.embed.bind(model.dense),
    finish: model.dense.finish.bind(model.dense),
  });
  const reading = readContext({ dense, backend: model.backend }, ids, {
    policy,
    budget: resolveBudget(policy, { fraction: 0.2 }, ids.length, model.config),
    outputWeights: () => Promise.reject(new Error("kvzip weighs no values")),
    prompts: repeatPrompts(model, ids, { chunk: 40, postfix: 8 }, true),
    signal: controller.signal,
  });
  await assert.rejects(reading, { name: "AbortError" });
  assert.equal(model.backend.memory().allocatedBytes, 0);
});
