/** What stays when nothing is asked for, and the frame's own tokens, which every policy of ours protects. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { globalLayers } from "../../core/shape.ts";
import { DEFAULTS } from "../../mod.ts";
import { loadModel } from "../../model/model.ts";
import { defaultShare, hasFewHeads, leastKept } from "../../model/read/least_kept.ts";
import { planReading } from "../../model/read/plan.ts";
import { reportOf } from "../../model/report.ts";
import { type Context, openContext } from "../../model/session.ts";
import { contextIds, frameTokens, withWords } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { reportText } from "../../cli/print/closing_report.ts";
import { PROSE, tinyModel } from "../_helper/workbench.ts";

const WORDS = "Listen: {text}\n{question}";
const TEXT = PROSE.slice(0, 320);

/** Whether every head of every layer holds the first `count` tokens. */
function holdsFirst({ cache }: Context, count: number): boolean {
  const { layers, kvHeads } = cache.shape;
  return Array.from({ length: layers * kvHeads }, (_, i) => cache.positions(Math.floor(i / kvHeads), i % kvHeads))
    .every((positions) => positions[count - 1] === count - 1);
}

Deno.test("planReading() keeps the default share, but no fewer entries than the least", async () => {
  await using tiny = await tinyModel();
  const layers = 12, windows = new Array<number>(layers).fill(0);
  const config = { ...tiny.config, contextLength: 1e6, kvHeads: 1, layers, windows };
  const plan = (tokens: number, keep?: string) =>
    planReading({ ...tiny, config }, new Array(tokens).fill(5), { policy: resolvePolicy("snapkv"), keep });
  const { leastKept } = DEFAULTS;
  for (const [tokens, perHead, least] of [[300, 300, true], [1000, leastKept, true], [6000, 1200, false]] as const) {
    const planned = plan(tokens);
    assert.deepEqual([planned.budget.perHead, planned.least !== undefined], [perHead, least]);
    assert.deepEqual([plan(tokens, "20%").budget.perHead, plan(tokens, "20%").least], [tokens / 5, undefined]);
  }
});

Deno.test("leastKept() gives each token two places, among the heads that evict", () => {
  const { leastKept: least } = DEFAULTS, shape = { heads: 4, kvHeads: 1, headDim: 256, layers: 18 };
  // Gemma 3 270M: three of its layers look at everything.
  const windowed = { ...shape, windows: Array.from({ length: 18 }, (_, layer) => layer % 6 === 5 ? 0 : 512) };
  const cases = [[100, 100], [700, least], [900, 600], [1000, 666], [30_000, 20_000]] as const;
  for (const [tokens, entries] of cases) assert.equal(leastKept(tokens, windowed), entries, `${tokens}`);
  assert.deepEqual([leastKept(30_000, shape), defaultShare(30_000, shape)], [3333, 0.2]);
  assert.equal(defaultShare(30_000, windowed), 2 / 3);
  assert.equal(defaultShare(30_000, { ...windowed, layers: 6 }), 1);
  assert.deepEqual([hasFewHeads(windowed), hasFewHeads(shape)], [true, false]);
  // No layer looks at everything; and no text.
  assert.deepEqual([defaultShare(30_000, { ...windowed, layers: 5 }), defaultShare(0, windowed)], [1, 0.2]);
});

Deno.test("by default a model with few heads that evict keeps two places for each token, and says so", async () => {
  const path = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
  await using model = await loadModel(path, await currentRuntime(), { dense: "wasm", backend: "wasm" });
  const heads = globalLayers(model.config).length * model.config.kvHeads;
  using context = await openContext(model, PROSE.slice(0, 4000), { policy: "snapkv" });
  const { tokens, budget: { perHead }, leastKept: least } = context;
  assert.deepEqual([heads, perHead, least], [4, Math.floor(tokens / 2), true]);
  const text = reportText(reportOf(model, context, [], { keepAsked: DEFAULTS.keep, loadMs: 0 }));
  assert.match(text, /by default each token has 2 places on average: few heads of this model evict/);
  using asked = await openContext(model, PROSE.slice(0, 4000), { policy: "snapkv", keep: "20%" });
  assert.equal(asked.budget.perHead, Math.floor(tokens / 5));
});

Deno.test("planReading() leaves room below the trained length where positions close up", async () => {
  await using tiny = await tinyModel();
  const model = { ...tiny, config: { ...tiny.config, contextLength: 300 } };
  const options = { policy: resolvePolicy("knorm"), positions: "rerotate" } as const;
  assert.equal(planReading(model, new Array(400).fill(5), options).budget.perHead, 150);
});

Deno.test("frameTokens() counts what stands in front of the text, and always leaves the text a token", async () => {
  await using model = await tinyModel();
  const framed = { ...model, frame: withWords(model.frame, WORDS) };
  const alone = contextIds(framed.frame, model.tokenizer, ""), all = contextIds(framed.frame, model.tokenizer, TEXT);
  const count = frameTokens(framed, all);
  assert.ok(count > 4 && count <= alone.length, `${count} of ${alone.length}`);
  assert.deepEqual(all.slice(0, count), alone.slice(0, count));
  assert.equal(frameTokens(framed, alone), alone.length - 1);
  assert.ok(frameTokens({ ...model, frame: withWords(model.frame, "none") }, all) <= 1);
});

for (const policy of ["kvzip", "gate", "gate(read=stream)", "layer-defensive", "pyramidkv", "cake", "streaming-llm"]) {
  Deno.test(`openContext() with ${policy} keeps the frame's tokens in every head`, async () => {
    await using model = await tinyModel();
    using context = await openContext(model, PROSE.slice(0, 500), { policy, keep: "60%", frame: WORDS });
    assert.ok(context.frameTokens > 4);
    assert.equal(context.budget.sinks, context.frameTokens);
    assert.ok(holdsFirst(context, context.frameTokens));
    assert.equal(context.cache.entries() <= context.budget.total, true);
    const report = reportOf(model, context, [], { keepAsked: "60%", loadMs: 0 });
    assert.deepEqual([report.frame.tokens, report.frame.protected], [context.frameTokens, true]);
    assert.match(reportText(report), /^frame .* stay in every head$/m);
  });
}

Deno.test("openContext() protects no more than was asked where the frame takes too much, or nothing was to be protected", async () => {
  await using model = await tinyModel();
  const open = (policy: string, keep: string) => openContext(model, TEXT, { policy, keep, frame: WORDS });
  using small = await open("kvzip", "12");
  assert.deepEqual([small.budget.sinks, small.frameTokens > 4], [4, true]);
  const report = reportOf(model, small, [], { keepAsked: "12", loadMs: 0 });
  assert.equal(report.frame.protected, false);
  assert.match(reportText(report), /^frame .* too many to protect in 12 per head$/m);
  for (const policy of ["snapkv@reference", "snapkv(sinks=0)"]) {
    using context = await open(policy, "60%");
    assert.equal(context.budget.sinks, 0, policy);
  }
});

Deno.test("a short text loses nothing by default, and the report says why", async () => {
  await using model = await tinyModel();
  using context = await openContext(model, TEXT, { policy: "snapkv" });
  assert.equal(context.leastKept, true);
  const report = reportOf(model, context, [], { keepAsked: DEFAULTS.keep, loadMs: 0 });
  assert.deepEqual([report.keep.least, report.keep.everything, report.cache.evicted], [true, true, 0]);
  assert.match(reportText(report), /by default at least 512 tokens per head stay/);
  using asked = await openContext(model, TEXT, { policy: "snapkv", keep: "20%" });
  assert.equal(asked.leastKept, false);
  assert.ok(asked.cache.entries() < report.cache.kept / 4);
});
