/** Files of random weights are what they say, and the same each time. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createWasmEngine } from "../../model/dense/wasm/engine.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { makeRandomModel } from "../../tools/make_random_model.ts";

Deno.test("makeRandomModel() writes a model in Q4_K_M's mix whose numbers keep their size", async () => {
  const folder = await mkdtemp(join(tmpdir(), "random-model-"));
  try {
    const path = join(folder, "a.gguf");
    makeRandomModel("tiny", path);
    await using file = await openGguf(await (await currentRuntime()).openFile(path));
    const type = (name: string) => file.tensors.get(`${name}.weight`)!.type.name;
    assert.deepEqual([type("token_embd"), type("output_norm"), type("blk.1.attn_q")], ["Q6_K", "F32", "Q4_K"]);
    // The first and last eighth of the layers, and each third between.
    const more = Array.from({ length: 8 }, (_, i) => type(`blk.${i}.attn_v`) === "Q6_K");
    assert.deepEqual(more, [true, false, false, true, false, false, true, true]);
    assert.deepEqual([type("blk.1.ffn_down"), type("blk.0.ffn_down")], ["Q5_0", "Q8_0"]);
    for (const name of ["token_embd", "blk.1.attn_q", "blk.1.ffn_down", "blk.0.ffn_down"]) {
      const weights = await file.readFloat32(`${name}.weight`);
      const squares = weights.reduce((sum, x) => sum + x * x, 0) / weights.length;
      const width = file.tensors.get(`${name}.weight`)!.shape[0];
      assert.ok(Math.abs(Math.sqrt(squares * width) - 1) < 0.1, `${name}: ${Math.sqrt(squares * width)}`);
    }
    await using engine = await createWasmEngine(file, await configOf(file));
    const logits = await engine.logits(engine.embed([1, 2]), 2);
    assert.ok(logits.every(Number.isFinite) && new Set(logits).size > 500);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("makeRandomModel() writes the same bytes for a seed, others for another, and knows its shapes", async () => {
  const folder = await mkdtemp(join(tmpdir(), "random-model-"));
  try {
    const bytes = async (seed: number) => {
      const path = join(folder, `${seed}.gguf`);
      makeRandomModel("tiny", path, seed);
      return await readFile(path);
    };
    const first = await bytes(7);
    assert.deepEqual(await bytes(7), first);
    assert.notDeepEqual(await bytes(8), first);
    assert.throws(() => makeRandomModel("huge", join(folder, "huge.gguf")), /want one of tiny, smollm2-135m/);
  } finally {
    await rm(folder, { recursive: true });
  }
});
