/** SmolLM2 on our kernels, dense and attention, alone and beside onnxruntime-node, against the reference implementations' numbers. */
import assert from "node:assert/strict";
import { resolveBudget } from "../../core/select/budget.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { HostDense } from "../../model/dense/host.ts";
import type { DenseEngine } from "../../model/dense/interface.ts";
import { probeNode } from "../../model/dense/ort/node.ts";
import { pickDense } from "../../model/dense/pick.ts";
import { createWasmEngine } from "../../model/dense/wasm/engine.ts";
import { extend } from "../../model/decode/extend.ts";
import { readContext } from "../../model/read/layers.ts";
import { createWasmBackend } from "../../wasm/backend.ts";
import { readJson, readSafetensors } from "../_helper/golden.ts";
import { smollm2 } from "../_helper/model.ts";
import { skipped } from "../_helper/skip.ts";
import { type OpenModel, openModel } from "../_helper/tiny_models.ts";

interface Golden {
  readonly context_ids: number[];
  readonly question_ids: number[];
  readonly greedy: { full: { ids: number[] } };
}

/**
 * Largest difference of a logit. Float32: as for every engine. Quantised: inputs of 30 layers' products in int16 blocks;
 * 0.003 was measured; the logits span 50.
 */
const TOLERANCES = { float32: 2e-3, quantised: 2e-2 } as const;

const probe = await probeNode();

function largestDifference(a: Float32Array, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  return a.reduce((worst, x, i) => Math.max(worst, Math.abs(x - b[i])), 0);
}

function greedy(logits: Float32Array): number {
  return logits.reduce((best, x, i) => (x > logits[best] ? i : best), 0);
}

type Make = (file: OpenModel["file"], config: OpenModel["config"]) => Promise<DenseEngine>;

const CASES: Record<string, { readonly tolerance: number; readonly make: Make }> = {
  "wasm engine (float32)": {
    tolerance: TOLERANCES.float32,
    make: (file, config) => createWasmEngine(file, config, { precision: "float32" }),
  },
  "wasm engine (quantised)": { tolerance: TOLERANCES.quantised, make: createWasmEngine },
  // The context is read by onnxruntime-node, the rest computed by our kernels.
  "mixed engine": { tolerance: TOLERANCES.quantised, make: pickDense },
};

for (const [what, { tolerance, make }] of Object.entries(CASES)) {
  const title = `${what} and kernels give SmolLM2's golden logits and greedy text`;
  if (what === "mixed engine" && !probe.available) {
    skipped(title, probe.reason, "device");
    continue;
  }
  Deno.test(title, async () => {
    const golden = await readJson<Golden>("smollm2-single2.json");
    const expected = await readSafetensors("smollm2-logits.safetensors");
    await using open = await openModel(await smollm2());
    const { config, file } = open;
    await using dense = new HostDense(await make(file, config));
    assert.ok(what.startsWith(dense.name));
    using backend = await createWasmBackend();
    const policy = resolvePolicy("full"), ids = golden.context_ids;
    const budget = resolveBudget(policy, { fraction: 1 }, ids.length, config);
    const outputWeights = (layer: number) => file.readFloat32(`blk.${layer}.attn_output.weight`);
    const { cache, lastHidden } = await readContext({ dense, backend }, ids, { policy, budget, outputWeights });
    using _ = cache;
    const near = (logits: Float32Array, name: string) => {
      const difference = largestDifference(logits, expected.get(name)!.data);
      console.log(`${what}, ${name}: logits differ by ${difference}`);
      assert.ok(difference <= tolerance, `${name} differs by ${difference}`);
    };
    near(await dense.logits(lastHidden, 1), "last_context");
    const mark = cache.mark();
    // Token by token, so that every product is one of a single row.
    let logits: Float32Array = new Float32Array();
    for (const id of golden.question_ids) logits = await extend(dense, cache, [id]);
    near(logits, "last_question");
    const said: number[] = [];
    for (const _ of golden.greedy.full.ids) {
      said.push(greedy(logits));
      logits = await extend(dense, cache, [said.at(-1)!]);
    }
    assert.deepEqual(said, golden.greedy.full.ids);
    cache.trim(mark);
  });
}
