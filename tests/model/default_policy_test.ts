import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { inputError } from "../../core/errors.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { defaultPolicy, defaultRefit, type DefaultRefitOptions } from "../../model/default_policy.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { randomGate } from "../_helper/gate.ts";

const PATH = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
const load = async () =>
  await loadModel(PATH, await currentRuntime(), { dense: "web", backend: "ts", precision: "float32" });
const TEXT = "The keeper counted seventeen stakes, and then she counted them again.";

Deno.test("defaultPolicy() takes the gate where there is one, and streams where the context rolls", async () => {
  await using model = await load();
  const gate = randomGate(model.config);
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  const { name, parameters } = await defaultPolicy(model, ids, { gate, rolling: false });
  assert.deepEqual([name, parameters.combine], ["gate", "risk"]);
  assert.equal((await defaultPolicy(model, ids, { gate, rolling: true })).parameters.read, "stream");
  const fitted = { ...model, gate: () => Promise.resolve(gate) };
  assert.equal((await defaultPolicy(fitted, ids, { rolling: false })).name, "gate");
});

Deno.test("defaultPolicy() takes self-gate without a gate, kvzip in chunks that have room where layers share rows", async () => {
  await using model = await load();
  const chunkAt = async (tokens: number, contextLength: number, sources?: number[]) => {
    const shorter = { ...model, config: { ...model.config, contextLength, sources } };
    const ids = new Array(tokens).fill(contextIds(model.frame, model.tokenizer, TEXT).at(-1)!);
    const { name, parameters } = await defaultPolicy(shorter, ids, { rolling: false });
    return [name, parameters.chunk];
  };
  assert.deepEqual(await chunkAt(3000, 8192), ["self-gate", 512]);
  // Where the text leaves no room behind it, chunks of it are repeated behind themselves.
  assert.deepEqual(await chunkAt(8100, 8192), ["self-gate", 512]);
  assert.deepEqual(await chunkAt(280, 300), ["layer-defensive", undefined]);
  const { layers } = model.config, shared = Array.from({ length: layers }, () => 0);
  assert.deepEqual(await chunkAt(3000, 8192, shared), ["kvzip", 2048]);
  assert.deepEqual(await chunkAt(7000, 8192, shared), ["kvzip", 1024]);
  assert.deepEqual(await chunkAt(7800, 8192, shared), ["kvzip", 256]);
  assert.deepEqual(await chunkAt(8100, 8192, shared), ["layer-defensive", undefined]);
});

Deno.test("defaultRefit() refits behind a replay and a gate, where nothing is asked for that a refit takes away", async () => {
  await using model = await load();
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  const of = (policy: string, options: DefaultRefitOptions = {}, other: Partial<Model> = {}) =>
    defaultRefit(resolvePolicy(policy), { ...model, ...other }, ids, options);
  for (const policy of ["kvzip", "self-gate", "gate", "gate(combine=risk)"]) {
    assert.equal(of(policy), "both");
    assert.equal(of(policy, { merge: "none" }), "both");
    for (const asked of [{ risk: 0.1 }, { explain: true }, { merge: "sum" }, { keyChannels: "60%" }]) {
      assert.equal(of(policy, asked), "none", `${policy} ${JSON.stringify(asked)}`);
    }
    const config = { ...model.config, sources: model.config.ropes.map((_, layer) => layer) };
    assert.equal(of(policy, {}, { config }), "none");
    assert.equal(of(policy, {}, { backend: { ...model.backend, refits: false } }), "none");
  }
  // Nothing is repeated while entries go early, behind what guesses from the last queries, and where nothing has room.
  for (const policy of ["gate(read=stream)", "layer-defensive"]) assert.equal(of(policy), "none");
  const full = { config: { ...model.config, contextLength: ids.length + 8 } };
  assert.equal(of("gate", {}, full), "none");
  assert.equal(of("gate", { beyondTrained: true }, full), "both");
});

Deno.test("defaultPolicy() without a gate leaves a context that rolls to layer-defensive", async () => {
  await using model = await load();
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  assert.equal((await defaultPolicy(model, ids, { rolling: true })).name, "layer-defensive");
});

Deno.test("defaultPolicy() passes on that a gate is broken", async () => {
  await using model = await load();
  const broken = { ...model, gate: () => Promise.reject(inputError("gate.width", "Not this width", "x")) };
  await assert.rejects(defaultPolicy(broken, [1, 2], { rolling: false }), { code: "gate.width" });
});

Deno.test("openContext() says which policy it took when none was named", async () => {
  await using model = await load();
  using own = await openContext(model, TEXT, { keep: "50%" });
  assert.deepEqual([own.policy.name, own.refit?.refit], ["self-gate", "both"]);
  using plain = await openContext(model, TEXT, { keep: "50%", refit: "none" });
  assert.deepEqual([plain.policy.name, plain.refit], ["self-gate", undefined]);
  using named = await openContext(model, TEXT, { keep: "50%", policy: "kvzip" });
  assert.equal(named.refit, undefined);
  using gated = await openContext(model, TEXT, { keep: "50%", gate: randomGate(model.config) });
  assert.deepEqual([gated.policy.name, gated.refit?.refit], ["gate", "both"]);
  using risky = await openContext(model, TEXT, { riskWorst: 0.1 });
  assert.equal(risky.policy.name, "defensive-risk");
});
