/** Gate files, which gate belongs to which model, and the scores a gate gives. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { PalisadeError } from "../../core/errors.ts";
import { randomSource } from "../../core/measure/random.ts";
import { checkGate, type GateInfo, parseGate, writeGate } from "../../model/gate/file.ts";
import { findGate, loadGate } from "../../model/gate/find.ts";
import { modelHash } from "../../model/store/identity.ts";
import { GateScorer } from "../../model/gate/scorer.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { parseSafetensors, roundToFloat16, writeSafetensors } from "../../model/file/safetensors.ts";
import { openContext } from "../../model/session.ts";
import { gateScorer } from "../../model/read/policy_inputs.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { gateInfo, randomGate } from "../_helper/gate.ts";
import { openTiny } from "../_helper/tiny_models.ts";

const PATH = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));

async function tiny(gate?: string): Promise<Model> {
  return await loadModel(PATH, await currentRuntime(), { dense: "web", backend: "ts", precision: "float32", gate });
}

async function code(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(() => undefined, (reason) => reason);
  assert.ok(error instanceof PalisadeError, `not refused: ${error}`);
  return error.code;
}

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "palisade-gate-"));
  try {
    await body(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

Deno.test("parseGate() reads what writeGate() wrote, weights as float16", async () => {
  await using model = await openTiny("llama-plain");
  const gate = randomGate(model.config);
  const read = parseGate(writeGate(gate.info, gate), "x");
  assert.deepEqual(read.info, gate.info);
  assert.deepEqual(read.weights, roundToFloat16(gate.weights));
  assert.deepEqual(read.bias, gate.bias);
});

Deno.test("parseGate() refuses files that are no gates, or say something else than they hold", async () => {
  await using model = await openTiny("llama-plain");
  const { info, weights, bias } = randomGate(model.config);
  const bytesWith = (change: unknown) => {
    const merged = typeof change === "object" ? { ...info, ...change } : change;
    const { layers, kvHeads, width } = info.model;
    return writeSafetensors([
      { name: "bias", dtype: "F32", shape: [layers, kvHeads], data: bias },
      { name: "weight", dtype: "F16", shape: [layers, kvHeads, width], data: weights },
    ], { palisade_gate: typeof merged === "string" ? merged : JSON.stringify(merged) });
  };
  const refused = (bytes: Uint8Array, wanted: string) =>
    assert.throws(() => parseGate(bytes, "my.gate"), (error) => {
      assert.ok(error instanceof PalisadeError, String(error));
      assert.deepEqual([error.code, error.where], [wanted, "my.gate"]);
      return true;
    });
  refused(writeSafetensors([], {}), "gate.format");
  refused(bytesWith("{"), "gate.metadata");
  refused(bytesWith("null"), "gate.format");
  refused(bytesWith({ format: 2 }), "gate.format");
  const { model: m, calibration, conformal } = info;
  const wrong: Partial<Record<keyof GateInfo, unknown>>[] = [
    { model: undefined },
    { model: { ...m, sha256: "abc" } },
    { model: { ...m, name: 7 } },
    { model: { ...m, architecture: null } },
    { model: { ...m, layers: 0 } },
    { model: { ...m, kvHeads: 1.5 } },
    { model: { ...m, width: 2 ** 21 } },
    { calibration: undefined },
    { calibration: { ...calibration, texts: "all" } },
    { calibration: { ...calibration, texts: [1] } },
    { calibration: { ...calibration, tokens: "many" } },
    { calibration: { ...calibration, grown: "a lot" } },
    { calibration: { ...calibration, grown: [7] } },
    { ridge: [1] },
    { correlation: undefined },
    { correlation: info.correlation.slice(1) },
    { correlation: info.correlation.map(() => [0]) },
    { conformal: undefined },
    { conformal: { ...conformal, scores: 4 } },
    { conformal: { ...conformal, scores: ["4"] } },
    { conformal: { ...conformal, window: null } },
    { conformal: { ...conformal, textTokens: {} } },
  ];
  for (const change of wrong) refused(bytesWith(change), "gate.metadata");
  refused(bytesWith({ model: { ...m, width: m.width + 1 } }), "gate.shape");
  const { tensors } = parseSafetensors(bytesWith({}), "x");
  assert.equal(tensors.size, 2);
  const text = { palisade_gate: JSON.stringify(info) };
  refused(writeSafetensors([], text), "gate.shape");
  const huge = writeGate(info, { weights, bias: bias.map((_, i) => i === 1 ? NaN : 0) });
  refused(huge, "gate.values");
});

Deno.test("checkGate() refuses another model's gate and names both", async () => {
  await using model = await openTiny("llama-plain");
  const gate = { ...randomGate(model.config), info: gateInfo(model.config, "a".repeat(64)) };
  checkGate(gate, model.config, "a".repeat(64));
  assert.throws(() => checkGate(gate, model.config, "b".repeat(64)), (error) => {
    assert.ok(error instanceof PalisadeError);
    assert.equal(error.code, "gate.model");
    assert.match(error.message, /aaaaaaaaaaaa….*bbbbbbbbbbbb…/);
    return true;
  });
  assert.throws(() => checkGate(gate, { ...model.config, layers: 99 }, "a".repeat(64)), { code: "gate.model" });
});

Deno.test("findGate() takes a named file, refuses another model's, and says what to do without one", async () => {
  const runtime = await currentRuntime();
  await using opened = await openTiny("llama-plain");
  const model = { name: PATH, config: opened.config, identity: () => modelHash(PATH, runtime) };
  assert.equal(await code(findGate(model, runtime)), "gate.none");
  await inFolder(async (folder) => {
    const [mine, other, broken] = ["mine", "other", "broken"].map((name) => join(folder, `${name}.gate.safetensors`));
    const gate = randomGate(opened.config);
    await writeFile(mine, writeGate(gateInfo(opened.config, await modelHash(PATH, runtime)), gate));
    await writeFile(other, writeGate(gate.info, gate));
    await writeFile(broken, "not a gate");
    assert.equal((await findGate(model, runtime, mine)).name, mine);
    assert.equal(await code(findGate(model, runtime, other)), "gate.model");
    assert.equal(await code(findGate(model, runtime, join(folder, "nothing"))), "file.not-found");
    assert.equal(await code(loadGate(broken, runtime)), "safetensors.header");
    await using loaded = await tiny(mine);
    using context = await openContext(loaded, "The gate was shut. ".repeat(20), { policy: "gate", keep: "30%" });
    assert.equal(context.cache.entries(), context.budget.total);
  });
});

Deno.test("findGate() takes the one gate of one's own, and no two", async () => {
  const real = await currentRuntime();
  await using opened = await openTiny("llama-plain");
  const sha256 = await modelHash(PATH, real);
  const model = { name: PATH, config: opened.config, identity: () => Promise.resolve(sha256) };
  await inFolder(async (folder) => {
    const runtime = {
      ...real,
      environment: (name: string) => name === "PALISADE_CACHE" ? folder : real.environment(name),
    };
    await mkdir(join(folder, "gates"));
    const path = (name: string) => join(folder, "gates", `${name}.gate.safetensors`);
    const gate = randomGate(opened.config), bytes = writeGate(gateInfo(opened.config, sha256), gate);
    await writeFile(path("another-models"), writeGate(gate.info, gate));
    await writeFile(path("broken"), "not a gate");
    await writeFile(path("one"), bytes);
    assert.equal((await findGate(model, runtime)).name, path("one"));
    await writeFile(path("two"), bytes);
    await assert.rejects(findGate(model, runtime), (error: PalisadeError) => {
      return error.code === "gate.several" && error.message.includes("one.gate") && error.message.includes("two.gate");
    });
    assert.equal((await findGate(model, runtime, path("two"))).name, path("two"));
  });
});

Deno.test("openContext() with gate refuses a model without one", async () => {
  await using model = await tiny();
  assert.equal(await code(openContext(model, "The gate was shut.", { policy: "gate", keep: "30%" })), "gate.none");
});

Deno.test("gateScorer() makes a scorer once for a gate and a model's file", async () => {
  await using model = await openTiny("qwen2-plain");
  await using twin = await openTiny("qwen2-plain");
  const gate = randomGate(model.config);
  using backend = createReferenceBackend();
  const sources = ({ file, config }: typeof model) => ({ file, config, backend, gate: () => Promise.resolve(gate) });
  const scorer = await gateScorer(sources(model));
  assert.equal(await gateScorer(sources(model), gate), scorer);
  assert.notEqual(await gateScorer(sources(twin)), scorer);
  assert.notEqual(await gateScorer(sources(twin), { ...gate }), scorer);
});

Deno.test("GateScorer gives the product with the normed input, written out", async () => {
  await using model = await openTiny("qwen2-plain");
  using backend = createReferenceBackend();
  const { config } = model, { layers, kvHeads, width, normEpsilon } = config;
  const gate = randomGate(config), next = randomSource(3);
  const gains = Float32Array.from({ length: layers * width }, () => next() + 0.5);
  const hidden = Float32Array.from({ length: 5 * width }, () => next() * 8 - 4);
  const scorer = new GateScorer(backend, config, gate, gains);
  for (let layer = 0; layer < layers; layer++) {
    const scores = await scorer.score(layer, hidden, 5);
    for (let t = 0; t < 5; t++) {
      const row = Array.from(hidden.subarray(t * width, (t + 1) * width));
      const rms = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0) / width + normEpsilon);
      for (let g = 0; g < kvHeads; g++) {
        const normed = row.map((x, i) => x / rms * gains[layer * width + i]);
        const at = (layer * kvHeads + g) * width;
        const wanted = normed.reduce((sum, x, i) => sum + x * gate.weights[at + i], gate.bias[layer * kvHeads + g]);
        assert.ok(Math.abs(scores[t * kvHeads + g] - wanted) <= 1e-4);
      }
    }
  }
  assert.throws(() => new GateScorer(backend, config, gate, gains.subarray(1)), /Gate gains/);
  assert.throws(() => new GateScorer(backend, config, { ...gate, bias: new Float32Array(1) }, gains), /Gate bias/);
});
