/** A capped cache and re-rotated positions, on tiny models: what is answered, what is refused, what stays in bounds. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { stepRules } from "../../core/rules/registry.ts";
import { extend } from "../../model/decode/extend.ts";
import { budgetUnderCap } from "../../model/decode/max_cache.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { contextIds, controlPositions, questionIds } from "../../model/text/prompt.ts";
import { rolls } from "../../model/read/rolling.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { assertClose } from "../_helper/close.ts";
import { predictedAndMeasured, randomGate } from "../_helper/gate.ts";
import { oracleLogits } from "../_helper/oracle.ts";

const FOLDER = fileURLToPath(new URL("../data/models/", import.meta.url));
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  4,
);
const QUESTIONS = ["How many stakes?", "Who kept the gate, and why did she count the stakes twice?", "What was shut?"];

async function tiny(name = "llama-plain.gguf", options: Parameters<typeof loadModel>[2] = {}): Promise<Model> {
  const engines = { dense: "web", backend: "ts", precision: "float32", frame: "line", ...options } as const;
  return await loadModel(FOLDER + name, await currentRuntime(), engines);
}

/** `object` with some members replaced; its own methods still find its private fields. */
function replaced<T extends object>(object: T, members: Partial<T>): T {
  return new Proxy(object, {
    get(target, name) {
      if (name in members) return members[name as keyof T];
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** The same model with another trained context, and answers that never end by themselves when `endless`. */
function changed(model: Model, contextLength: number, endless = false): Model {
  const tokenizer = endless ? replaced(model.tokenizer, { endIds: new Set() }) : model.tokenizer;
  const config = { ...model.config, contextLength };
  return { ...model, tokenizer, config, dense: replaced(model.dense, { config }) };
}

/** Asserts that logits differ by at most 1e-4 anywhere. */
function sameLogits(got: Float32Array, want: Float32Array): void {
  const worst = got.reduce((most, x, i) => Math.max(most, Math.abs(x - want[i])), 0);
  assert.ok(got.length === want.length && worst <= 1e-4, `logits differ by ${worst}`);
}

async function refusal(promise: Promise<unknown>): Promise<PalisadeError> {
  const error = await promise.then(() => undefined, (reason) => reason);
  assert.ok(error instanceof PalisadeError, `not refused: ${error}`);
  return error;
}

for (const { name } of stepRules) {
  Deno.test(`ask() under a cap with ${name} answers alike in any order of questions`, async () => {
    await using model = await tiny();
    const endless = changed(model, 4096, true);
    const gate = randomGate(model.config);
    const options: ContextOptions = { keep: "50%", maxCache: { tokens: 60, rule: name }, gate };
    const answers: string[][] = [];
    for (const order of [[0, 1, 2], [2, 0, 1], [1, 1, 0, 2]]) {
      using context = await openContext(endless, TEXT, options);
      const before = { bytes: context.cache.bytes().live, at: context.cache.position, all: context.cache.entries() };
      const mine: string[] = [];
      for (const i of order) {
        const answer = await context.ask(QUESTIONS[i], { maxTokens: 40 });
        mine[i] = answer.ids.join();
        assert.ok(answer.maxCache!.evictions >= 2 && answer.maxCache!.evictedFromContext > 0);
        assert.ok(answer.maxCache!.peakEntries <= 60 * model.config.kvHeads * model.config.layers);
      }
      const after = { bytes: context.cache.bytes().live, at: context.cache.position, all: context.cache.entries() };
      assert.deepEqual(after, before);
      answers.push(mine);
    }
    assert.deepEqual(answers[1], answers[0]);
    assert.deepEqual(answers[2], answers[0]);
    assert.equal(model.backend.memory().allocatedBytes, 0);
  });
}

Deno.test("ask() under a cap that is never reached gives the tokens of no cap", async () => {
  await using model = await tiny();
  using plain = await openContext(model, TEXT, { keep: "30%" });
  using capped = await openContext(model, TEXT, { keep: "30%", maxCache: { tokens: 1000 } });
  for (const question of QUESTIONS) {
    const [a, b] = [await plain.ask(question, { maxTokens: 20 }), await capped.ask(question, { maxTokens: 20 })];
    assert.deepEqual(b.ids, a.ids);
    assert.equal(b.maxCache?.evictions, 0);
    assert.equal(a.maxCache, undefined);
  }
});

Deno.test("ask() under a cap protects the chat template's markers of context and question", async () => {
  await using model = await tiny();
  const endless = changed(model, 4096, true);
  using context = await openContext(endless, TEXT, { keep: "50%", maxCache: { tokens: 60, rule: "tova" } });
  const read = contextIds(model.frame, model.tokenizer, TEXT);
  const asked = questionIds(model.frame, model.tokenizer, QUESTIONS[0]);
  assert.ok(controlPositions(asked, model.tokenizer).length > 0);
  assert.deepEqual(context.plan.markers, controlPositions(read, model.tokenizer));
  const { health, maxCache } = await context.ask(QUESTIONS[0], { maxTokens: 100 });
  assert.ok(maxCache!.evictions > 5);
  assert.equal(health.headsWithSinks, health.heads);
});

Deno.test("ask() under a cap gives its copy back when it is interrupted", async () => {
  await using model = await tiny();
  using context = await openContext(changed(model, 4096, true), TEXT, { keep: "50%", maxCache: { tokens: 60 } });
  const held = model.backend.memory().allocatedBytes, controller = new AbortController();
  let pieces = 0;
  const onText = () => {
    if (++pieces === 20) controller.abort();
  };
  const { finish } = await context.ask(QUESTIONS[0], { signal: controller.signal, onText });
  assert.equal(finish, "interrupted");
  assert.equal(model.backend.memory().allocatedBytes, held);
});

Deno.test("openContext() lets the cap win over keep and says so", async () => {
  await using model = await tiny();
  using context = await openContext(model, TEXT, { keep: "100%", maxCache: { tokens: 40 } });
  assert.ok(context.keepCapped);
  assert.equal(context.budget.perHead, 36);
  assert.ok(context.cache.entries() <= 36 * model.config.kvHeads * model.config.layers);
  const answers = [
    await context.ask(QUESTIONS[0], { maxTokens: 30 }),
    await context.ask(QUESTIONS[1], { maxTokens: 5 }),
  ];
  const { maxCache, health, positions } = reportOf(model, context, answers, { keepAsked: "100%", loadMs: 1 });
  assert.equal(maxCache?.asked, 40);
  assert.equal(maxCache?.rule, "defensive");
  assert.equal(maxCache?.keepCapped, true);
  assert.equal(maxCache?.evictions, answers[0].maxCache!.evictions + answers[1].maxCache!.evictions);
  assert.ok(maxCache!.window.used < maxCache!.window.asked);
  assert.deepEqual(health, answers[1].health);
  assert.equal(positions, "true");
  using roomy = await openContext(model, TEXT, { keep: "20%", maxCache: { tokens: 50 } });
  assert.equal(roomy.keepCapped, false);
});

Deno.test("budgetUnderCap() looks at the rounded sums too, not at entries per head alone", () => {
  const shape = { heads: 4, kvHeads: 2, headDim: 8, layers: 2 };
  for (const name of ["layer-defensive", "defensive"]) {
    const policy = resolvePolicy(name);
    const asked = resolveBudget(policy, { fraction: 0.367 }, 100, shape);
    assert.deepEqual([asked.perHead, asked.perLayer, asked.total], [36, 73, 146]);
    assert.equal(budgetUnderCap(policy, asked, 42), asked);
    const capped = budgetUnderCap(policy, asked, 40);
    assert.deepEqual([capped.perHead, capped.perLayer, capped.total], [36, 72, 144]);
  }
});

Deno.test("openContext() refuses caps that can't hold, before reading", async () => {
  await using model = await tiny();
  const code = async (options: ContextOptions) => {
    const error = await refusal(openContext(model, TEXT, options));
    assert.equal(error.kind, "input");
    return error.code;
  };
  for (const tokens of [0, -3, 1.5, NaN, 2 ** 60]) {
    assert.equal(await code({ maxCache: { tokens } }), "max-cache.range");
  }
  assert.equal(await code({ maxCache: { tokens: 3 } }), "max-cache.small");
  assert.equal(await code({ maxCache: { tokens: 50, rule: "h3o" } }), "step-policy.unknown");
  assert.equal(await code({ policy: "full", maxCache: { tokens: 50 } }), "max-cache.policy");
  const { message } = await refusal(openContext(model, TEXT, { maxCache: { tokens: 3 } }));
  const least = Number(/at least (\d+)/.exec(message)![1]);
  using context = await openContext(changed(model, 4096, true), TEXT, {
    policy: "layer-defensive",
    maxCache: { tokens: least },
  });
  const { maxCache } = await context.ask(QUESTIONS[0], { maxTokens: 30 });
  assert.ok(maxCache!.peakEntries <= least * model.config.kvHeads * model.config.layers);
});

const TURNING = ["llama-plain", "qwen2-plain", "llama-yarn", "smollm3-plain", "mistral3-yarn"];
for (const name of TURNING.map((model) => `${model}.gguf`)) {
  for (const policy of ["streaming-llm", "random(window=4)", "snapkv", "layer-defensive"]) {
    Deno.test(`re-rotated ${policy} on ${name} gives the logits of masking at these positions`, async () => {
      await using model = await tiny(name);
      using context = await openContext(model, TEXT, { policy, keep: "40%", positions: "rerotate" });
      const { layers, kvHeads } = model.config;
      const kept = Array.from(
        { length: layers },
        (_, layer) => Array.from({ length: kvHeads }, (_, head) => context.cache.positions(layer, head)),
      );
      const longest = Math.max(...kept.flat().map(({ length }) => length));
      assert.equal(context.cache.position, longest);
      const read = contextIds(model.frame, model.tokenizer, TEXT);
      const asked = questionIds(model.frame, model.tokenizer, QUESTIONS[0]);
      const masked = await oracleLogits(model.dense, [...read, ...asked], 1, read.length, kept, longest);
      sameLogits(await extend(model.dense, context.cache, asked), masked);
      const elsewhere = await oracleLogits(model.dense, [...read, ...asked], 1, read.length, kept);
      assert.throws(() => sameLogits(masked, elsewhere), /differ/, "positions must matter");
    });
  }
}

Deno.test("re-rotated positions give the logits of true ones where a whole tail is kept", async () => {
  await using model = await tiny();
  const options = { policy: "streaming-llm(sinks=0)", keep: "40%" };
  using plain = await openContext(model, TEXT, options);
  using moved = await openContext(model, TEXT, { ...options, positions: "rerotate" });
  const asked = questionIds(model.frame, model.tokenizer, QUESTIONS[0]);
  assert.ok(moved.cache.position < plain.cache.position);
  const logits = await extend(model.dense, plain.cache, asked);
  sameLogits(await extend(model.dense, moved.cache, asked), logits);
});

Deno.test("a context beyond the trained length is read with an early policy and re-rotation, and with nothing else", async () => {
  await using model = await tiny();
  const short = changed(model, 64);
  const tokens = contextIds(model.frame, model.tokenizer, TEXT).length;
  assert.ok(tokens > 3 * 64);
  const read = (policy: string, keep: string, positions: "true" | "rerotate" = "rerotate") =>
    openContext(short, TEXT, { policy, keep, positions });
  const names = policies.map(({ name }) => name).filter((name) => rolls(resolvePolicy(name)) && name !== "full");
  assert.ok(names.includes("streaming-llm") && names.includes("knorm"));
  for (const name of names) {
    using context = await read(name, "20");
    assert.equal(context.cache.entries(), 20 * model.config.kvHeads * model.config.layers);
    assert.equal(context.cache.position, 20);
    assert.equal(context.cache.seen, tokens);
    const answer = await context.ask(QUESTIONS[0], { maxTokens: 60 });
    assert.ok(answer.ids.length >= 1 && answer.health.position <= 64);
    assert.ok(["context", "stop"].includes(answer.finish), answer.finish);
  }
  assert.equal((await refusal(read("streaming-llm", "20", "true"))).code, "context.too-long");
  assert.match((await refusal(read("snapkv", "20"))).message, /such as streaming-llm: snapkv needs all of it/);
  assert.match((await refusal(read("streaming-llm", "64"))).message, /fewer than 64 .* instead of 64/);
});

Deno.test("a context beyond the trained length is read by a gate on the way, in any scope", async () => {
  await using model = await tiny();
  const { kvHeads, layers } = model.config, gate = randomGate(model.config);
  for (const compete of ["head", "layer", "model"]) {
    const policy = `gate(read=stream, compete=${compete}, window=8)`;
    using context = await openContext(changed(model, 96), TEXT, { policy, keep: "24", positions: "rerotate", gate });
    const positions = Array.from({ length: layers * kvHeads }, (_, i) => context.cache.positions(i >> 1, i & 1));
    assert.equal(context.cache.entries(), 24 * kvHeads * layers);
    assert.equal(context.cache.seen, context.tokens);
    assert.equal(context.cache.position, Math.max(...positions.map(({ length }) => length)));
    for (const head of positions) {
      assert.deepEqual([...head.slice(0, 4)], [0, 1, 2, 3]);
      assert.deepEqual([...head.slice(-8)], Array.from({ length: 8 }, (_, i) => context.tokens - 8 + i));
    }
  }
  const all = openContext(changed(model, 96), TEXT, {
    policy: "gate(read=stream)",
    keep: "96",
    positions: "rerotate",
    gate,
  });
  assert.equal((await refusal(all)).code, "context.too-long");
});

for (
  const policy of [
    "layer-defensive",
    "snapkv",
    "full",
    "gate",
    "gate(combine=risk)",
    "gate(read=stream)",
    "streaming-llm",
    "kvzip",
  ]
) {
  Deno.test(`a context read with ${policy} knows what the gate predicted of all it kept`, async () => {
    await using model = await tiny();
    const { kvHeads, layers } = model.config, gate = randomGate(model.config);
    const maxCache = { tokens: policy === "full" ? 400 : 60, rule: "gate" };
    using context = await openContext(changed(model, 4096, true), TEXT, { policy, keep: "40%", maxCache, gate });
    const ids = contextIds(model.frame, model.tokenizer, TEXT), known = context.plan.maxCache!.predicted!.known;
    const seen = await predictedAndMeasured(model, ids, gate);
    for (let i = 0; i < layers * kvHeads; i++) {
      const positions = context.cache.positions(Math.floor(i / kvHeads), i % kvHeads),
        { predicted } = seen[
          Math.floor(i / kvHeads)
        ];
      const whole = Float32Array.from(positions, (at) => predicted[i % kvHeads * ids.length + at]);
      assertClose(known[i], whole, 1e-4, `layer and head ${i}`);
    }
    const { maxCache: cap, ids: answer } = await context.ask(QUESTIONS[0], { maxTokens: 60 });
    assert.equal(answer.length, 60);
    assert.ok(cap!.stateBytes > 0 && (policy === "full" || cap!.evictions > 1));
  });
}

Deno.test("a context rolled beyond the trained length knows what the gate predicted of all it kept", async () => {
  await using model = await tiny();
  const gate = randomGate(model.config), short = changed(model, 96, true);
  for (const policy of ["streaming-llm", "keydiff", "gate(read=stream, window=8)"]) {
    const options = {
      policy,
      keep: "24",
      positions: "rerotate",
      maxCache: { tokens: 60, rule: "gate" },
      gate,
    } as const;
    using context = await openContext(short, TEXT, options);
    const { known } = context.plan.maxCache!.predicted!;
    known.forEach((scores, i) => assert.equal(scores.length, context.cache.length(i >> 1, i & 1)));
    assert.ok(new Set(known.flatMap((scores) => [...scores])).size > context.cache.entries() / 2);
    const { finish, maxCache, health } = await context.ask(QUESTIONS[0], { maxTokens: 200 });
    assert.deepEqual([finish, health.position <= 96], ["length", true]);
    assert.ok(maxCache!.evictions > 5);
  }
  const whole = openContext(short, TEXT, { policy: "gate", keep: "24", positions: "rerotate", gate });
  assert.match((await refusal(whole)).message, /with gate\(read=stream\): gate as it is scores all of it first/);
});

Deno.test("openContext() refuses a cap by a gate for a model without one", async () => {
  await using model = await tiny();
  const error = await refusal(openContext(model, TEXT, { keep: "40%", maxCache: { tokens: 60, rule: "gate" } }));
  assert.equal(error.code, "gate.none");
});

Deno.test("a rolling read keeps what the whole context at once keeps, where chunks can't matter", async () => {
  await using model = await tiny();
  using rolling = await openContext(changed(model, 48), TEXT, {
    policy: "streaming-llm",
    keep: "20",
    positions: "rerotate",
  });
  using whole = await openContext(model, TEXT, { policy: "streaming-llm", keep: "20", positions: "rerotate" });
  assert.deepEqual([...rolling.cache.positions(1, 1)], [...whole.cache.positions(1, 1)]);
  // The first layer's rows depend on the tokens alone: same keys at the same positions.
  for (let head = 0; head < model.config.kvHeads; head++) {
    const [a, b] = await Promise.all([rolling, whole].map(({ cache }) => cache.rows(0).copyRows(head)));
    assertClose(a.keys, b.keys, 1e-4, "keys");
    assertClose(a.values, b.values, 1e-4, "values");
  }
});

/** Bytes of all caches after each token, counted where logits are made. */
async function generate(trained: number, options: ContextOptions, tokens: number) {
  await using model = await tiny("llama-plain.gguf", { dense: "auto", backend: "wasm" });
  const endless = changed(model, trained, true);
  const bytes: number[] = [], wasm: number[] = [];
  const dense = replaced(endless.dense, {
    logits(hidden, count) {
      bytes.push(model.backend.memory().allocatedBytes);
      wasm.push(model.backend.memory().wasmBytes);
      return model.dense.logits(hidden, count);
    },
  });
  using context = await openContext({ ...endless, dense }, TEXT, { ...options, gate: randomGate(model.config) });
  const answer = await context.ask(QUESTIONS[0], { maxTokens: tokens, temperature: 1, seed: 5 });
  const cap = options.maxCache!.tokens * model.config.kvHeads * model.config.layers;
  return { answer, bytes, wasm, cap, tokens: context.tokens };
}

for (
  const [what, trained, positions, rule] of [
    ["true positions", 16384, "true", "defensive"],
    ["re-rotation", 512, "rerotate", "defensive"],
    ["re-rotation and a gate", 512, "rerotate", "gate"],
  ] as const
) {
  Deno.test(`10,000 tokens under a cap with ${what} in a context of ${trained} hold the bytes of token 2,000`, async () => {
    // A refit's biases go one by one, with the entries that they are of.
    const options: ContextOptions = { keep: "50%", maxCache: { tokens: 100, rule }, positions, refit: "none" };
    const { answer, bytes, wasm, cap, tokens } = await generate(trained, options, 10_000);
    assert.equal(answer.finish, "length");
    assert.equal(answer.ids.length, 10_000);
    assert.equal(bytes.length, 10_000);
    assert.equal(bytes[9_999], bytes[1_999]);
    assert.equal(wasm[9_999], wasm[1_999]);
    assert.ok(new Set(bytes.slice(1_999)).size <= 10, "bytes go round in one cycle of the low-water mark");
    assert.ok(answer.maxCache!.peakEntries <= cap);
    assert.ok(answer.maxCache!.evictions > 900);
    const { position } = answer.health, seen = tokens + answer.questionTokens + 9_999;
    if (positions === "true") assert.equal(position, seen);
    else assert.ok(position <= 512, `${position}`);
    assert.ok(Math.abs(answer.health.keptFraction - 100 / seen) < 0.002, `${answer.health.keptFraction}`);
  });
}
