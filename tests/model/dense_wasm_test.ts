/** The dense engine on our own kernels against the plain oracle, in both precisions. */
import assert from "node:assert/strict";
import { inputsOf } from "../../model/architecture.ts";
import type { DenseEngine } from "../../model/dense/interface.ts";
import { createWasmEngine } from "../../model/dense/wasm/engine.ts";
import { randomSource } from "../../core/measure/random.ts";
import { PalisadeError } from "../../core/errors.ts";
import { BYTE_INPUT_TYPES } from "../../wasm/dense/products.ts";
import { hasRelaxedSimd } from "../../runtime/features.ts";
import { assertClose } from "../_helper/close.ts";
import { plainDense } from "../_helper/plain_dense.ts";
import { openTiny, TINY_MODELS } from "../_helper/tiny_models.ts";

/**
 * Largest difference over the largest magnitude of a result. Float32: sums in another order. Quantised: inputs off by
 * up to 2⁻¹⁶ of their block's largest, through three products one after another; or by 2⁻⁸, where some are int8. Weights
 * that are held as float16 are off by 2⁻¹¹.
 */
const TOLERANCES = { float32: 2e-5, quantised: 2e-4, held: 2e-3, bytes: 2e-2 } as const;
/** One row, a few, past a pair, past one pass of the kernels. */
const COUNTS = [1, 2, 3, 17, 300];

function noise(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next()) * 2 - 3);
}

async function assertSamePieces(engine: DenseEngine, oracle: DenseEngine, count: number, tolerance: number) {
  const { config } = engine;
  const hidden = noise(count * config.width, 7);
  const ids = Array.from({ length: count }, (_, i) => (i * 37) % config.vocabulary);
  assert.deepEqual(engine.embed(ids), oracle.embed(ids));
  for (let layer = 0; layer < config.layers; layer++) {
    const of = `of layer ${layer}, ${count} rows`;
    assertClose(await engine.qkv(layer, hidden, count), await oracle.qkv(layer, hidden, count), tolerance, `qkv ${of}`);
    const attention = noise(count * inputsOf(config, layer).attention, 11);
    const got = await engine.finish(layer, hidden, attention, count, ids);
    assertClose(got, await oracle.finish(layer, hidden, attention, count, ids), tolerance, `finish ${of}`);
  }
  assertClose(
    await engine.logits(hidden, count),
    await oracle.logits(hidden, count),
    tolerance,
    `logits, ${count} rows`,
  );
}

for (const simd of hasRelaxedSimd() ? ["simd128", "relaxed"] as const : ["simd128"] as const) {
  for (const precision of ["float32", "quantised"] as const) {
    for (const model of TINY_MODELS) {
      Deno.test(`wasm engine (${simd}, ${precision}) equals the plain loops on ${model}`, async () => {
        await using open = await openTiny(model);
        await using engine = await createWasmEngine(open.file, open.config, { precision, kernels: { simd } });
        const oracle = await plainDense(open.file, open.config);
        const hasBytes = [...open.file.tensors.values()].some(({ type }) => BYTE_INPUT_TYPES.includes(type.id));
        const rounded = [...open.file.tensors.values()].some(({ type }) => type.held) ? "held" : "quantised";
        const kind = precision === "float32" ? precision : simd === "relaxed" && hasBytes ? "bytes" : rounded;
        for (const count of COUNTS) await assertSamePieces(engine, oracle, count, TOLERANCES[kind]);
      });
    }
  }
}

Deno.test("wasm engine refuses buffers of another size than its rows", async () => {
  await using open = await openTiny("llama-plain");
  await using engine = await createWasmEngine(open.file, open.config);
  const { width, heads, headDim, vocabulary } = open.config;
  const hidden = new Float32Array(2 * width);
  await assert.rejects(() => engine.qkv(0, hidden, 3), RangeError);
  await assert.rejects(() => engine.qkv(0, hidden, 0), RangeError);
  await assert.rejects(() => engine.qkv(0, hidden, 1.5), RangeError);
  await assert.rejects(() => engine.qkv(open.config.layers, hidden, 2), RangeError);
  await assert.rejects(() => engine.finish(0, hidden, new Float32Array(heads * headDim), 2), RangeError);
  await assert.rejects(() => engine.logits(hidden.subarray(1), 2), RangeError);
  assert.throws(() => engine.embed([vocabulary]), RangeError);
  assert.throws(() => engine.embed([-1]), RangeError);
  assert.throws(() => engine.embed([0.5]), RangeError);
});

Deno.test("wasm engine lets NaN come through instead of rounding it away", async () => {
  await using open = await openTiny("llama-plain");
  await using engine = await createWasmEngine(open.file, open.config);
  const hidden = noise(2 * open.config.width, 3);
  hidden[5] = NaN;
  const qkv = await engine.qkv(0, hidden, 2), each = qkv.length / 2;
  assert.ok(qkv.subarray(0, each).every(Number.isNaN) && qkv.subarray(each).every(Number.isFinite));
});

Deno.test("wasm engine reports each layer, stops with the signal's reason, and runs nothing after disposal", async () => {
  await using open = await openTiny("llama-plain");
  const seen: string[] = [];
  const onProgress = (done: number, total: number) => seen.push(`${done}/${total}`);
  const engine = await createWasmEngine(open.file, open.config, { onProgress });
  assert.equal(seen.length, open.config.layers + 1);
  assert.equal(seen.at(-1), `${seen.length}/${seen.length}`);
  await engine[Symbol.asyncDispose]();
  await engine[Symbol.asyncDispose]();
  await assert.rejects(() => engine.logits(new Float32Array(open.config.width), 1), /disposed/);
  const stop = new AbortController(), reason = new Error("stopped by the test");
  const options = { signal: stop.signal, onProgress: () => stop.abort(reason) };
  await assert.rejects(() => createWasmEngine(open.file, open.config, options), reason);
});

Deno.test("wasm engine types weights that don't fit its memory", async () => {
  await using open = await openTiny("llama-plain");
  const config = { ...open.config, layers: 1 };
  const kernels = { maximumBytes: 2 << 20 };
  const file = Object.create(open.file) as typeof open.file;
  file.readFloat32 = () => Promise.resolve(new Float32Array(1 << 20));
  await assert.rejects(
    () => createWasmEngine(file, config, { kernels }),
    (error) => error instanceof PalisadeError && error.kind === "resources" && error.code === "wasm.memory",
  );
});

Deno.test("weights beyond float16 are refused by their tensor, where a type is held as that", async () => {
  await using open = await openTiny("llama-iq");
  const name = "blk.0.attn_q.weight";
  const readFloat32 = async (...asked: Parameters<typeof open.file.readFloat32>) => {
    const floats = await open.file.readFloat32(...asked);
    return asked[0] === name ? floats.fill(65520, 7, 8) : floats;
  };
  const file = { ...open.file, readFloat32, readRaw: open.file.readRaw.bind(open.file), tensors: open.file.tensors };
  const refused = { code: "gguf.value", where: `tensor["${name}"]`, message: /holds 65520/ };
  await assert.rejects(createWasmEngine(file as typeof open.file, open.config), refused);
  await using exact = await createWasmEngine(file as typeof open.file, open.config, { precision: "float32" });
  assert.ok(exact.weightBytes > 0);
});
