import assert from "node:assert/strict";
import { entryBytes } from "../../core/cache/entry_type.ts";
import { wholeBytes } from "../../core/select/byte_budget.ts";
import { chooseBest, chooseStages, defaultBytes } from "../../model/read/effort.ts";
import { openContext } from "../../model/session.ts";
import { rewritten } from "../_helper/snapshot_damage.ts";
import { ASK, bytesSource, cacheContent, QUESTION, savedBytes, snapshotModel, TEXT } from "../_helper/snapshots.ts";

const model = await snapshotModel();
const ABLE = { packs: true, refits: true };

Deno.test("chooseStages() takes what was measured to answer most, of what a backend is able to", () => {
  const wide = { headDim: 64 };
  for (const share of [1 / 4, 0.2, 1 / 16, 1 / 20, 1 / 32, 1 / 1000]) {
    assert.deepEqual(chooseStages(share, wide, ABLE), { rows: "int4", refit: "both" }, `${share}`);
  }
  assert.deepEqual(chooseStages(1 / 16, wide, { packs: true }), { rows: "int4" });
  assert.deepEqual(chooseStages(1 / 16, wide, { refits: true }), { rows: "int8", refit: "both" });
  assert.deepEqual(chooseStages(1 / 4, wide, {}), { rows: "int8" });
});

Deno.test("chooseStages() stores all of a text as fine as it fits", () => {
  const shape = { headDim: 64 }, part = (bytes: number) => bytes / entryBytes(64, "f16");
  const cases = [[2, "f32"], [1.99, "f16"], [1, "f16"], [0.99, "int8"], [part(136), "int8"]] as const;
  for (const [share, rows] of cases) assert.deepEqual(chooseStages(share, shape, ABLE), { rows });
  assert.deepEqual(chooseStages(part(entryBytes(64, "int4")), shape, ABLE), { rows: "int4" });
  assert.deepEqual(chooseStages(0.5, shape, { refits: true }), { rows: "int8", refit: "both" });
});

Deno.test("without bytes `best` has those of the default budget in float16", () => {
  const many = { heads: 9, kvHeads: 3, headDim: 64, layers: 30 };
  assert.equal(defaultBytes(10_000, many), "20%");
  assert.equal(defaultBytes(1024, many), "50%");
  assert.equal(defaultBytes(100, many), "100%");
  assert.equal(defaultBytes(1853, many), "27.63%");
  assert.equal(defaultBytes(10_000, { ...many, kvHeads: 1, layers: 5 }), "40%");
});

Deno.test("`best` holds its bytes, and a snapshot says what was done and is restored without reading", async () => {
  for (const bytes of ["1/2", "1/8", "30kB"]) {
    using context = await openContext(model, TEXT, { effort: "best", bytes });
    const { share } = bytes === "30kB" ? { share: undefined } : { share: bytes === "1/2" ? 1 / 2 : 1 / 8 };
    const most = share === undefined ? 30_000 : share * wholeBytes(context.tokens, model.config);
    assert.ok(context.cache.bytes().live <= most, `${context.cache.bytes().live} of ${most}`);
    assert.ok(context.cache.bytes().live > 0.8 * most, `${context.cache.bytes().live} of ${most}`);
    assert.deepEqual([context.policy.name, context.cache.type, context.effort!.bytes], ["kvzip", "int4", bytes]);
    const saved = await savedBytes(context), answered = await context.ask(QUESTION, ASK);
    using restored = await unreading().restore(bytesSource(saved));
    assert.deepEqual([restored.effort, restored.refit], [context.effort, context.refit]);
    assert.deepEqual([restored.reused, restored.ms.prefill, restored.ms.evict], [context.tokens, 0, 0]);
    assert.deepEqual(await cacheContent(restored), await cacheContent(context));
    using again = await model.restore(bytesSource(saved));
    assert.deepEqual((await again.ask(QUESTION, ASK)).ids, answered.ids);
  }
});

/** The model, which fails where it is asked for a layer. */
function unreading() {
  const dense = new Proxy(model.dense, {
    get(target, name) {
      const value = Reflect.get(target, name, target);
      if (typeof value !== "function") return value;
      return () => {
        throw new Error(`${String(name)}: nothing is read here`);
      };
    },
  });
  return { ...model, dense };
}

Deno.test("what `best` decides is refused beside it, and where nothing can be repeated it says so", async () => {
  const rivals = {
    policy: "snapkv",
    keep: "10%",
    risk: 0.1,
    riskWorst: 0.1,
    cacheType: "f16",
    refit: "values",
  } as const;
  for (const [name, value] of Object.entries({ ...rivals, merge: "sum", keyChannels: "60%" })) {
    const refused = openContext(model, TEXT, { effort: "best", [name]: value });
    await assert.rejects(refused, { code: "effort.exclusive", where: "effort" }, name);
    using fast = await openContext(model, TEXT, {
      effort: "fast",
      keep: "50%",
      ...(name === "keep" && { keep: "10%" }),
    });
    assert.equal(fast.effort, undefined);
  }
  const unknown = openContext(model, TEXT, { effort: "most" as "best" });
  await assert.rejects(unknown, { code: "effort.unknown" });
  await assert.rejects(openContext(model, TEXT, { effort: "best", bytes: "much" }), { code: "bytes.syntax" });
  const ids = new Array(250).fill(5), short = { ...model, config: { ...model.config, contextLength: 256 } };
  assert.throws(() => chooseBest(short, ids, { rolling: false }), { code: "effort.no-room" });
  assert.throws(() => chooseBest(model, ids, { rolling: true }), { code: "effort.no-room" });
});

Deno.test("a snapshot that says nothing of what was done is restored; one that says nonsense is refused", async () => {
  using context = await openContext(model, TEXT, { policy: "snapkv(merge=mean,key-channels=60%)", keep: "50%" });
  const saved = await savedBytes(context);
  const done = (change: (state: { done?: Record<string, unknown> }) => void) =>
    rewritten(saved, (header) => {
      const meta = header.__metadata__ as Record<string, string>, state = JSON.parse(meta.state);
      change(state);
      meta.state = JSON.stringify(state);
    });
  using full = await model.restore(bytesSource(saved));
  assert.deepEqual([full.merge, full.keyChannels], [context.merge, context.keyChannels]);
  using before = await model.restore(bytesSource(done((state) => delete state.done)));
  assert.deepEqual([before.merge, before.effort], [undefined, undefined]);
  const nonsense = [
    7,
    { effort: 1 },
    { effort: { effort: "most", bytes: "1/2", policy: "x" } },
    { refit: { refit: "some" } },
    { merge: { merge: "mean", window: -1 } },
    { keyChannels: {} },
  ];
  for (const each of nonsense) {
    const source = bytesSource(done((state) => state.done = each as Record<string, unknown>));
    await assert.rejects(model.restore(source), { code: "snapshot.state" }, JSON.stringify(each));
  }
});
