import assert from "node:assert/strict";
import { fuzzSnapshots } from "../../_helper/snapshot_fuzz.ts";
import { snapshotModel, snapshotOf } from "../../_helper/snapshots.ts";

const model = await snapshotModel();

Deno.test("bad snapshots are refused by type, never a crash, a hang, or a row left behind", async () => {
  const good = await snapshotOf(model, { policy: "snapkv", keep: "5%", cacheType: "int8", explain: true });
  const bytes = model.backend.memory().allocatedBytes;
  const { refused, taken, failures, inputs } = await fuzzSnapshots(good, model, {
    inputs: 8_000,
    seed: 18,
    restoreEach: 20,
  });
  assert.deepEqual(failures, []);
  assert.equal(refused + taken, inputs);
  assert.ok(refused > 0.8 * inputs, `${refused} of ${inputs}`);
  assert.equal(model.backend.memory().allocatedBytes, bytes);
});
