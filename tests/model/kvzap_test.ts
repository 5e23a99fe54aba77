/** KVzap's threshold form: what a gate towards KVzip+ predicts decides, and no budget. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { parseCases } from "../../evaluate/sweep/plan.ts";
import type { Gate } from "../../model/gate/file.ts";
import { checkTarget, findGate, loadGate } from "../../model/gate/find.ts";
import { loadModel } from "../../model/model.ts";
import { reportOf } from "../../model/report.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { predictedAndMeasured, randomGate } from "../_helper/gate.ts";
import { palisade } from "../_helper/io.ts";
import { PROSE, testFolder, TINY_MODEL, tinyModel } from "../_helper/workbench.ts";

const TEXT = PROSE.slice(0, 320);

/** The same weights, said to be fitted towards KVzip+. */
function towardsPlus(gate: Gate): Gate {
  return { ...gate, info: { ...gate.info, calibration: { ...gate.info.calibration, towards: "kvzip-plus" } } };
}

Deno.test("kvzap keeps what its gate predicts at or above the threshold, and both ends", async () => {
  for (const backend of ["ts", "wasm"] as const) {
    await using model = await tinyModel(backend);
    const gate = randomGate(model.config), ids = contextIds(model.frame, model.tokenizer, TEXT);
    const predicted = await predictedAndMeasured(model, ids, gate);
    const options = { gate: towardsPlus(gate), policy: "kvzap(threshold=0.5, window=10, sinks=3)" };
    using context = await openContext(model, TEXT, options);
    const { kvHeads, layers } = model.config, length = ids.length, protectedFirst = context.budget.sinks;
    let kept = 0;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < kvHeads; head++) {
        const scores = predicted[layer].predicted.subarray(head * length, (head + 1) * length);
        const stays = Array.from(scores.keys()).filter((i) =>
          i < protectedFirst || i >= length - 10 || scores[i] >= 0.5
        );
        assert.deepEqual([...context.cache.positions(layer, head)], stays, `${layer}/${head}`);
        kept += stays.length;
      }
    }
    assert.ok(kept < length * kvHeads * layers && kept > 20 * kvHeads * layers, `${kept}`);
    assert.equal(context.cache.entries(), kept);
    const report = reportOf(model, context, [], { keepAsked: "20%" } as Parameters<typeof reportOf>[3]);
    assert.deepEqual([report.keep.asked, report.keep.entries, report.risk], ["threshold 0.5", kept, null]);
  }
});

Deno.test("a lower threshold keeps more; below everything it is the full cache", async () => {
  await using model = await tinyModel("wasm");
  const gate = towardsPlus(randomGate(model.config)), counts = [];
  for (const threshold of [2, 0, -2, -30]) {
    using context = await openContext(model, TEXT, { gate, policy: `kvzap(threshold=${threshold})` });
    counts.push(context.cache.entries());
  }
  assert.deepEqual(counts, counts.toSorted((a, b) => a - b));
  assert.ok(counts[0] < counts[3]);
  using full = await openContext(model, TEXT, { policy: "full" });
  assert.equal(counts[3], full.cache.entries());
});

Deno.test("what else would say what stays is refused beside kvzap, and kvzap can't be another's scorer", async () => {
  await using model = await tinyModel("ts");
  const rivals: ContextOptions[] = [{ keep: "20%" }, { bytes: "1/4" }, { risk: 0.1 }, { riskWorst: 0.1 }];
  for (const rival of rivals) {
    const opened = openContext(model, TEXT, { policy: "kvzap", ...rival });
    await assert.rejects(opened, { kind: "usage", code: "threshold.exclusive" }, JSON.stringify(rival));
  }
  assert.throws(() => resolvePolicy("adakv(kvzap)"), { code: "policy.scorer", message: /threshold/ });
  const cases = parseCases("kvzap,snapkv", "20%,10%");
  const asked = cases.map(({ asked: { policy, keep } }) => `${policy} ${keep}`);
  assert.deepEqual(asked, ["kvzap threshold", "snapkv 20%", "snapkv 10%"]);
});

Deno.test("calibrate --kind kvzap fits a gate towards kvzip-plus, which is taken for nothing else", async () => {
  const folder = await testFolder("kvzap"), runtime = await currentRuntime();
  const out = join(folder, "tiny.kvzap.gate.safetensors");
  const told = ["calibrate", "--kind", "kvzap", "--model", TINY_MODEL, "--tokens", "1000", "--out", out];
  const { code, out: printed, err } = await palisade(told);
  assert.equal(code, 0, err);
  assert.match(printed, /fitted towards kvzip-plus/);
  const gate = await loadGate(out, runtime);
  assert.equal(gate.info.calibration.towards, "kvzip-plus");
  assert.throws(() => checkTarget(gate, true), { code: "gate.towards", message: /kvzip-plus.*palisade calibrate$/ });
  await using model = await loadModel(TINY_MODEL, runtime, { dense: "web", backend: "wasm", frame: "line", gate: out });
  using context = await openContext(model, TEXT, { policy: "kvzap" });
  assert.ok(context.cache.entries() > 0);
  await assert.rejects(openContext(model, TEXT, { policy: "gate" }), { code: "gate.towards" });
  const other = { ...gate, info: { ...gate.info, calibration: { ...gate.info.calibration, towards: undefined } } };
  const identity = () => model.identity(), subject = { name: "tiny", config: model.config, identity };
  await assert.rejects(findGate(subject, runtime, other, "kvzip-plus"), {
    code: "gate.towards",
    message: /--kind kvzap$/,
  });
  const none = findGate(
    { ...subject, identity: () => Promise.resolve("f".repeat(64)) },
    runtime,
    undefined,
    "kvzip-plus",
  );
  await assert.rejects(none, { code: "gate.none", message: /towards kvzip-plus.*--kind kvzap/ });
});
