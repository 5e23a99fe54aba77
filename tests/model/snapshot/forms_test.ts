import { CACHE_TYPES } from "../../../core/cache/entry_type.ts";
import assert from "node:assert/strict";
import { contextOf, insideOf } from "../../../model/context.ts";
import { openContext } from "../../../model/session.ts";
import { bytesSource, savedBytes, snapshotModel, snapshotOf, TEXT } from "../../_helper/snapshots.ts";
import { roundTrip } from "../../_helper/snapshot_trip.ts";

const model = await snapshotModel();

Deno.test("a context comes back in every type of the cache, with moved positions, risks, certificates and a cap", async () => {
  for (const cacheType of CACHE_TYPES) {
    await roundTrip(model, { policy: "defensive", keep: "25%", cacheType }, cacheType);
    await roundTrip(
      model,
      { policy: "layer-defensive", keep: "30%", cacheType, positions: "rerotate" },
      `${cacheType} moved`,
    );
  }
  await roundTrip(model, { policy: "defensive", keep: "40%", explain: true }, "certificates");
  await roundTrip(model, { policy: "layer-defensive", risk: 0.4 }, "risk");
  await roundTrip(model, { policy: "defensive-risk", riskWorst: 0.02 }, "worst risk");
  await roundTrip(model, { policy: "gate(read=stream)", keep: "20%" }, "streaming");
  await roundTrip(model, { policy: "defensive", maxCache: { tokens: 60, rule: "gate" } }, "cap");
});

Deno.test("what stays in rows of another type than it was read as comes back, and is refused where nothing packs", async () => {
  for (
    const policy of ["snapkv(rows=int4)", 'kvzip(rows="k=int8,v=int4")', "knorm(rows=int8)", "defensive(rows=f16)"]
  ) {
    await roundTrip(model, { policy, keep: "50%" }, policy);
  }
  await roundTrip(model, { policy: "kvzip(rows=int4,refit=both)", bytes: "1/4" }, "bytes");
  const plain = { ...model, backend: { ...model.backend, packs: false } };
  for (const options of [{ policy: "snapkv(rows=int4)" }, { policy: "snapkv", cacheType: "int4" }] as const) {
    const bytes = await snapshotOf(model, { ...options, keep: "50%" });
    await assert.rejects(plain.restore(bytesSource(bytes)), { code: "cache-type.backend" });
  }
});

Deno.test("a model with window layers, one whose template asks for the day, and figures that are no numbers", async () => {
  await using windows = await snapshotModel("gemma3-windows");
  for (const cacheType of CACHE_TYPES) {
    await roundTrip(windows, { policy: "snapkv", keep: "50%", cacheType }, "windows");
  }
  const risk = {
    kind: "mean",
    limit: 0.5,
    maxCacheBytes: 2 ** 30,
    reached: NaN,
    passes: 1,
    peakBytes: Infinity,
  } as const;
  const dated = { ...model, frame: { ...model.frame, date: "2026-03-09" } };
  using context = await openContext(dated, TEXT, { policy: "knorm", keep: "50%" });
  const { state } = insideOf(context), marked = contextOf(dated, { ...state, risk });
  using restored = await model.restore(bytesSource(await savedBytes(marked)));
  assert.deepEqual([restored.risk, restored.frame.date], [risk, "2026-03-09"]);
});
