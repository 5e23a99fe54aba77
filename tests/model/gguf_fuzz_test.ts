import assert from "node:assert/strict";
import { fuzzModels } from "../_helper/gguf_fuzz.ts";

Deno.test("bad model files of every architecture are refused by type, or run", async () => {
  // 100,000 of them: `deno task bench fuzz`.
  const { inputs, refused, taken, failures, codes } = await fuzzModels({ inputs: 900, seed: 151, runEach: 20 });
  assert.deepEqual(failures, []);
  assert.equal(refused + taken, inputs);
  assert.ok(refused > 0.6 * inputs && taken > 50, `${refused} refused, ${taken} taken`);
  for (const code of ["gguf.dtype", "gguf.shape", "gguf.unsupported", "gguf.missing", "gguf.split", "gguf.value"]) {
    assert.ok(codes.has(code), `${code} is among them`);
  }
});
