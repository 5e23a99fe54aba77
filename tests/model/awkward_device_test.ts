/**
 * A whole `ask` on a device that keeps its tensors behind handles and answers later: the same tokens, the same kept
 * entries, the same report as on this side, by every way of reading, and nothing left when it is over.
 */
import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { CACHE_TYPES, type CacheType } from "../../core/cache/entry_type.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { forkCache, prefillOnce } from "../../evaluate/sweep/shared_prefill.ts";
import { extend } from "../../model/decode/extend.ts";
import { CHUNK } from "../../model/decode/layer.ts";
import { calibrate } from "../../model/gate/fit/calibrate.ts";
import { planCalibration } from "../../model/gate/fit/plan.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import type { Model } from "../../model/model.ts";
import { planReading } from "../../model/read/plan.ts";
import type { Reading } from "../../model/read/reading.ts";
import { reportOf } from "../../model/report.ts";
import { type Context, type ContextOptions, openContext } from "../../model/session.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { AwkwardMemory, createAwkwardBackend, onAwkwardDevice } from "../_helper/awkward_device.ts";
import { randomGate } from "../_helper/gate.ts";
import { randomSoftTokens } from "../_helper/soft_tokens.ts";
import { testFolder, tinyModel } from "../_helper/workbench.ts";

/** More than one chunk. */
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  6,
);
const QUESTIONS = ["How many stakes?", "What was shut?"];

interface Case {
  readonly way: Reading["way"];
  readonly options: ContextOptions;
  /** Another trained length than the model's. */
  readonly trained?: number;
}

/** Every way, and every source of a score. */
const CASES: readonly Case[] = [
  { way: "layers", options: { policy: "layer-defensive(window=8)", explain: true } },
  { way: "layers", options: { policy: "cake(window=8)" } },
  { way: "layers", options: { policy: "critical-adakv" } },
  { way: "layers", options: { policy: "h2o" } },
  { way: "layers", options: { policy: "expected-attention" } },
  { way: "layers", options: { policy: "keydiff", positions: "rerotate" } },
  { way: "layers", options: { policy: "kvzip(chunk=300)" } },
  { way: "layers", options: { policy: "kvzip(chunk=150)" } },
  { way: "layers", options: { policy: "gate(combine=risk)" } },
  { way: "layers", options: { policy: "judge-q" } },
  { way: "layers", options: { policy: "snapkv(window=8)", keep: "60", maxCache: { tokens: 70, rule: "defensive" } } },
  { way: "layers", options: { policy: "snapkv(window=8)", keep: "60", maxCache: { tokens: 70, rule: "gate" } } },
  { way: "layers", options: { policy: "full" } },
  { way: "threshold", options: { policy: "defensive-risk(window=8)", riskWorst: 0.05, explain: true } },
  { way: "risk", options: { policy: "layer-defensive(window=8)", risk: 0.3, explain: true } },
  { way: "risk", options: { policy: "snapkv(window=8)", risk: 0.3, maxCacheBytes: 1 } },
  { way: "streaming", options: { policy: "gate(read=stream)" } },
  { way: "streaming", options: { policy: "gate(read=stream)", keep: "20", positions: "rerotate" }, trained: 64 },
  { way: "rolling", options: { policy: "streaming-llm", keep: "20", positions: "rerotate" }, trained: 64 },
  { way: "layers", options: { policy: "self-gate(tokens=96, chunk=48, combine=risk, window=8)" } },
];

/** Named once each, so that a way without a case fails. */
const WAYS: Record<Reading["way"], true> = {
  layers: true,
  threshold: true,
  risk: true,
  streaming: true,
  rolling: true,
};

/** The same model, trained on another length. */
function trainedOn<M extends Model>(model: M, contextLength = model.config.contextLength): M {
  const config = { ...model.config, contextLength };
  const dense = Object.assign(Object.create(model.dense), { config });
  return { ...model, config, dense };
}

/** The model on this side and on the awkward device, both with gates of their own. */
async function pair(trained?: number) {
  const here = await tinyModel("ts");
  const gate = randomGate(here.config);
  const there = onAwkwardDevice(here);
  return { gate, here: trainedOn(here, trained), there: trainedOn(there, trained), held: there.held };
}

/** Everything but times and names of engines. */
async function told(model: Model, options: ContextOptions) {
  using context = await openContext(model, TEXT, options);
  const answers = [];
  for (const question of QUESTIONS) answers.push(await context.ask(question, { maxTokens: 12 }));
  const { ms: _, engines: __, backend: ___, memory: ____, ...report } = reportOf(model, context, answers, {
    keepAsked: "as asked",
    loadMs: 0,
  });
  return { kept: keptOf(context), certificates: context.certificates, ids: answers.map(({ ids }) => ids), report };
}

function keptOf({ cache }: Context): Int32Array[] {
  const { layers, kvHeads } = cache.shape;
  return Array.from({ length: layers * kvHeads }, (_, i) => cache.positions(Math.floor(i / kvHeads), i % kvHeads));
}

function named({ options, trained }: Case, type: CacheType): string {
  return `${JSON.stringify({ ...options, ...(trained && { trained }) }).replaceAll('"', "")} as ${type}`;
}

/** The case's options with what its policy needs. */
function given({ options }: Case, model: Model, gate: ReturnType<typeof randomGate>, cacheType: CacheType) {
  return { ...options, cacheType, gate, softTokens: randomSoftTokens(model.config) };
}

for (const [i, each] of CASES.entries()) {
  // Every way in every type; where a way has many cases, they share the types out.
  const types = each.way === "layers" ? [CACHE_TYPES[i % CACHE_TYPES.length]] : CACHE_TYPES;
  for (const type of types) {
    Deno.test(`an awkward device answers alike: ${each.way}, ${named(each, type)}`, async () => {
      const { here, there, gate, held } = await pair(each.trained);
      await using _ = here;
      const options = given(each, here, gate, type);
      assert.deepEqual(await told(there, options), await told(here, options));
      assert.equal(held.alive, 0, "tensors that were not freed");
      assert.equal(there.backend.memory().allocatedBytes, 0, "rows that were not freed");
      assert.ok(held.calls > 100, `only ${held.calls} calls`);
    });
  }
}

Deno.test("the cases take the ways they are named after", async () => {
  const { here } = await pair();
  await using _ = here;
  const ids = contextIds(here.frame, here.tokenizer, TEXT);
  assert.ok(ids.length > CHUNK && ids.length < 2 * CHUNK, `${ids.length} tokens`);
  for (const { way, options: { policy, maxCache, ...options }, trained } of CASES) {
    const cap = maxCache && { tokens: maxCache.tokens, predict: maxCache.rule === "gate" };
    const resolved = resolvePolicy(policy as string);
    const reading = planReading(trainedOn(here, trained), ids, { ...options, policy: resolved, maxCache: cap });
    assert.equal(reading.way, way, `${policy}`);
  }
  assert.deepEqual([...new Set(CASES.map(({ way }) => way))].sort(), Object.keys(WAYS).sort());
});

/** Cases in which a device is lost: each way, and each thing that has tensors of its own. */
const LOST = CASES.filter(({ way, options: { policy, maxCache, explain } }) =>
  way !== "layers" || explain || maxCache || /kvzip|judge|expected/.test(`${policy}`)
);

for (const each of LOST) {
  Deno.test(`a device that is lost on the way leaves nothing: ${each.way}, ${named(each, "f32")}`, async () => {
    const { here, there, gate, held } = await pair(each.trained);
    await using _ = here;
    const options = given(each, here, gate, "f32");
    await told(there, options);
    const calls = held.calls;
    for (const share of [0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999]) {
      held.failsAfter = Math.floor(share * calls);
      held.calls = 0;
      await assert.rejects(told(there, options), /The device is lost/);
      assert.equal(held.alive, 0, `tensors left after call ${held.failsAfter} of ${calls}`);
      assert.equal(there.backend.memory().allocatedBytes, 0, `rows left after call ${held.failsAfter} of ${calls}`);
    }
  });
}

Deno.test("reading that is aborted on an awkward device leaves nothing", async () => {
  const { here, there, gate, held } = await pair();
  await using _ = here;
  for (const policy of ["layer-defensive(window=8)", "kvzip(chunk=150)", "gate(read=stream)"]) {
    const controller = new AbortController();
    const options = { policy, gate, onLayer: () => controller.abort(), signal: controller.signal };
    await assert.rejects(openContext(there, TEXT, options), { name: "AbortError" });
    assert.deepEqual([held.alive, there.backend.memory().allocatedBytes], [0, 0], policy);
  }
});

Deno.test("a sweep's one prefill on an awkward device keeps what it keeps on this side, and answers from forks", async () => {
  const { here, there, held } = await pair();
  await using _ = here;
  const ids = contextIds(here.frame, here.tokenizer, TEXT);
  const cases = ["snapkv(window=8)", "layer-defensive(window=16)", "critical-adakv", "h2o", "keydiff", "kvzip"]
    .map((text) => ({ policy: resolvePolicy(text), keep: { fraction: 0.2 } }));
  const gathered = async (model: Model) => {
    using prefill = await prefillOnce(model, ids, cases);
    using fork = await forkCache(prefill.cache, prefill.cases[0].kept!);
    const logits = await extend(model.dense, fork, [5, 6, 7]);
    return { kept: prefill.cases.map(({ kept }) => kept), logits, lastHidden: prefill.lastHidden };
  };
  assert.deepEqual(await gathered(there), await gathered(here));
  assert.deepEqual([held.alive, there.backend.memory().allocatedBytes], [0, 0]);
});

Deno.test("a calibration on an awkward device goes on where it was stopped, to the gate of this side", async () => {
  const { here, there, held } = await pair();
  await using _ = here;
  const folder = await testFolder("awkward"), runtime = await currentRuntime();
  try {
    const planned = await planCalibration(here, runtime, { tokens: 1000, seed: 2 });
    const cut = (texts: readonly (readonly number[])[], count: number) =>
      texts.slice(0, count).map((ids) => ids.slice(0, 60));
    const plan = {
      ...planned,
      fit: planned.fit.map((ids) => ids.slice(0, 270)),
      heldOut: cut(planned.heldOut, 3),
      shifted: cut(planned.shifted, 1),
    };
    const sha256 = "c".repeat(64), statePath = join(folder, "x.state"), controller = new AbortController();
    const texts = plan.fit.length + plan.heldOut.length + plan.shifted.length, { signal } = controller;
    const onProgress = (done: number) => done === texts + 1 && controller.abort();
    const stopped = calibrate(there, runtime, plan, { sha256, statePath, saveEveryMs: 0, signal, onProgress });
    await assert.rejects(stopped, { name: "AbortError" });
    assert.deepEqual([held.alive, there.backend.memory().allocatedBytes], [0, 0]);
    const steps: number[] = [];
    const resumed = await calibrate(there, runtime, plan, {
      sha256,
      statePath,
      onProgress: (done) => steps.push(done),
    });
    assert.equal(steps[0], texts + 1, "the first layer is not done again");
    assert.deepEqual(resumed, await calibrate(here, runtime, plan, { sha256 }));
    assert.deepEqual([held.alive, there.backend.memory().allocatedBytes], [0, 0]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("an awkward device's tensor can't be read on this side, used after it was freed, or freed twice", async () => {
  const memory = new AwkwardMemory(), { tensors } = memory, numbers = Float32Array.of(1, 2, 3);
  const handle = tensors.upload(numbers);
  assert.deepEqual(numbers, new Float32Array(3).fill(NaN), "an uploaded array is no longer the caller's");
  assert.deepEqual([handle.length, handle.byteLength], [3, 12]);
  const array = handle as unknown as Float32Array;
  for (
    const look of [
      () => array[0],
      () => array.subarray(1),
      () => [...array],
      () => Float32Array.from(array),
    ]
  ) {
    assert.throws(look, /has no .* on this side/);
  }
  assert.deepEqual(await tensors.read(handle), Float32Array.of(1, 2, 3));
  tensors.free(handle);
  assert.equal(memory.alive, 0);
  assert.throws(() => tensors.free(handle), /freed/);
  assert.throws(() => tensors.read(handle), /freed/);
  using backend = createAwkwardBackend(memory);
  const rows = backend.createRows({ heads: 1, kvHeads: 1, headDim: 3 }, 0);
  const kept = tensors.zeros(3);
  assert.throws(() => rows.append(handle, kept, 1), /freed/);
  rows.append(kept, kept, 1);
  await assert.rejects(rows.decodeAttention(handle, 1), /freed/);
  tensors.free(kept);
  rows.free();
});
