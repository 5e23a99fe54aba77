/** Contexts whose rows are cloaked between questions. */
import assert from "node:assert/strict";
import { CACHE_TYPES } from "../../../core/cache/entry_type.ts";
import { openContext } from "../../../model/session.ts";
import { ASK, bytesSource, cacheContent, QUESTION, savedBytes, snapshotModel, TEXT } from "../../_helper/snapshots.ts";

Deno.test("a context that rests cloaked answers as one that doesn't, question after question", async () => {
  const model = await snapshotModel();
  try {
    for (const cacheType of CACHE_TYPES) {
      for (const positions of ["true", "rerotate"] as const) {
        const options = { policy: "layer-defensive", keep: "30%", cacheType, positions } as const;
        using plain = await openContext(model, TEXT, options);
        using cloaked = await openContext(model, TEXT, { ...options, cloak: true });
        for (const question of [QUESTION, "Who counted?", QUESTION]) {
          const [wanted, answered] = [await plain.ask(question, ASK), await cloaked.ask(question, ASK)];
          assert.deepEqual(answered.ids, wanted.ids, `${cacheType} ${positions}`);
          assert.deepEqual(answered.health, wanted.health);
        }
        assert.equal(cloaked.cache.entries(), plain.cache.entries());
        assert.deepEqual(cloaked.cache.positions(1, 0), plain.cache.positions(1, 0));
        assert.equal(cloaked.cache.bytes().live, plain.cache.bytes().live);
        assert.ok(cloaked.cache.bytes().allocated >= cloaked.cache.bytes().live, "what rests is counted");
        assert.throws(() => cloaked.cache.rows(0), /elsewhere/);
      }
    }
  } finally {
    await model[Symbol.asyncDispose]();
  }
});

Deno.test("what rests cloaked can be capped, saved and restored, and a failed question leaves it as it was", async () => {
  const model = await snapshotModel();
  try {
    const options = { policy: "defensive", keep: "50%", cloak: true } as const;
    using capped = await openContext(model, TEXT, { ...options, maxCache: { tokens: 60, rule: "defensive" } });
    using open = await openContext(model, TEXT, {
      ...options,
      cloak: false,
      maxCache: { tokens: 60, rule: "defensive" },
    });
    assert.deepEqual((await capped.ask(QUESTION, ASK)).ids, (await open.ask(QUESTION, ASK)).ids);
    using context = await openContext(model, TEXT, options);
    const before = await context.ask(QUESTION, ASK);
    const cut = await context.ask(QUESTION, { ...ASK, signal: AbortSignal.abort(new Error("stop")) });
    assert.equal(cut.finish, "interrupted");
    await assert.rejects(context.ask(""), { code: "question.empty" });
    assert.deepEqual((await context.ask(QUESTION, ASK)).ids, before.ids);
    const bytes = await savedBytes(context);
    using restored = await model.restore(bytesSource(bytes), { cloak: true });
    assert.deepEqual((await restored.ask(QUESTION, ASK)).ids, before.ids);
    assert.throws(() => restored.cache.rows(0), /elsewhere/);
    assert.deepEqual(await savedBytes(restored).then(({ length }) => length), bytes.length);
  } finally {
    await model[Symbol.asyncDispose]();
  }
});

Deno.test("while it rests, the kernels' memory holds no row of it", async () => {
  const memories: WebAssembly.Memory[] = [], { Memory } = WebAssembly;
  WebAssembly.Memory = class extends Memory {
    constructor(descriptor: WebAssembly.MemoryDescriptor) {
      super(descriptor);
      memories.push(this);
    }
  };
  try {
    const model = await snapshotModel("llama-plain", { backend: "wasm" });
    try {
      const options = { policy: "layer-defensive", keep: "40%" } as const;
      using plain = await openContext(model, TEXT, options);
      const { content } = await cacheContent(plain), { headDim } = model.config;
      const rows = content.flatMap(({ keys, values }) =>
        [keys, values].flatMap((side) =>
          Array.from({ length: side.length / headDim }, (_, i) => side.slice(i * headDim, (i + 1) * headDim))
        )
      );
      const found = () => rows.filter((row) => memories.some((memory) => holds(new Float32Array(memory.buffer), row)));
      assert.equal(found().length, rows.length, "the search finds what is there");
      plain.cache.hide(0);
      assert.equal(found().length, 0);
      using cloaked = await openContext(model, TEXT, { ...options, cloak: true });
      await cloaked.ask(QUESTION, ASK);
      // Values that a question's work has left in scratch memory are single ones; whole rows there are none.
      assert.equal(found().length, 0);
    } finally {
      await model[Symbol.asyncDispose]();
    }
  } finally {
    WebAssembly.Memory = Memory;
  }
});

/** Whether the numbers lie there, one behind the other, or with any even step between them up to a page's rows. */
function holds(memory: Float32Array, row: Float32Array): boolean {
  for (let at = memory.indexOf(row[0]); at !== -1; at = memory.indexOf(row[0], at + 1)) {
    for (const step of [1, 4, 8, 64]) {
      if (row.every((value, i) => value === memory[at + i * step])) return true;
    }
  }
  return false;
}
