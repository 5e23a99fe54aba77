import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { answerBeside, answerFully } from "../../evaluate/sweep/answer.ts";
import {
  type Case,
  forkCache,
  forkMerged,
  type KeptCase,
  prefillOnce,
  readingsOf,
  type SharedPrefill,
  sharesPrefill,
  thinFork,
} from "../../evaluate/sweep/shared_prefill.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { contextIds, questionIds } from "../../model/text/prompt.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { PROSE, tinyModel } from "../_helper/workbench.ts";

const TEXT = PROSE.slice(0, 320);
const KEEPS = [{ fraction: 0.5 }, { fraction: 0.2 }, { tokens: 20 }, { tokens: 4 }];
/** Other windows, kernels and parameters than the defaults, and budgets that shrink the window. */
const TEXTS = [
  ...policies.map(({ name }) => name),
  ...policies.filter(({ reference }) => reference).map(({ name }) => `${name}@reference`),
  "snapkv(window=16,kernel=3)",
  "layer-defensive(window=8,norm=off)",
  "adakv(snapkv, safeguard=0.4)",
  "gate(combine=risk, norm=heads, compete=layer)",
  "kvzip(chunk=64)",
  "kvzip-plus(postfix=0)",
  "expected-attention(future=9)",
  "triattention(future=9)",
  "full(key-channels=60%)",
  "snapkv(key-channels=60%)",
  "kvzip(key-channels=50%)",
  "snapkv(merge=sum)",
  "kvzip(merge=sum)",
  "kvzip(merge=mean, rows=int4)",
  "layer-defensive(merge=mean, key-channels=60%)",
  "capkv(merge=sum, rows=int8)",
  "h2o(merge=mean)",
];

function casesOf(keeps = KEEPS): Case[][] {
  const shared = TEXTS.map((text) => resolvePolicy(text)).filter(sharesPrefill);
  return readingsOf(shared.flatMap((policy) => keeps.map((keep) => ({ policy, keep }))));
}

function keptOf(cache: RaggedCache): number[][][] {
  const { layers, kvHeads } = cache.shape;
  return Array.from(
    { length: layers },
    (_, layer) => Array.from({ length: kvHeads }, (_, head) => [...cache.positions(layer, head)]),
  );
}

for (const backend of ["ts", "wasm"] as const) {
  Deno.test(`prefillOnce() on ${backend} keeps exactly what openContext() keeps, for every policy and budget`, async () => {
    await using model = await tinyModel(backend);
    const ids = contextIds(model.frame, model.tokenizer, TEXT);
    for (const cases of casesOf()) {
      using prefill = await prefillOnce(model, ids, cases);
      for (const each of prefill.cases) await sameAsAlone(model, prefill, each);
    }
  });
}

Deno.test("prefillOnce() keeps what openContext() keeps of a model whose window layers have other KV heads", async () => {
  const path = fileURLToPath(new URL("../data/models/gemma4-keys.gguf", import.meta.url));
  await using model = await loadModel(path, await currentRuntime(), { backend: "wasm", dense: "wasm" });
  const ids = contextIds(model.frame, model.tokenizer, TEXT), keep = { fraction: 0.3 };
  const texts = ["full(rows=int8)", "snapkv", "kvzip", "kvzip(merge=sum)"];
  using prefill = await prefillOnce(model, ids, texts.map((text) => ({ policy: resolvePolicy(text), keep })));
  for (const each of prefill.cases) await sameAsAlone(model, prefill, each);
});

async function sameAsAlone(model: Model, prefill: SharedPrefill, each: KeptCase): Promise<void> {
  const { policy, kept } = each, own = policy.threshold === undefined ? each : { policy };
  using context = await openContext(model, TEXT, own);
  const label = `${policy.name} ${JSON.stringify([policy.parameters, each.keep])}`;
  if (kept === undefined && !policy.stages) {
    assert.deepEqual(keptOf(prefill.cache), keptOf(context.cache), label);
    return;
  }
  const { globals } = prefill.cache, all = keptOf(prefill.cache);
  const everything = () => globals.map((layer) => all[layer].map((rows) => Int32Array.from(rows)));
  using fork = each.steps
    ? await forkMerged(prefill, each, policy.stages?.rows)
    : await forkCache(prefill.cache, kept ?? everything(), policy.stages?.rows);
  if (policy.stages?.keyChannels) await thinFork(fork, prefill, each);
  assert.deepEqual(keptOf(fork), keptOf(context.cache), label);
  assert.equal(fork.position, context.cache.position);
  assert.equal(fork.bytes().live, context.cache.bytes().live, label);
  for (let layer = 0; layer < model.config.layers; layer++) {
    for (let head = 0; head < model.config.kvHeads; head++) {
      const got = await fork.rows(layer).copyRows(head);
      assert.deepEqual(got, await context.cache.rows(layer).copyRows(head), label);
    }
  }
}

Deno.test("sharesPrefill() is false for what reads the context in its own way", () => {
  for (const own of ["gate(read=stream)", "moved(refit=both)", "kvzip(merge=sum, refit=both)"]) {
    assert.ok(!sharesPrefill(resolvePolicy(own)), own);
  }
  for (
    const shared of [
      "full",
      "kvzip",
      "kvzip(compete=layer)",
      "kvzip(refit=both)",
      "gate",
      "kvzip(key-channels=60%)",
      "kvzip(merge=sum)",
    ]
  ) {
    assert.ok(sharesPrefill(resolvePolicy(shared)), shared);
  }
});

Deno.test("readingsOf() puts together what one reading can measure, and apart what it can't", () => {
  const names = (texts: string[]) =>
    readingsOf(texts.map((text) => ({ policy: resolvePolicy(text), keep: { fraction: 0.5 }, text })))
      .map((cases) => cases.map(({ text }) => text));
  assert.deepEqual(names(["full", "kvzip", "snapkv", "kvzip(compete=layer)", "gate", "expected-attention", "moved"]), [
    ["full", "kvzip", "snapkv", "kvzip(compete=layer)", "gate", "expected-attention", "moved"],
  ]);
  assert.deepEqual(
    names(["kvzip", "kvzip-plus", "kvzip(chunk=64)", "snapkv", "kvzip-plus(chunk=64)", "expected-attention(future=9)"]),
    [["kvzip", "snapkv", "expected-attention(future=9)"], ["kvzip-plus"], ["kvzip(chunk=64)"], [
      "kvzip-plus(chunk=64)",
    ]],
  );
  assert.deepEqual(names(["gate", "kvzap", "snapkv"]), [["gate", "snapkv"], ["kvzap"]]);
  assert.deepEqual(names([]), []);
});

Deno.test("answerBeside() gives the answer of ask() and the divergence of each step", async () => {
  await using model = await tinyModel("wasm");
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  const asked = questionIds(model.frame, model.tokenizer, "How many stakes?", "There are");
  const options = { maxNewTokens: 24, contextLength: model.config.contextLength };
  const [cases] = casesOf([{ fraction: 0.2 }, { fraction: 0.9 }]);
  using prefill = await prefillOnce(model, ids, cases.filter(({ policy }) => !policy.stages));
  const full = await answerFully(model, prefill.cache, asked, options);
  const differences = new Set<number | null>();
  for (const each of prefill.cases) {
    using context = await openContext(
      model,
      TEXT,
      each.policy.threshold === undefined ? each : { policy: each.policy },
    );
    const expected = await context.ask("How many stakes?", { answerPrefix: "There are", maxTokens: 24 });
    const answer = await answerBeside(model, context.cache, asked, full, options);
    assert.deepEqual(answer.ids, expected.ids, each.policy.name);
    assert.equal(`There are${answer.text}`, expected.answer);
    assert.equal(answer.finish, expected.finish);
    const at = full.ids.findIndex((id, i) => answer.ids[i] !== id);
    assert.equal(answer.firstDifference, at < 0 ? null : at);
    differences.add(answer.firstDifference);
    if (each.policy.allocate.kind === "all") assert.ok(answer.kl.max < 1e-6, `full diverges by ${answer.kl.max}`);
    else assert.ok(answer.kl.mean > 0 && answer.kl.max >= answer.kl.mean);
    assert.equal(context.cache.position, ids.length, "the cache is as before");
  }
  assert.ok(
    [...differences].some((at) => at !== null && at > 0),
    `no answer differs in its middle: ${[...differences]}`,
  );
});
