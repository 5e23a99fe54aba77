/** Every set of options ends in one way of reading, or in one refusal. */
import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { type PlannedModel, type PlanOptions, planReading } from "../../model/read/plan.ts";
import type { Reading } from "../../model/read/reading.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { tinyModel } from "../_helper/workbench.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  4,
);

type Options = Omit<PlanOptions, "policy">;

/** [policy, options, trained context, what the reading says]. The context has 150 to 300 tokens. */
const PLANNED: readonly [string, Options, number, Partial<Reading> & Pick<Reading, "way">][] = [
  ["snapkv", {}, 2048, { way: "layers", predict: false, cacheType: "f32", keepCapped: false }],
  ["snapkv", { explain: true, cacheType: "int8" }, 2048, { way: "layers", explain: true, cacheType: "int8" }],
  ["snapkv", { beyondTrained: true }, 64, { way: "layers" }],
  ["kvzip", { beyondTrained: true }, 64, { way: "layers" }],
  ["gate", {}, 2048, { way: "layers" }],
  ["knorm", { positions: "rerotate" }, 2048, { way: "layers" }],
  ["snapkv", { keep: "90%", maxCache: { tokens: 40, predict: true } }, 2048, {
    way: "layers",
    keepCapped: true,
    predict: true,
  }],
  ["snapkv", { keep: { tokens: 20 }, maxCache: { tokens: 40, predict: false } }, 2048, {
    way: "layers",
    keepCapped: false,
  }],
  ["snapkv", { risk: 0.2 }, 2048, { way: "risk", limit: 0.2, maxCacheBytes: 2 ** 30 }],
  ["layer-defensive", { risk: 0.2, maxCacheBytes: 7, explain: true }, 2048, {
    way: "risk",
    maxCacheBytes: 7,
    explain: true,
  }],
  ["defensive-risk", { riskWorst: 0.1 }, 2048, { way: "threshold", limit: 0.1 }],
  ["gate", { riskWorst: 0.1 }, 2048, { way: "threshold", limit: 0.1 }],
  ["gate(read=stream)", {}, 2048, { way: "streaming", realign: false }],
  ["gate(read=stream)", { beyondTrained: true }, 64, { way: "streaming", realign: false }],
  ["gate(read=stream)", { positions: "rerotate", keep: "20" }, 64, { way: "streaming", realign: true }],
  ["streaming-llm", { positions: "rerotate", keep: "20" }, 64, { way: "rolling", predict: false }],
  ["knorm", { positions: "rerotate", keep: "63", maxCache: { tokens: 90, predict: true } }, 64, {
    way: "rolling",
    predict: true,
  }],
];

/** [policy, options, tokens of the trained context, kind, code, where]. */
const REFUSED: readonly [string, Options, number, string, string, string][] = [
  ["snapkv", {}, 64, "input", "context.too-long", "context"],
  ["kvzip", {}, 300, "input", "context.too-long", "context"],
  ["streaming-llm", {}, 64, "input", "context.too-long", "context"],
  ["snapkv", { positions: "rerotate", keep: "20" }, 64, "input", "context.too-long", "context"],
  ["streaming-llm", { positions: "rerotate", keep: "64" }, 64, "input", "context.too-long", "context"],
  ["gate(read=stream)", { keep: "20" }, 64, "input", "context.too-long", "context"],
  ["gate", { positions: "rerotate", keep: "20" }, 64, "input", "context.too-long", "context"],
  ["gate(read=stream)", { explain: true }, 2048, "input", "explain.early", "explain"],
  ["gate(read=stream)", { risk: 0.1 }, 2048, "input", "risk.early", "risk"],
  ["streaming-llm", { positions: "rerotate", keep: "20", explain: true }, 64, "input", "explain.early", "explain"],
  ["snapkv", { risk: 0.1, keep: "20%" }, 2048, "usage", "risk.exclusive", "risk"],
  ["snapkv", { risk: 0.1, maxCache: { tokens: 40, predict: false } }, 2048, "usage", "risk.exclusive", "risk"],
  ["defensive-risk", { riskWorst: 0.1, keep: "20%" }, 2048, "usage", "risk.exclusive", "riskWorst"],
  ["snapkv", { riskWorst: 0.1 }, 2048, "input", "risk.policy", "riskWorst"],
  ["snapkv", { risk: 1 }, 2048, "input", "risk.range", "risk"],
  ["snapkv", { keep: "0%" }, 2048, "input", "keep.range", "keep"],
  ["snapkv", { keep: "a lot" }, 2048, "input", "keep.syntax", "keep"],
  ["full", { maxCache: { tokens: 40, predict: false } }, 2048, "input", "max-cache.policy", "policy"],
];

/** Nothing that a plan goes by needs the engines. */
async function planned(): Promise<PlannedModel> {
  await using model = await tinyModel();
  const { config, tokenizer, frame } = model;
  return { config, tokenizer, frame };
}

const MODEL = await planned(), IDS = contextIds(MODEL.frame, MODEL.tokenizer, TEXT);
assert.ok(IDS.length > 150 && IDS.length < 300, `${IDS.length} tokens`);

function plan(policy: string, options: Options, contextLength: number): Reading {
  const model = { ...MODEL, config: { ...MODEL.config, contextLength } };
  return planReading(model, IDS, { ...options, policy: resolvePolicy(policy) });
}

function named(options: Options): string {
  return JSON.stringify(options).replaceAll('"', "");
}

for (const [policy, options, trained, wanted] of PLANNED) {
  Deno.test(`planReading() reads ${policy} with ${named(options)}, trained on ${trained}, by ${wanted.way}`, () => {
    const reading = plan(policy, options, trained);
    assert.deepEqual({ ...reading, ...wanted }, reading);
    assert.equal(reading.policy.name, resolvePolicy(policy).name);
    assert.equal("prompts" in reading, policy === "kvzip");
  });
}

for (const [policy, options, trained, kind, code, where] of REFUSED) {
  Deno.test(`planReading() refuses ${policy} with ${named(options)}, trained on ${trained}: ${code}`, () => {
    assert.throws(() => plan(policy, options, trained), (error) => {
      assert.ok(error instanceof PalisadeError, String(error));
      assert.deepEqual([error.kind, error.code, error.where], [kind, code, where]);
      return true;
    });
  });
}

Deno.test("planReading() gives the budget: of keep, under a cap, or all of it where a risk takes its place", () => {
  const perHead = (options: Options) => plan("snapkv", options, 2048).budget.perHead;
  const whole = perHead({ keep: "100%" });
  assert.equal(perHead({}), whole, "less than the least that stays by default");
  assert.equal(perHead({ keep: "20%" }), Math.floor(whole * 0.2 + 1e-9));
  assert.equal(perHead({ keep: { tokens: 30 } }), 30);
  assert.equal(perHead({ keep: "90%", maxCache: { tokens: 40, predict: false } }), 36);
  assert.equal(perHead({ risk: 0.5 }), whole);
});

Deno.test("planReading() refuses an unknown cache type", () => {
  assert.throws(() => plan("snapkv", { cacheType: "f8" as "f16" }, 2048), (error) => {
    return error instanceof PalisadeError && error.code.startsWith("cache-type.");
  });
});
