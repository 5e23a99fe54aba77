/** Every policy, and what may follow it, on models of every build: it keeps and answers, or says why it can't. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { policies } from "../../core/policy/registry.ts";
import { loadModel } from "../../model/model.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  8,
);

/** What may follow a selection, and pieces short enough to leave something to predict. */
const FURTHER: readonly ContextOptions[] = [
  { policy: "kvzip", refit: "both" },
  { policy: "snapkv", refit: "values" },
  { policy: "self-gate(tokens=60, chunk=30)", refit: "both" },
  { policy: "self-gate(tokens=60, chunk=30, combine=risk)" },
  { policy: "kvzip(merge=mean)" },
  { policy: "snapkv(merge=sum, rows=int8)" },
  { policy: "snapkv(key-channels=60%)" },
  { policy: "kvzip(rows=int4)" },
  { policy: "layer-defensive", explain: true },
  { policy: "defensive-risk", riskWorst: 0.02, keep: undefined },
  { policy: "snapkv", risk: 0.1, keep: undefined },
  { policy: "snapkv", maxCache: { tokens: 120 } },
];

/** Windows, other heads in them, shared rows, convolutions, null logits and experts; and how many of all are refused. */
const MODELS = {
  "llama-plain": 5,
  "gemma3-windows": 5,
  "gemma4-keys": 5,
  "gemma4-shared": 14,
  "lfm2-plain": 5,
  "gpt-oss-plain": 5,
} as const;

for (const [name, refusals] of Object.entries(MODELS)) {
  Deno.test(`every policy keeps and answers on ${name}, or says why it can't`, async () => {
    const path = fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url));
    await using model = await loadModel(path, await currentRuntime(), { backend: "wasm", dense: "wasm" });
    const refused: string[] = [];
    for (const options of [...policies.map(({ name: policy }) => ({ policy })), ...FURTHER]) {
      try {
        using context = await openContext(model, TEXT, { keep: "30%", beyondTrained: true, ...options });
        await context.ask("How many?", { maxTokens: 2 });
      } catch (error) {
        if (!(error instanceof PalisadeError)) throw new Error(JSON.stringify(options), { cause: error });
        assert.ok(["input", "usage"].includes(error.kind), error.message);
        refused.push(`${options.policy}: ${error.code}`);
      }
    }
    assert.equal(refused.length, refusals, refused.join(", "));
  });
}
