/** `auto` on a WebGPU device: taken where it is judged to be faster, left when it fails, and the same answers after all. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { lostDevice, noMemory } from "../../gpu/errors.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGgufFile } from "../../model/file/gguf/split.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { startDevice } from "../../model/start_device.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import type { ByteSource } from "../../runtime/interface.ts";
import { gpuTest } from "../_helper/gpu.ts";
import { bytesSource, savedBytes } from "../_helper/snapshots.ts";

const PATH = fileURLToPath(new URL("../data/models/qwen3-plain.gguf", import.meta.url));
const TEXT = "The keeper counted seventeen stakes, and then she counted them again. ".repeat(3);
const QUESTION = "How many stakes?", ASKED = { maxTokens: 8 } as const;
const READ = { policy: "snapkv", keep: "40%" } as const;
const runtime = await currentRuntime();

const judged = (taken: boolean) => () => Promise.resolve({ taken, reason: "for a test" });

/** A model whose `auto` took the device, and what was said when it left it. */
async function onDevice(): Promise<{ model: Model; said: string[] }> {
  const said: string[] = [];
  const options = { frame: "line", precision: "float32", onDeviceLost: (why: string) => said.push(why) } as const;
  const model = await loadModel(PATH, runtime, { ...options, judge: judged(true) });
  assert.deepEqual([model.backend.name, model.dense.name], ["webgpu", "webgpu"]);
  return { model, said };
}

/** Makes the next logits fail as a device does. */
function failNext(model: Model, error: Error): void {
  const { dense } = model, { logits, choose } = dense;
  const fail = () => {
    Object.assign(dense, { logits, choose });
    return Promise.reject(error);
  };
  Object.assign(dense, { logits: fail, choose: fail });
}

async function plainAnswer(): Promise<readonly number[]> {
  await using model = await loadModel(PATH, runtime, {
    frame: "line",
    backend: "ts",
    dense: "wasm",
    precision: "float32",
  });
  using context = await openContext(model, TEXT, READ);
  return (await context.ask(QUESTION, ASKED)).ids;
}

gpuTest("auto takes the device, and goes on with the kernels when it fails", async () => {
  const want = await plainAnswer();
  const { model, said } = await onDevice();
  await using _ = model;
  using context = await openContext(model, TEXT, READ);
  assert.deepEqual((await context.ask(QUESTION, ASKED)).ids, want);
  failNext(model, lostDevice("pulled out"));
  const { ids } = await context.ask(QUESTION, ASKED);
  assert.deepEqual(ids, want);
  assert.deepEqual([model.backend.name, said.length], ["wasm", 1]);
  assert.match(said[0], /lost: pulled out/);
  assert.match(model.backend.detail, /WebAssembly.*; The WebGPU device was lost: pulled out/);
  assert.deepEqual((await context.ask(QUESTION, ASKED)).ids, want);
  assert.equal(context.cache.backend.name, "wasm");
});

gpuTest("an answer of which some was told is not told twice; the next question is answered", async () => {
  const { model, said } = await onDevice();
  await using _ = model;
  using context = await openContext(model, TEXT, READ);
  const error = noMemory(1, "all is used"), told: string[] = [];
  const onText = (text: string) => {
    told.push(text);
    failNext(model, error);
  };
  await assert.rejects(context.ask(QUESTION, { ...ASKED, answerPrefix: "It is", onText }), error);
  assert.deepEqual(told, ["It is"]);
  assert.deepEqual((await context.ask(QUESTION, ASKED)).ids, await plainAnswer());
  assert.equal(said.length, 1);
});

gpuTest("a device that fails while it reads is left too; other errors are the caller's", async () => {
  const { model, said } = await onDevice();
  await using _ = model;
  await assert.rejects(openContext(model, "", READ), { code: "context.empty" });
  assert.equal(model.backend.name, "webgpu");
  const { dense } = model, embed = () => Promise.reject(lostDevice("gone"));
  Object.assign(dense, { embed });
  using context = await openContext(model, TEXT, READ);
  assert.deepEqual([model.backend.name, said.length, context.tokens > 0], ["wasm", 1, true]);
});

gpuTest("a context of a snapshot goes on from it when the device fails, or says that it is gone", async () => {
  const want = await plainAnswer(), { model, said } = await onDevice();
  await using _ = model;
  using read = await openContext(model, TEXT, READ);
  const bytes = await savedBytes(read);
  let gone = false;
  const held = bytesSource(bytes),
    source: ByteSource = {
      ...held,
      name: "kept.palisade",
      read: (...range) => gone ? Promise.reject(new Error("no such file")) : held.read(...range),
    };
  using restored = await model.restore(source), lost = await model.restore(source);
  assert.deepEqual((await restored.ask(QUESTION, ASKED)).ids, want);
  failNext(model, lostDevice("pulled out"));
  assert.deepEqual((await restored.ask(QUESTION, ASKED)).ids, want);
  assert.deepEqual([restored.cache.backend.name, restored.reused, said.length], ["wasm", restored.tokens, 1]);
  gone = true;
  await assert.rejects(lost.ask(QUESTION, ASKED), { code: "snapshot.gone", kind: "resources", where: "kept.palisade" });
  // The one that was read is read again, also where it is saved before it is asked.
  await assert.rejects(savedBytes(read), { code: "gpu.lost" });
  assert.ok((await savedBytes(read)).length > 0);
  assert.deepEqual((await read.ask(QUESTION, ASKED)).ids, want);
});

gpuTest("auto stays here where the device is slower, or results are set beside earlier ones", async () => {
  await using file = await openGgufFile(PATH, runtime);
  const config = await configOf(file);
  for (const options of [{ judge: judged(false) }, { judge: judged(true), oneEngine: true }]) {
    await using device = await startDevice(file, config, runtime, options);
    assert.deepEqual([device.backend.name, device.recover], ["wasm", undefined]);
  }
});
