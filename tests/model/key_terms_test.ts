/** What keys say beside hidden states: the terms themselves, a gate's file with them, and which readings go by them. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { randomSource } from "../../core/measure/random.ts";
import { checkGate, type Gate, parseGate, writeGate } from "../../model/gate/file.ts";
import { NormalEquations } from "../../model/gate/fit/ridge.ts";
import { addTerms, headTerms, keyTerms, ScaledTerms, termsOf, termsOfHead } from "../../model/gate/key_terms.ts";
import { GateScorer, readGains } from "../../model/gate/scorer.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { parseSafetensors, roundToFloat16, writeSafetensors } from "../../model/file/safetensors.ts";
import { extend } from "../../model/decode/extend.ts";
import { gateScorer, policyInputs } from "../../model/read/policy_inputs.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { openContext } from "../../model/session.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { assertClose } from "../_helper/close.ts";
import { keyedGate } from "../_helper/gate.ts";
import { openTiny } from "../_helper/tiny_models.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  4,
);

async function tiny(name = "llama-plain"): Promise<Model> {
  const path = fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
  return await loadModel(path, await currentRuntime(), { dense: "web", backend: "ts", precision: "float32" });
}

Deno.test("headTerms() gives energies over their means, and likeness to the mean direction", () => {
  // Two chunks of two channels, three tokens.
  const keys = Float32Array.of(3, 0, 4, 0, 0, 1, 0, 0, 0, 0, 0, 2), terms = new Float32Array(9);
  headTerms(keys, [[0, 2], [1, 3]], terms);
  const mean = [.6 / 3, 1 / 3, .8 / 3, 1 / 3];
  const wanted = [3, 0, 0, 0, 1 * 3 / 5, 4 * 3 / 5, .6 * mean[0] + .8 * mean[2], mean[1], mean[3]];
  assertClose(terms, Float32Array.from(wanted), 1e-6, "terms");
  const nothing = new Float32Array(9);
  headTerms(new Float32Array(12), [[0, 2], [1, 3]], nothing);
  assert.deepEqual(nothing, new Float32Array(9), "keys that are all zero say nothing");
});

Deno.test("addTerms() adds each head's weighted terms of all heads", () => {
  const scores = Float32Array.of(1, 2, 3, 4), terms = Float32Array.of(1, 10, 2, 20, 3, 30);
  addTerms(scores, Float32Array.of(1, 0, 2, 0, 1, 0), terms, 2);
  assert.deepEqual(scores, Float32Array.of(8, 72, 5, 24));
});

Deno.test("ScaledTerms has mean 0 and the deviation asked for, and its weights mean the same as those of the terms", () => {
  const next = randomSource(4), tokens = 50;
  const terms = Float32Array.from(
    { length: 3 * tokens },
    (_, i) => i < tokens ? 7 : i < 2 * tokens ? next() : 9 * next(),
  );
  const scaled = new ScaledTerms(terms, tokens, 3);
  for (const [i, wanted] of [0, 3, 3].entries()) {
    const values = [...terms.subarray(i * tokens, (i + 1) * tokens)].map((term) => scaled.of(term, i));
    const mean = values.reduce((a, b) => a + b) / tokens, square = values.reduce((sum, x) => sum + x * x, 0) / tokens;
    assert.ok(Math.abs(mean) < 1e-9 && Math.abs(Math.sqrt(square) - wanted) < 1e-9, `${i}: ${mean}, ${square}`);
  }
  const weights = [0, 2, -1],
    entered = scaled.enter(weights, 5),
    left = scaled.leave(entered.weights, entered.constant);
  left.weights.forEach((w, i) => assert.ok(Math.abs(w - weights[i]) < 1e-12));
  assert.ok(Math.abs(left.constant - 5) < 1e-12);
  const of = (t: number, by: ArrayLike<number>, constant: number, value: (term: number, i: number) => number) =>
    [0, 1, 2].reduce((sum, i) => sum + by[i] * value(terms[i * tokens + t], i), constant);
  for (const t of [0, 17, 49]) {
    const [one, other] = [of(t, weights, 5, (x) => x), of(t, entered.weights, entered.constant, scaled.of)];
    assert.ok(Math.abs(one - other) < 1e-9);
  }
});

for (const name of ["llama-plain", "qwen3-plain"]) {
  Deno.test(`energies of ${name}'s keys don't feel where the text stands`, async () => {
    await using model = await tiny(name);
    const { config, backend, dense } = model, ids = [5, 9, 2, 7, 5, 11, 3, 8], each = termsOfHead(config.headDim);
    const at = async (first: number) => {
      using cache = new RaggedCache(backend, config);
      // In the first layer keys depend on nothing but the token and its position.
      cache.advance(first);
      await extend(dense, cache, ids);
      return await keyTerms({ rows: cache.rows(0), rope: config.ropes[0] }, ids.length);
    };
    const [here, there] = [await at(0), await at(37)], n = ids.length;
    assert.equal(here.length, termsOf(config) * n);
    for (let head = 0; head < config.kvHeads; head++) {
      const energies = (terms: Float32Array) => terms.subarray(head * each * n, (head * each + each - 1) * n);
      assertClose(energies(there), energies(here), 1e-4, `head ${head}`);
      const likeness = (terms: Float32Array) => terms.subarray((head * each + each - 1) * n, (head + 1) * each * n);
      assert.notDeepEqual(likeness(there), new Float32Array(n));
    }
  });
}

Deno.test("parseGate() reads a keyed gate, whole or not at all", async () => {
  await using model = await openTiny("llama-plain");
  const gate = keyedGate(model.config), keyed = gate.keyed!, bytes = writeGate(gate.info, gate);
  const read = parseGate(bytes, "x");
  assert.deepEqual(read.keyed, { ...keyed, weights: roundToFloat16(keyed.weights) });
  assert.deepEqual(read.weights, roundToFloat16(gate.weights));
  const { tensors, metadata } = parseSafetensors(bytes, "x");
  const without = (lost: string, changed?: number[]) =>
    writeSafetensors(
      [...tensors].filter(([name]) => name !== lost).map(([name, { shape, read }]) => {
        const cut = name === "keyed.terms" && changed ? changed : [...shape];
        return { name, dtype: "F32", shape: cut, data: read() } as const;
      }),
      Object.fromEntries(metadata),
    );
  for (const lost of ["keyed.weight", "keyed.bias", "keyed.terms"]) {
    assert.throws(() => parseGate(without(lost), "x"), { code: "gate.shape" }, lost);
  }
  const { layers, kvHeads } = model.config, flat = [1, layers * kvHeads, termsOf(model.config)];
  assert.throws(() => parseGate(without("", flat), "x"), { code: "gate.shape" });
  const sha256 = gate.info.model.sha256;
  checkGate(read, model.config, sha256);
  const headDim = model.config.headDim * 2;
  assert.throws(() => checkGate(read, { ...model.config, headDim }, sha256), { code: "gate.model" });
  const gains = await readGains(model.file, model.config), scorer = { gateScores: undefined } as never;
  assert.throws(() => new GateScorer(scorer, { ...model.config, headDim }, keyed, gains), /Gate terms/);
});

Deno.test("a whole layer is scored by keys too; what streams, has margins, or compares with tokens to come, is not", async () => {
  await using model = await tiny();
  const { config, backend } = model, gate = keyedGate(config), alone: Gate = { ...gate, keyed: undefined };
  const ids = contextIds(model.frame, model.tokenizer, TEXT), n = ids.length;
  const scoresOf = async (some: Gate) => {
    using cache = new RaggedCache(backend, config);
    const inputs = await policyInputs(model, { needs: { gate: true } }, ids, { gate: some });
    using reader = await LayerReader.open(model, cache, ids, { needs: { gate: true }, window: 0, ...inputs });
    const layers: Float32Array[] = [];
    for (let layer = 0; layer < config.layers; layer++) {
      const { gate: scores, asked } = await reader.layer(layer);
      assert.equal(asked, undefined);
      const terms = await keyTerms({ rows: cache.rows(layer), rope: config.ropes[layer] }, n);
      if (some.keyed) {
        const each = some.keyed.terms.length / config.layers;
        addTerms(scores!, some.keyed.terms.subarray(layer * each, (layer + 1) * each).map((x) => -x), terms, n);
      }
      layers.push(scores!);
    }
    return layers;
  };
  const { weights, bias } = gate.keyed!;
  // Less its terms a keyed gate is the linear one of its own weights.
  const [got, wanted] = [await scoresOf(gate), await scoresOf({ ...alone, weights, bias })];
  got.forEach((scores, layer) => assertClose(scores, wanted[layer], 1e-4, `layer ${layer}`));

  const keptBy = async (some: Gate, policy: string, rest: object = { keep: "40%" }) => {
    using context = await openContext(model, TEXT, { policy, gate: some, ...rest });
    return Array.from({ length: config.layers }, (_, layer) => [...context.cache.positions(layer, 0)]);
  };
  const differ = async (policy: string, rest?: object) =>
    JSON.stringify(await keptBy(gate, policy, rest)) !== JSON.stringify(await keptBy(alone, policy, rest));
  assert.ok(await differ("gate"));
  assert.ok(await differ("gate(combine=risk)"));
  assert.ok(!await differ("gate(read=stream)"));
  assert.ok(!await differ("gate(coverage=0.75, window=32)", { riskWorst: 0.9, keep: undefined }));
  assert.ok(!await differ("gate", { keep: "40%", maxCache: { tokens: 60, rule: "gate" } }));
  const towards = (some: Gate): Gate => {
    return { ...some, info: { ...some.info, calibration: { ...some.info.calibration, towards: "kvzip-plus" } } };
  };
  const [one, other] = await Promise.all([gate, alone].map((each) => {
    return gateScorer(model, towards(each), { target: "kvzip-plus", keyed: true });
  }));
  assert.deepEqual([one.keyed, other.keyed], [false, false]);
});

Deno.test("without() gives the sums of the columns that are left", () => {
  const next = randomSource(3), width = 9, rows = 20, columns = [0, 1, 2, 6, 7, 8];
  const data = Float64Array.from({ length: width * rows }, next), y = Float64Array.from({ length: 2 * rows }, next);
  const all = new NormalEquations(width, 2, { measured: 3 }), few = new NormalEquations(6, 2);
  all.add({ data, rows }, y);
  few.add({ data: Float64Array.from(columns.flatMap((i) => [...data.subarray(i * rows, (i + 1) * rows)])), rows }, y);
  const left = all.without(3, 3);
  for (const name of ["cross", "squares"] as const) assert.deepEqual(left[name], few[name], name);
  assertClose(Float32Array.from(left.gram), Float32Array.from(few.gram), 1e-6, "XᵀX");
  assert.deepEqual([left.rows, left.width], [rows, 6]);
  assert.equal(left.meanDiagonal(), few.meanDiagonal());
  const first = [0, 1, 2].reduce((sum, i) => sum + all.gram[i * width + i], 0) / 3;
  assert.equal(all.meanDiagonal(), first);
});
