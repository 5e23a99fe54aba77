/** The statistical worst case of `--risk-worst` with a gate: what it evicts, what it refuses, and how often it holds. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { conformalQuantile } from "../../core/worst_case/conformal.ts";
import { PalisadeError } from "../../core/errors.ts";
import { calibrate } from "../../model/gate/fit/calibrate.ts";
import { type CalibrationPlan, planCalibration } from "../../model/gate/fit/plan.ts";
import type { Gate } from "../../model/gate/file.ts";
import { worstCaseOf } from "../../model/gate/worst_case.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { losses, predictedAndMeasured, randomGate } from "../_helper/gate.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  6,
);

async function tiny(): Promise<Model> {
  const path = fileURLToPath(new URL("../data/models/qwen2-plain.gguf", import.meta.url));
  return await loadModel(path, await currentRuntime(), { dense: "web", backend: "wasm", precision: "float32" });
}

/** `gate` with these held-out errors. */
function withErrors(gate: Gate, scores: readonly number[], window = 8): Gate {
  return { ...gate, info: { ...gate.info, conformal: { textTokens: 10, window, scores } } };
}

const WHOLE = { coverage: 0.8, budget: { sinks: 4, window: 8, length: 100 } };

Deno.test("worstCaseOf() takes the margin from the threshold, in logarithms", async () => {
  await using model = await tiny();
  const gate = withErrors(randomGate(model.config), [5, 1, 4, 2, 3, 9, 8, 7, 6]);
  const { margin, threshold, texts, textTokens, coverage } = worstCaseOf(gate, 0.02, WHOLE);
  assert.deepEqual([margin, texts, textTokens, coverage], [8, 9, 10, 0.8]);
  assert.equal(threshold, Math.log(0.02) - 8);
});

Deno.test("worstCaseOf() refuses what the margins can't promise, and says what would do", async () => {
  await using model = await tiny();
  const gate = withErrors(randomGate(model.config), [1, 2, 3, 4]);
  const refused = (given: Gate, options: Parameters<typeof worstCaseOf>[2], code: string, message: RegExp) =>
    assert.throws(() => worstCaseOf(given, 0.1, options), (error) => {
      assert.ok(error instanceof PalisadeError, String(error));
      assert.deepEqual([error.kind, error.code, error.where], ["input", code, "riskWorst"]);
      assert.match(error.message, message);
      return true;
    });
  const { budget } = WHOLE;
  refused(withErrors(gate, []), WHOLE, "risk.margins", /without held-out texts/);
  refused(gate, { ...WHOLE, coverage: 0.9 }, "risk.coverage", /4 held-out texts.*coverage=0\.8\)/);
  refused(gate, { ...WHOLE, budget: { ...budget, sinks: 3 } }, "risk.protected", /first 4 and last 8.*sinks=3/);
  refused(gate, { ...WHOLE, budget: { ...budget, window: 7 } }, "risk.protected", /window=7/);
  for (const [length, sinks, window] of [[3, 3, 0], [10, 4, 6], [1, 0, 1]]) {
    const short = { coverage: 0.8, budget: { sinks, window, length } };
    if (sinks === 0) refused(gate, short, "risk.protected", /first 4/);
    else assert.equal(worstCaseOf(gate, 0.1, short).margin, 4, `${length} tokens, all protected`);
  }
});

Deno.test("openContext() with gate and riskWorst evicts exactly what is predicted below the threshold", async () => {
  await using model = await tiny();
  const gate = withErrors(randomGate(model.config), [1, 1, 1, 1, 1, 1, 1, 1, 1]);
  const { kvHeads, layers } = model.config;
  const ids = contextIds(model.frame, model.tokenizer, TEXT);
  const seen = await predictedAndMeasured(model, ids, gate);
  for (const riskWorst of [0.05, 0.5, 0.999]) {
    using context = await openContext(model, TEXT, { policy: "gate", gate, riskWorst });
    const threshold = Math.log(riskWorst) - 1;
    const { sinks } = context.budget;
    assert.ok(sinks >= 4);
    let evicted = 0;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < kvHeads; head++) {
        const kept = ids.map((_, i) => i).filter((i) =>
          i < sinks || i >= ids.length - 8 || seen[layer].predicted[head * ids.length + i] >= threshold
        );
        assert.deepEqual([...context.cache.positions(layer, head)], kept);
        evicted += ids.length - kept.length;
      }
    }
    assert.equal(context.budget.total, ids.length * layers * kvHeads - evicted);
    const { risk } = reportOf(model, context, [], { keepAsked: "", loadMs: 0 });
    const worstCase = { coverage: 0.9, margin: 1, threshold, texts: 9, textTokens: 10, longer: true };
    assert.deepEqual(risk, { kind: "worst", asked: riskWorst, reached: null, passes: 1, worstCase });
  }
});

Deno.test("openContext() refuses riskWorst for gates whose score is no predicted importance, or too soon", async () => {
  await using model = await tiny();
  const gate = withErrors(randomGate(model.config), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const code = async (options: ContextOptions) => {
    const error = await openContext(model, TEXT, { gate, riskWorst: 0.1, ...options }).then(
      () => undefined,
      (reason) => reason,
    );
    assert.ok(error instanceof PalisadeError, String(error));
    return error.code;
  };
  assert.equal(await code({ policy: "gate(combine=risk)" }), "risk.policy");
  assert.equal(await code({ policy: "gate(norm=heads)" }), "risk.policy");
  assert.equal(await code({ policy: "gate(read=stream)" }), "risk.early");
  assert.equal(await code({ policy: "gate(sinks=0)" }), "risk.protected");
  assert.equal(await code({ policy: "gate(window=4)" }), "risk.protected");
  assert.equal(await code({ policy: "gate(coverage=0.95)" }), "risk.coverage");
  assert.equal(await code({ policy: "gate", gate: withErrors(gate, []) }), "risk.margins");
  assert.equal(model.backend.memory().allocatedBytes, 0);
});

Deno.test("gate with riskWorst holds in new texts as often as promised, against KVzip's importance", async () => {
  await using model = await tiny();
  const runtime = await currentRuntime();
  const short = (plan: CalibrationPlan): CalibrationPlan => ({
    ...plan,
    heldOut: plan.heldOut.map((ids) => ids.slice(0, 64)),
    shifted: plan.shifted.map((ids) => ids.slice(0, 64)),
  });
  const plan = short(await planCalibration(model, runtime, { tokens: 1000, seed: 1 }));
  const { gate: weights, info, coverage } = await calibrate(model, runtime, plan, { sha256: "0".repeat(64) });
  const gate = { ...weights, info, name: "fitted" };

  // The rows that calibrate prints, recounted from measured importance.
  const worst = async (texts: CalibrationPlan["heldOut"]) => {
    const errors: number[] = [];
    for (const ids of texts) {
      const seen = await predictedAndMeasured(model, ids, gate), n = ids.length;
      const error = (i: number, layer: typeof seen[number]) => Math.log(layer.measured[i] + 1e-5) - layer.predicted[i];
      const inside = (i: number) => i % n >= 4 && i % n < n - 8;
      errors.push(
        Math.max(
          ...seen.flatMap((layer) => Array.from(layer.measured.keys()).filter(inside).map((i) => error(i, layer))),
        ),
      );
    }
    return errors;
  };
  const [heldOut, shifted] = [await worst(plan.heldOut), await worst(plan.shifted)];
  heldOut.sort((a, b) => a - b).forEach((each, i) => assert.ok(Math.abs(each - info.conformal.scores[i]) < 2e-3));
  for (const row of coverage) {
    assert.ok(Math.abs(row.margin - conformalQuantile(heldOut, row.coverage)) < 2e-3);
    const share = shifted.filter((each) => each <= row.margin).length / shifted.length;
    assert.ok(Math.abs(row.shifted - share) <= 0.1, `log files: ${row.shifted}, recounted ${share}`);
  }

  // Thirty new texts, drawn the same way: at most as many may lose something as 30 draws at 80 % can, and a few more.
  const fresh = short(await planCalibration(model, runtime, { tokens: 1000, seed: 2 })).heldOut.slice(0, 30);
  const { lost, evicted } = await losses(model, gate, fresh, { limit: 0.6, coverage: 0.8 });
  assert.ok(evicted > 0.05, `says something: ${evicted} evicted`);
  assert.ok(lost <= 0.2 * fresh.length + 5, `${lost} of ${fresh.length} texts lost something important`);
  // A threshold without its margin does lose.
  const bold = await losses(model, withErrors(gate, Array.from({ length: 40 }, () => 0)), fresh, {
    limit: 0.6,
    coverage: 0.8,
  });
  assert.ok(bold.lost > lost, `${bold.lost} without the margin, ${lost} with it`);
});
