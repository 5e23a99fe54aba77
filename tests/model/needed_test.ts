import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { neededBytes } from "../../model/dense/needed.ts";
import { pickDense } from "../../model/dense/pick.ts";
import { loadModel } from "../../model/model.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { DENSE_MODELS, openTiny, TINY_MODELS } from "../_helper/tiny_models.ts";

const PATH = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));

for (const engine of ["wasm", "web"] as const) {
  Deno.test(`neededBytes() promises no more than ${engine} holds, and most of it`, async () => {
    for (const name of engine === "wasm" ? TINY_MODELS : DENSE_MODELS) {
      await using model = await openTiny(name);
      for (const form of engine === "wasm" ? ["blocks"] as const : ["blocks", "float32"] as const) {
        const precision = form === "blocks" ? "quantised" : "float32";
        await using dense = await pickDense(model.file, model.config, { dense: engine, precision });
        const needed = neededBytes(model.file, engine, form), held = dense.weightBytes;
        assert.ok(needed <= held && needed > 0.25 * held, `${name}, ${form}: ${needed} of ${held}`);
      }
    }
  });
}

Deno.test("loadModel() refuses weights that the process can't hold, with the sum, before any is read", async () => {
  const runtime = await currentRuntime();
  let read = 0;
  const told: number[] = [];
  const small = (limitBytes: number) => ({
    ...runtime,
    memory: () => ({ ...runtime.memory(), limitBytes }),
  });
  await using model = await openTiny("llama-plain");
  const needed = neededBytes(model.file, "wasm", "blocks");
  const load = (limit: number) =>
    loadModel(PATH, small(limit), {
      dense: "wasm",
      backend: "ts",
      onNeeded: (bytes) => told.push(bytes, read),
      onProgress: () => read++,
    });
  const refused = { kind: "resources", code: "memory.short", message: /weights take 1 MB.* 1 MB at most/ };
  await assert.rejects(load(needed - 1), refused);
  assert.deepEqual([read, told], [0, []]);
  await (await load(needed))[Symbol.asyncDispose]();
  assert.ok(read > 0);
  assert.deepEqual(told, [needed, 0], "told before anything is read");
});
