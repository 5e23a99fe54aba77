/** gpt-oss: logits for nothing in every layer, windows in every second one, experts with biases. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { extend } from "../../model/decode/extend.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { type ContextOptions, openContext } from "../../model/session.ts";
import { questionIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { assertClose } from "../_helper/close.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { randomGate } from "../_helper/gate.ts";
import { maskedLogits } from "../_helper/oracle.ts";
import { bytesSource, savedBytes } from "../_helper/snapshots.ts";
import { randomSoftTokens } from "../_helper/soft_tokens.ts";

const FILE = fileURLToPath(new URL("../data/models/gpt-oss-plain.gguf", import.meta.url));
/** The second of three layers looks at everything. */
const GLOBAL = 1;
/** More than a chunk, and much more than the window. */
const TEXT = "The keeper counted seventeen stakes, and then she counted them again. ".repeat(9);
const QUESTION = "How many stakes were there, and who counted them before the gate was shut?";

async function gptOss(device: "ts" | "wasm" | "threads"): Promise<Model> {
  const backend = device === "ts" ? "ts" : "wasm", threads = device === "threads" ? 2 : 1;
  const options = { dense: "wasm", backend, threads, precision: "float32", frame: "line" } as const;
  return await loadModel(FILE, await currentRuntime(), options);
}

const WAYS: readonly ContextOptions[] = [
  { policy: "snapkv(window=8)", keep: "40%", explain: true },
  { policy: "dropkv(window=8)", keep: "30%" },
  { policy: "kvzip(chunk=150)", keep: "20%" },
  { policy: "expected-attention", keep: "20%" },
  { policy: "h2o", keep: "20%" },
  { policy: "moved", keep: "20%" },
  { policy: "judge-q", keep: "20%" },
  { policy: "gate(combine=risk)", keep: "20%" },
  { policy: "layer-defensive(window=8)", risk: 0.3, explain: true },
  { policy: "full" },
];

for (const device of ["ts", "wasm", "threads"] as const) {
  Deno.test(`gpt-oss, ${device}: removing is masking, whatever evicts`, async () => {
    await using model = await gptOss(device);
    const files = { gate: randomGate(model.config), softTokens: randomSoftTokens(model.config) };
    for (const [i, options] of WAYS.entries()) {
      if (device !== "ts" && i % 3 !== 0) continue;
      using context = await openContext(model, TEXT, { ...files, ...options });
      const what = `${device}, ${JSON.stringify(options)}`;
      if (options.policy !== "full") assert.ok(context.cache.globalEntries() < 0.8 * context.tokens * 2, what);
      const asked = questionIds(model.frame, model.tokenizer, QUESTION);
      const masked = await maskedLogits(model, context.cache, TEXT, asked, [GLOBAL]);
      const mark = context.cache.mark();
      assertClose(await extend(model.dense, context.cache, asked), masked, 1e-4, what);
      context.cache.trim(mark);
      if (options.risk) assert.ok(context.risk!.reached! <= options.risk, what);
      for (const { heads } of context.certificates ?? []) {
        for (const { evictedMass } of heads) {
          // Heads that give nearly all to nothing lose hardly anything.
          evictedMass.forEach((of) => of.forEach((mass) => assert.ok(mass >= 0 && mass < 1, `${what}: ${mass}`)));
        }
      }
    }
  });
}

Deno.test("gpt-oss: all backends keep the same, and answer the same after a snapshot, a cap and a refit", async () => {
  const said: (readonly number[])[] = [];
  for (const device of ["ts", "wasm", "threads"] as const) {
    await using model = await gptOss(device);
    const options = { policy: "snapkv(window=8)", keep: "30%" };
    using context = await openContext(model, TEXT, { ...options, explain: true });
    const first = await context.ask(QUESTION, { maxTokens: 12 });
    using restored = await model.restore(bytesSource(await savedBytes(context)));
    assert.deepEqual((await restored.ask(QUESTION, { maxTokens: 12 })).ids, first.ids);
    assert.deepEqual(restored.certificates, context.certificates);
    using capped = await openContext(model, TEXT, { ...options, maxCache: { tokens: 110, rule: "defensive" } });
    const under = await capped.ask(QUESTION, { maxTokens: 30 });
    assert.ok(under.maxCache!.evictions > 0);
    using refitted = await openContext(model, TEXT, { ...options, refit: "both" });
    const after = await refitted.ask(QUESTION, { maxTokens: 12 });
    const again = await context.ask(QUESTION, { maxTokens: 12 });
    assert.deepEqual(again.ids, first.ids);
    said.push([...first.ids, ...under.ids, ...after.ids]);
  }
  assert.deepEqual(said[1], said[0]);
  assert.deepEqual(said[2], said[0]);
});

Deno.test("gpt-oss is refused on engines without experts, by name", async () => {
  const runtime = await currentRuntime();
  for (const dense of ["web", "node"] as const) {
    await assert.rejects(loadModel(FILE, runtime, { dense, backend: "ts" }), { code: "dense.experts" });
  }
});

Deno.test("a logit for nothing that is no number is refused by its tensor's name", async () => {
  const bytes = await readFile(FILE), name = "blk.2.attn_sinks.weight";
  const at = (await openGguf(new CountingSource(bytes))).tensors.get(name)!.offset;
  new DataView(bytes.buffer, bytes.byteOffset).setFloat32(at + 4, NaN, true);
  const refused = { code: "gguf.value", where: `tensor["${name}"]`, message: /holds NaN; finite is right/ };
  await assert.rejects(configOf(await openGguf(new CountingSource(bytes))), refused);
});
