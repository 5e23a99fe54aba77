/** Evicting while reading: the same set as one selection over the scores it produced, in bounded memory. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { type Keep, resolveBudget } from "../../core/select/budget.ts";
import { selectTop } from "../../core/select/select.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { GateScorer, readGains } from "../../model/gate/scorer.ts";
import { extend } from "../../model/decode/extend.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { contextIds, questionIds } from "../../model/text/prompt.ts";
import { CHUNK } from "../../model/decode/layer.ts";
import { readContext } from "../../model/read/layers.ts";
import { readStreaming } from "../../model/read/streaming.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { randomGate } from "../_helper/gate.ts";
import { oracleLogits } from "../_helper/oracle.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  22,
);

async function tiny(): Promise<Model> {
  const path = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
  return await loadModel(path, await currentRuntime(), { dense: "web", backend: "wasm", precision: "float32" });
}

async function scorerOf(model: Model): Promise<GateScorer> {
  return new GateScorer(
    model.backend,
    model.config,
    randomGate(model.config),
    await readGains(model.file, model.config),
  );
}

/** Reads in a stream and notes every score, `[layers · kvHeads][length]`. */
async function stream(model: Model, ids: readonly number[], text: string, keep: Keep) {
  const policy = resolvePolicy(text), { kvHeads, layers } = model.config;
  const budget = resolveBudget(policy, keep, ids.length, model.config);
  const scores = Array.from({ length: layers * kvHeads }, () => new Float32Array(ids.length));
  const read = await readStreaming(model, ids, {
    policy,
    budget,
    gate: await scorerOf(model),
    onScores: (layer, chunk, first) =>
      chunk.forEach((score, i) => scores[layer * kvHeads + i % kvHeads][first + Math.floor(i / kvHeads)] = score),
  });
  return { ...read, scores, budget };
}

for (const compete of ["model", "layer", "head"]) {
  for (const keep of [{ fraction: 0.2 }, { fraction: 0.6 }, { tokens: 5 }] as Keep[]) {
    Deno.test(`readStreaming() keeps what batch selection keeps: ${compete}, ${JSON.stringify(keep)}`, async () => {
      await using model = await tiny();
      const { layers, kvHeads } = model.config;
      const ids = contextIds(model.frame, model.tokenizer, TEXT);
      assert.ok(ids.length > 2 * CHUNK && ids.length % CHUNK !== 0);
      const text = `gate(read=stream, compete=${compete})`;
      const { cache, scores, budget } = await stream(model, ids, text, keep);
      using _ = cache;
      const ends = Uint8Array.from(ids, (_, i) => Number(i < budget.sinks || i >= ids.length - budget.window));
      const segments = scores.map((list) => ({ scores: list, protectedEntries: ends }));
      const batch = compete === "model"
        ? selectTop({ segments, count: budget.total })
        : compete === "layer"
        ? Array.from({ length: layers }, (_, layer) =>
          selectTop({ segments: segments.slice(layer * kvHeads, (layer + 1) * kvHeads), count: budget.perLayer }))
          .flat()
        : segments.flatMap((segment) =>
          selectTop({ segments: [segment], count: budget.perHead })
        );
      const ours = scores.map((_, i) => cache.positions(Math.floor(i / kvHeads), i % kvHeads));
      assert.deepEqual(ours, batch);
      assert.equal(cache.position, ids.length);
    });
  }
}

Deno.test("readStreaming() never holds more than the budget and one chunk, counted by the cache", async () => {
  await using model = await tiny();
  const { layers, kvHeads, headDim } = model.config;
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  const { cache, budget } = await stream(model, ids, "gate(read=stream)", { fraction: 0.2 });
  using _ = cache;
  const entries = budget.total + CHUNK * layers * kvHeads;
  assert.ok(entries < ids.length * layers * kvHeads, "the bound says something");
  const { peak, scores, live } = cache.bytes();
  assert.ok(peak <= entries * (2 * headDim * 4 + 4), `${peak} bytes for at most ${entries} entries`);
  assert.equal(scores, 0);
  assert.equal(live, budget.total * 2 * headDim * 4);
});

Deno.test("readStreaming() at keep 100 % leaves the cache of plain attention", async () => {
  await using model = await tiny();
  const ids = contextIds(model.frame, model.tokenizer, TEXT).slice(0, 300);
  const { cache } = await stream(model, ids, "gate(read=stream)", { fraction: 1 });
  using _ = cache;
  const asked = questionIds(model.frame, model.tokenizer, "How many?");
  const plain = await oracleLogits(model.dense, [...ids, ...asked], 1);
  const worst = (await extend(model.dense, cache, asked)).reduce((w, x, i) => Math.max(w, Math.abs(x - plain[i])), 0);
  assert.ok(worst <= 1e-3, `differs by ${worst}`);
});

Deno.test("gate reads the same scores layer by layer as in a stream while nothing was evicted yet", async () => {
  await using model = await tiny();
  const ids = contextIds(model.frame, model.tokenizer, TEXT).slice(0, CHUNK);
  const { cache, budget } = await stream(model, ids, "gate(read=stream)", { fraction: 0.3 });
  using _ = cache;
  const read = await readContext(model, ids, {
    policy: resolvePolicy("gate"),
    budget,
    gate: await scorerOf(model),
    outputWeights: () => Promise.reject(new Error("not needed")),
  });
  using other = read.cache;
  for (let layer = 0; layer < model.config.layers; layer++) {
    for (let head = 0; head < model.config.kvHeads; head++) {
      assert.deepEqual(cache.positions(layer, head), other.positions(layer, head));
    }
  }
});

Deno.test("openContext() with gate(read=stream) keeps the budget and answers", async () => {
  await using model = await tiny();
  let done = 0;
  const options = {
    policy: "gate(read=stream)",
    keep: "20%",
    gate: randomGate(model.config),
    onLayer: (n: number) => done = n,
  };
  using context = await openContext(model, TEXT, options);
  assert.equal(done, model.config.layers);
  assert.equal(context.cache.entries(), context.budget.total);
  assert.ok((await context.ask("How many?", { maxTokens: 3 })).ids.length > 0);
});

Deno.test("readStreaming() stops between chunks when it is aborted, and gives its memory back", async () => {
  await using model = await tiny();
  const controller = new AbortController();
  const policy = resolvePolicy("gate(read=stream)"), ids = contextIds(model.frame, model.tokenizer, TEXT);
  const reading = readStreaming(model, ids, {
    policy,
    budget: resolveBudget(policy, { fraction: 0.2 }, ids.length, model.config),
    gate: await scorerOf(model),
    onLayer: () => controller.abort(),
    signal: controller.signal,
  });
  await assert.rejects(reading, { name: "AbortError" });
  assert.equal(model.backend.memory().allocatedBytes, 0);
});
