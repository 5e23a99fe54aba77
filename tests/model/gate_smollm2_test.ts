/** The gate that comes with the package, on the model it was fitted for. */
import assert from "node:assert/strict";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { planCalibration } from "../../model/gate/fit/plan.ts";
import { Draw, KINDS, mixedText } from "../../model/gate/fit/text.ts";
import type { Gate } from "../../model/gate/file.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { LayerReader } from "../../model/read/layer_reader.ts";
import { openContext } from "../../model/session.ts";
import { policyInputs } from "../../model/read/policy_inputs.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { losses } from "../_helper/gate.ts";
import { smollm2 } from "../_helper/model.ts";

/** Text of a seed that no calibration used. */
const TEXT = mixedText(new Draw(31337), KINDS, 2000, []);

function correlation(x: ArrayLike<number>, y: ArrayLike<number>): number {
  const mean = (v: ArrayLike<number>) => Array.from(v).reduce((a, b) => a + b, 0) / v.length;
  const [mx, my] = [mean(x), mean(y)];
  let xy = 0, xx = 0, yy = 0;
  for (let i = 0; i < x.length; i++) {
    xy += (x[i] - mx) * (y[i] - my);
    xx += (x[i] - mx) ** 2;
    yy += (y[i] - my) ** 2;
  }
  return xy / Math.sqrt(xx * yy);
}

async function keptOf(model: Model, policy: string, gate?: Gate): Promise<Set<string>> {
  using context = await openContext(model, TEXT, { policy, keep: "20%", gate });
  assert.equal(context.cache.entries(), context.budget.total, policy);
  const kept = new Set<string>();
  for (let layer = 0; layer < model.config.layers; layer++) {
    for (let head = 0; head < model.config.kvHeads; head++) {
      for (const position of context.cache.positions(layer, head)) kept.add(`${layer} ${head} ${position}`);
    }
  }
  return kept;
}

Deno.test("the shipped gate predicts what SmolLM2 needs to repeat a text", async (t) => {
  await using model = await loadModel(await smollm2(), await currentRuntime(), { precision: "float32", frame: "line" });
  const { info } = await model.gate();

  await t.step("it is found by the model's hash and says what it is", () => {
    assert.equal(info.model.layers, 30);
    assert.equal(info.conformal.scores.length, 40);
    assert.ok(info.calibration.tokens >= 10_000);
  });

  await t.step("its scores follow KVzip's", async () => {
    const ids = contextIds(model.frame, model.tokenizer, TEXT);
    const needs = { gate: true, reconstruction: { chunk: 2048, postfix: 8 } };
    using cache = new RaggedCache(model.backend, model.config);
    const inputs = await policyInputs(model, { needs }, ids);
    using reader = await LayerReader.open(model, cache, ids, { needs, window: 0, ...inputs });
    let sum = 0;
    const { layers, kvHeads } = model.config;
    for (let layer = 0; layer < layers; layer++) {
      const { gate, reconstruction } = await reader.layer(layer);
      for (let g = 0; g < kvHeads; g++) {
        const from = g * ids.length + 4, to = (g + 1) * ids.length;
        sum += correlation(gate!.subarray(from, to), reconstruction!.subarray(from, to).map((x) => Math.log(x + 1e-5)));
      }
    }
    const mean = sum / (layers * kvHeads);
    assert.ok(mean >= 0.7, `mean correlation ${mean}`);
  });

  await t.step("--risk-worst loses nothing important in new texts; log files are counted too", async () => {
    // Texts of a seed that no calibration used, as long as the held-out ones; at 90 % one of ten may fail.
    const plan = await planCalibration(model, await currentRuntime(), { tokens: 1000, seed: 77 });
    const gate = await model.gate(), at = { limit: 0.5, coverage: 0.9 };
    const { lost, evicted } = await losses(model, gate, plan.heldOut.slice(0, 5), at);
    assert.ok(lost <= 1, `${lost} of 5 texts lost something`);
    assert.ok(evicted >= 0.05, `${evicted} evicted`);
    const logs = await losses(model, gate, plan.shifted.slice(0, 2), at);
    assert.ok(logs.evicted >= 0.05 && logs.lost <= 2, "nothing is promised for another kind of text; it is counted");
  });

  await t.step("evicting while reading keeps nearly the same", async () => {
    const byHidden = { ...await model.gate(), keyed: undefined };
    const layer = await keptOf(model, "gate", byHidden), stream = await keptOf(model, "gate(read=stream)");
    const common = [...layer].filter((each) => stream.has(each)).length;
    const jaccard = common / (2 * layer.size - common);
    assert.ok(jaccard >= 0.85, `Jaccard ${jaccard}`);
  });
});
