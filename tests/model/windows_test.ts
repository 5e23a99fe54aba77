/** Layers that look back over a window: read like any other while they hide nothing, refused beyond. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { extend } from "../../model/decode/extend.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { contextIds, questionIds } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { assertClose } from "../_helper/close.ts";
import { oracleLogits } from "../_helper/oracle.ts";

const FILE = fileURLToPath(new URL("../data/models/gemma3-windows.gguf", import.meta.url));
const TEXT = "The keeper counted seventeen stakes, and then she counted them again.";
const QUESTION = "What is lost?";

/** The tiny gemma3 with windows of another length. */
async function windowed(window: number): Promise<Model> {
  const options = { dense: "web", backend: "ts", precision: "float32" } as const;
  const model = await loadModel(FILE, await currentRuntime(), options);
  const config = { ...model.config, windows: model.config.windows.map((each) => each && window) };
  return { ...model, config, dense: replaced(model.dense, { config }) };
}

const refused = (error: unknown) => error instanceof PalisadeError && error.code === "context.window";

Deno.test("a gemma3 text and question within the windows give the logits of masking", async () => {
  await using model = await windowed(200);
  using context = await openContext(model, TEXT, { policy: "snapkv", keep: "40%" });
  const { layers, kvHeads } = model.config;
  const heads = (layer: number) => Array.from({ length: kvHeads }, (_, head) => context.cache.positions(layer, head));
  const kept = Array.from({ length: layers }, (_, layer) => heads(layer));
  const read = contextIds(model.frame, model.tokenizer, TEXT);
  const asked = questionIds(model.frame, model.tokenizer, QUESTION);
  const masked = await oracleLogits(model.dense, [...read, ...asked], 1, read.length, kept);
  assertClose(
    await model.backend.tensors.read(await extend(model.dense, context.cache, asked)),
    masked,
    1e-4,
    "logits",
  );
});

Deno.test("a text beyond the windows is refused before it is read, and a question when it doesn't fit", async () => {
  await using model = await windowed(24);
  const message = /Layers of tiny gemma3-windows look back 24 tokens only/;
  for (const options of [{}, { beyondTrained: true }, { positions: "rerotate" }] as const) {
    await assert.rejects(openContext(model, TEXT, { policy: "knorm", ...options }), (error: PalisadeError) => {
      assert.match(error.message, message);
      return refused(error) && error.where === "context";
    });
  }
  const length = contextIds(model.frame, model.tokenizer, TEXT).length;
  await using narrow = await windowed(length + 5);
  using context = await openContext(narrow, TEXT, { policy: "knorm" });
  await assert.rejects(context.ask(QUESTION, { maxTokens: 1 }), refused);
});

Deno.test("an answer ends where the windows would begin to hide something", async () => {
  await using model = await windowed(24);
  const read = contextIds(model.frame, model.tokenizer, TEXT),
    asked = questionIds(model.frame, model.tokenizer, QUESTION);
  await using enough = await windowed(read.length + asked.length + 3);
  const endless = { ...enough, tokenizer: replaced(enough.tokenizer, { endIds: new Set() }) };
  using context = await openContext(endless, TEXT, { policy: "knorm", keep: "30%" });
  const { finish, ids } = await context.ask(QUESTION, { maxTokens: 30 });
  assert.deepEqual([finish, ids.length], ["context", 4]);
});

/** An object with some members replaced; its own methods still find its private fields. */
function replaced<T extends object>(object: T, members: Partial<T>): T {
  return new Proxy(object, {
    get(target, name) {
      if (Object.hasOwn(members, name)) return members[name as keyof T];
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
