/** SmolLM2 end to end against the reference implementations' numbers (tests/data/golden, kvpress and DefensiveKV). */
import assert from "node:assert/strict";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { type KeptCase, prefillOnce } from "../../evaluate/sweep/shared_prefill.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { extend } from "../../model/decode/extend.ts";
import { readContext } from "../../model/read/layers.ts";
import type { ReadResult } from "../../model/read/reading.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { smollm2 } from "../_helper/model.ts";
import { numbersOf } from "../_helper/host.ts";
import { oracleLogits } from "../_helper/oracle.ts";
import { readJson, readSafetensors } from "../_helper/golden.ts";
import { type Recorded, recorder } from "../_helper/recorder.ts";
import { assertTopN } from "../_helper/top_n.ts";

interface Golden {
  readonly context_ids: number[];
  readonly question_ids: number[];
  readonly kept: Record<string, Record<string, number[][][]>>;
  readonly greedy: { full: { ids: number[]; text: string } };
}

/** Golden name → ours. */
const POLICIES: Record<string, string> = {
  "snapkv-w32": "snapkv@reference",
  "streaming-llm": "streaming-llm@reference",
  "adakv(snapkv-w32,0.2)": "adakv@reference",
  "critical-adakv(snapkv-w32,0.2)": "critical-adakv@reference",
  "defensive": "defensive@reference",
  "layer-defensive": "layer-defensive@reference",
};
/** Those whose scores are looked at, or that can't share a prefill with the others. */
const RECORDED: Record<string, string> = {
  "tova": "tova@reference",
  "knorm": "knorm@reference",
  "h2o-normalized": "h2o@reference",
  "keydiff": "keydiff@reference",
  "lagkv": "lagkv@reference",
  "expected-attention": "expected-attention@reference",
};
const RATIOS = [0.8, 0.9];
/** Float32 norms of keys, whose dense products are summed in another order, lie this close. */
const NORM_SLACK = 1e-4;

async function open(dense: "web" | "node"): Promise<Model> {
  return await loadModel(await smollm2(), await currentRuntime(), {
    dense,
    precision: "float32",
    backend: "auto",
    frame: "line",
  });
}

function outputWeights(model: Model) {
  return (layer: number) => model.file.readFloat32(`blk.${layer}.attn_output.weight`);
}

/** Reads `ids` and keeps everything. */
async function readAll(model: Model, ids: readonly number[]): Promise<ReadResult> {
  const policy = resolvePolicy("full");
  const budget = resolveBudget(policy, { fraction: 1 }, ids.length, model.config);
  return await readContext(model, ids, { policy, budget, outputWeights: outputWeights(model) });
}

/** Reads `ids`, keeps everything, and notes what every golden policy would keep. */
async function readSharing(model: Model, ids: readonly number[]) {
  const cases = RATIOS.flatMap((ratio) =>
    Object.values(POLICIES).map((name) => ({ policy: resolvePolicy(name), keep: { ratio } }))
  );
  const { cases: keptCases, ...read } = await prefillOnce(model, ids, cases);
  return { ...read, keptCases };
}

/** Reads `ids` and notes the scores of the {@link RECORDED} policies. */
async function readRecording(model: Model, ids: readonly number[]): Promise<Recorded[]> {
  const { policy, recorded } = recorder(Object.values(RECORDED), RATIOS, ids.length, model.config);
  const budget = resolveBudget(policy, { tokens: ids.length - 1 }, ids.length, model.config);
  const { cache } = await readContext(model, ids, {
    policy,
    budget,
    outputWeights: outputWeights(model),
  });
  cache[Symbol.dispose]();
  return recorded;
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  assert.equal(a.length, b.length);
  return a.reduce((worst, x, i) => Math.max(worst, Math.abs(x - b[i])), 0);
}

function greedy(logits: Float32Array): number {
  return logits.reduce((best, x, i) => (x > logits[best] ? i : best), 0);
}

/** Kept positions of one head as triples' numbers, for set arithmetic. */
function jaccard(ours: ArrayLike<number>, theirs: ArrayLike<number>): { common: number; union: number } {
  const mine = new Set(Array.from(ours));
  const common = Array.from(theirs).filter((position) => mine.has(position)).length;
  return { common, union: ours.length + theirs.length - common };
}

Deno.test("SmolLM2 agrees with the reference implementations", async (t) => {
  const golden = await readJson<Golden>("smollm2-single2.json");
  const expected = await readSafetensors("smollm2-logits.safetensors");
  const logitsOf = (name: string) => expected.get(name)!.data;

  for (const dense of ["web", "node"] as const) {
    await t.step(`readContext() on ${dense} gives the golden logits at the first positions`, async () => {
      await using model = await open(dense);
      for (const position of [0, 1, 15, 31]) {
        const { cache, lastHidden } = await readAll(model, golden.context_ids.slice(0, position + 1));
        using _ = cache;
        const difference = largestDifference(
          numbersOf(await model.dense.logits(lastHidden, 1)),
          logitsOf(`position_${position}`),
        );
        assert.ok(difference <= 2e-3, `position ${position} differs by ${difference}`);
      }
    });
  }

  await using model = await open("node");
  const { cache, lastHidden, keptCases } = await readSharing(model, golden.context_ids);
  using _ = cache;

  await t.step("readContext() gives the golden logits after the context", async () => {
    const difference = largestDifference(numbersOf(await model.dense.logits(lastHidden, 1)), logitsOf("last_context"));
    assert.ok(difference <= 2e-3, `differs by ${difference}`);
  });

  await t.step("extend() gives the golden logits and greedy text after the question", async () => {
    const mark = cache.mark();
    let logits = await extend(model.dense, cache, golden.question_ids);
    const difference = largestDifference(logits, logitsOf("last_question"));
    assert.ok(difference <= 2e-3, `differs by ${difference}`);
    const ids: number[] = [];
    for (const _ of golden.greedy.full.ids) {
      ids.push(greedy(logits));
      logits = await extend(model.dense, cache, [ids.at(-1)!]);
    }
    cache.trim(mark);
    assert.deepEqual(ids, golden.greedy.full.ids);
    assert.equal(model.tokenizer.decode(ids), golden.greedy.full.text);
  });

  for (const ratio of RATIOS) {
    for (const [name, ours] of Object.entries(POLICIES)) {
      await t.step(`${ours} keeps the golden sets at r = ${ratio}`, () => {
        assertAlike(keptBy(keptCases, ours, ratio), golden.kept[String(ratio)][name]);
      });
    }
  }

  const recorded = await readRecording(model, golden.context_ids);
  for (const ratio of RATIOS) {
    for (const [name, ours] of Object.entries(RECORDED)) {
      await t.step(`${ours} keeps the golden sets at r = ${ratio}`, () => {
        const mine = recorded.find((each) => each.policy.name === ours && each.ratio === ratio)!;
        const theirs = golden.kept[String(ratio)][name];
        const byScore = name === "lagkv" ? theirs.length : name === "knorm" ? 1 : 0;
        for (let layer = 0; layer < byScore; layer++) assertTopSets(mine, theirs[layer], layer);
        if (byScore < theirs.length) assertAlike(mine.kept().slice(byScore), theirs.slice(byScore));
      });
    }
  }

  await t.step("compact() then extend() equals masking the evicted entries within 1e-4", async () => {
    const kept = keptBy(keptCases, "layer-defensive@reference", RATIOS[0]);
    kept.forEach((heads, layer) => cache.compact(layer, heads));
    const logits = await extend(model.dense, cache, golden.question_ids);
    const masked = await oracleLogits(
      model.dense,
      [...golden.context_ids, ...golden.question_ids],
      1,
      golden.context_ids.length,
      kept,
    );
    const difference = largestDifference(logits, masked);
    assert.ok(difference <= 1e-4, `differs by ${difference}`);
  });
});

/** The golden README's rule: 0.99 over all entries, 0.93 in every head. `[layers][kvHeads]`. */
function assertAlike(kept: readonly (readonly Int32Array[])[], theirs: readonly number[][][]): void {
  let common = 0, union = 0, worst = 1;
  theirs.forEach((heads, layer) =>
    heads.forEach((positions, head) => {
      const each = jaccard(kept[layer][head], positions);
      common += each.common;
      union += each.union;
      worst = Math.min(worst, each.union === 0 ? 1 : each.common / each.union);
    })
  );
  assert.ok(common / union >= 0.99, `pooled Jaccard ${common / union}`);
  assert.ok(worst >= 0.93, `worst head's Jaccard ${worst}`);
}

/** Where scores tie: each golden set of a layer is as large as ours and a top n of our scores. */
function assertTopSets({ policy, budget, layers }: Recorded, theirs: readonly number[][], layer: number): void {
  theirs.forEach((positions, head) => {
    const row = layers[layer].scores.subarray(head * budget.length, (head + 1) * budget.length);
    assert.equal(positions.length, budget.perHead);
    assertTopN(positions, row, `${policy.name}, layer ${layer}, head ${head}`, NORM_SLACK);
  });
}

/** What one policy keeps at one ratio. */
function keptBy(keptCases: readonly KeptCase[], name: string, ratio: number) {
  const found = keptCases.find(({ policy, keep }) => policy.name === name && "ratio" in keep && keep.ratio === ratio);
  return found!.kept!;
}

Deno.test("keep 100 % gives the 32 greedy tokens of plain attention", async (t) => {
  await using model = await open("node");
  const { contextIds, questionIds } = await import("../../model/text/prompt.ts");
  const prompts = [
    ["The capital of France is Paris. The capital of Italy is Rome.", "What is the capital of Italy?"],
    [
      "A recipe for bread: flour, water, salt and yeast. Knead it, let it rise for an hour, and bake it.",
      "How do I bake bread?",
    ],
    ["In 1851 Herman Melville published a novel about a whale and a captain who hunts it.", "Who wrote it, and when?"],
  ];
  for (const [context, question] of prompts) {
    await t.step(question, async () => {
      const read = contextIds(model.frame, model.tokenizer, context);
      const asked = questionIds(model.frame, model.tokenizer, question);
      const policy = resolvePolicy("layer-defensive");
      const budget = resolveBudget(policy, { fraction: 1 }, read.length, model.config);
      const { cache } = await readContext(model, read, {
        policy,
        budget,
        outputWeights: outputWeights(model),
      });
      using _ = cache;
      const ids: number[] = [];
      let logits = await extend(model.dense, cache, asked);
      while (ids.length < 32) {
        ids.push(greedy(logits));
        logits = await extend(model.dense, cache, [ids.at(-1)!]);
      }
      const plain = await oracleLogits(model.dense, [...read, ...asked, ...ids.slice(0, -1)], 32);
      const { vocabulary } = model.config;
      const expected = ids.map((_, i) => greedy(plain.subarray(i * vocabulary, (i + 1) * vocabulary)));
      assert.deepEqual(ids, expected);
    });
  }
});
