/** Every engine and form of weights against the plain oracle, piece by piece, on models with every tensor type. */
import assert from "node:assert/strict";
import type { DenseEngine } from "../../model/dense/interface.ts";
import { createNodeEngine, probeNode } from "../../model/dense/ort/node.ts";
import { pickDense } from "../../model/dense/pick.ts";
import { createWebEngine } from "../../model/dense/ort/web.ts";
import { smollm2 } from "../_helper/model.ts";
import { plainDense } from "../_helper/plain_dense.ts";
import { skipped } from "../_helper/skip.ts";
import { DENSE_MODELS, openModel, openTiny, SPECIAL_MODELS } from "../_helper/tiny_models.ts";

/**
 * Largest difference over the largest magnitude of a result. Weights are the same in every form, so only the order of
 * float32 sums differs: 2^-24 for each of up to 256 summands, and folded zero points lose a few bits more.
 */
const TOLERANCE = 2e-5;
/** Rows per call: one, a few, past the width of any vector, and past one tile of the products. */
const COUNTS = [1, 2, 17, 130];

const ENGINES = { web: createWebEngine, node: createNodeEngine };
const probe = await probeNode();

/** Normal-ish numbers, the same every time (xorshift32 with a fixed seed; sums of three). */
function noise(length: number, seed: number): Float32Array {
  let state = seed;
  const uniform = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 31 - 1;
  };
  return Float32Array.from({ length }, () => uniform() + uniform() + uniform());
}

function assertClose(actual: Float32Array, expected: Float32Array, what: string): void {
  assert.equal(actual.length, expected.length, what);
  const scale = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const error = expected.reduce((most, value, i) => Math.max(most, Math.abs(value - actual[i])), 0);
  assert.ok(error <= TOLERANCE * scale, `${what}: off by ${error / scale} of the largest value`);
}

async function assertSamePieces(engine: DenseEngine, oracle: DenseEngine, count: number): Promise<void> {
  const { config } = engine;
  const hidden = noise(count * config.width, 7);
  const attention = noise(count * config.heads * config.headDim, 11);
  const ids = Array.from({ length: count }, (_, i) => (i * 37) % config.vocabulary);
  assert.deepEqual(engine.embed(ids), oracle.embed(ids));
  for (let layer = 0; layer < config.layers; layer++) {
    const of = `of layer ${layer}, ${count} rows`;
    assertClose(await engine.qkv(layer, hidden, count), await oracle.qkv(layer, hidden, count), `qkv ${of}`);
    const next = await engine.finish(layer, hidden, attention, count);
    assertClose(next, await oracle.finish(layer, hidden, attention, count), `finish ${of}`);
  }
  assertClose(await engine.logits(hidden, count), await oracle.logits(hidden, count), `logits, ${count} rows`);
}

Deno.test("a model with experts or convolutions is refused by every engine but our own kernels, and they take it by default", async () => {
  for (const model of SPECIAL_MODELS) {
    await using open = await openTiny(model);
    const code = model.startsWith("gemma4")
      ? "dense.mixed-layers"
      : model === "lfm2-plain"
      ? "dense.convolutions"
      : "dense.experts";
    const refused = { code, kind: "input", message: /runs on our own kernels/ };
    for (const dense of ["web", "node"] as const) {
      await assert.rejects(pickDense(open.file, open.config, { dense }), refused);
      if (dense === "node" && !probe.available) continue;
      await assert.rejects(ENGINES[dense](open.file, open.config, "float32"), refused);
    }
    await using engine = await pickDense(open.file, open.config);
    assert.equal(engine.name, "wasm");
  }
});

for (const [name, create] of Object.entries(ENGINES)) {
  for (const form of ["float32", "blocks"] as const) {
    for (const model of DENSE_MODELS) {
      const title = `${name} engine with ${form} weights equals the plain loops on ${model}`;
      if (name === "node" && !probe.available) {
        skipped(title, probe.reason, "device");
        continue;
      }
      Deno.test(title, async () => {
        await using open = await openTiny(model);
        await using engine = await create(open.file, open.config, form);
        const oracle = await plainDense(open.file, open.config);
        for (const count of COUNTS) await assertSamePieces(engine, oracle, count);
      });
    }
  }
}

Deno.test("web engine's qkv of layer 0 equals the plain loops on SmolLM2", async () => {
  await using open = await openModel(await smollm2());
  const config = { ...open.config, layers: 1 };
  await using engine = await createWebEngine(open.file, config, "float32");
  const oracle = await plainDense(open.file, config);
  const ids = [1, 9690, 198, 2683, 359];
  const hidden = engine.embed(ids);
  assert.deepEqual(hidden, oracle.embed(ids));
  assertClose(await engine.qkv(0, hidden, ids.length), await oracle.qkv(0, hidden, ids.length), "qkv");
});
