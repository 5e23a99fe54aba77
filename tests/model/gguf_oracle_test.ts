/** The same files through `@huggingface/gguf`, and the real model. */
import assert from "node:assert/strict";
import { gguf as oracle } from "@huggingface/gguf";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import type { GgufValue } from "../../model/file/gguf/types.ts";
import type { ByteSource } from "../../runtime/interface.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { smollm2 } from "../_helper/model.ts";
import { TINY_MODELS } from "../_helper/tiny_models.ts";

async function source(path: string): Promise<ByteSource> {
  return await (await currentRuntime()).openFile(path);
}

/** Typed arrays as plain ones, which is what the oracle gives. */
function plain(value: GgufValue): unknown {
  if (typeof value !== "object") return value;
  return Array.from(value as ArrayLike<GgufValue>, plain);
}

async function compare(path: string): Promise<void> {
  const { metadata: all, tensorInfos, tensorDataOffset } = await oracle(path, { allowLocalFile: true });
  const { version, tensor_count, kv_count, ...metadata } = all as unknown as Record<string, unknown>;
  await using gguf = await openGguf(await source(path));
  assert.deepEqual(
    [gguf.version, gguf.tensors.size, gguf.metadata.size],
    [version, tensor_count, kv_count].map(Number),
  );
  assert.deepEqual(Object.fromEntries([...gguf.metadata].map(([key, value]) => [key, plain(value)])), metadata);
  assert.deepEqual(
    [...gguf.tensors.values()].map(({ name, shape, type, offset }) => ({ name, shape, dtype: type.id, offset })),
    tensorInfos.map(({ name, shape, dtype, offset }) => ({
      name,
      shape: shape.map(Number),
      dtype: Number(dtype),
      offset: Number(offset + tensorDataOffset),
    })),
  );
}

for (const name of TINY_MODELS) {
  Deno.test(`openGguf() reads ${name} as @huggingface/gguf does`, async () => {
    await compare(fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url)));
  });
}

Deno.test("openGguf() reads SmolLM2-135M-Instruct as @huggingface/gguf does", async () => {
  await compare(await smollm2());
});

Deno.test("configOf() of SmolLM2-135M-Instruct", async () => {
  await using gguf = await openGguf(await source(await smollm2()));
  const { ropes, decoder, windows, ...config } = await configOf(gguf);
  assert.deepEqual(config, {
    architecture: "llama",
    name: "Smollm2 135M 8k Lc100K Mix1 Ep2",
    layers: 30,
    heads: 9,
    kvHeads: 3,
    headDim: 64,
    width: 576,
    feedForward: 1536,
    vocabulary: 49152,
    normEpsilon: Math.fround(1e-5),
    contextLength: 8192,
    tiedHead: true,
  });
  assert.deepEqual([decoder.layers.length, decoder.embeddingScale], [30, 1]);
  assert.ok(windows.every((window) => window === 0));
  const [rope] = ropes;
  assert.deepEqual([rope.pairs, rope.rotated, rope.magnitude, rope.frequencies.length], ["interleaved", 64, 1, 32]);
  assert.ok(Math.abs(rope.frequencies[31] - 100000 ** (-62 / 64)) < 1e-18);
});

/** The first `size` bytes of a source, and what was read of them. */
function cut(whole: ByteSource, size: number) {
  const reads: number[] = [];
  return {
    reads,
    name: whole.name,
    size,
    read(offset: number, length: number) {
      assert.ok(offset + length <= size, `read beyond ${size}`);
      reads.push(length);
      return whole.read(offset, length);
    },
    close: () => Promise.resolve(),
  };
}

Deno.test("openGguf() refuses SmolLM2-135M-Instruct cut off anywhere, reading little of it", async () => {
  const whole = await source(await smollm2());
  try {
    const gguf = await openGguf(cut(whole, whole.size));
    const dataStart = gguf.tensors.get("token_embd.weight")!.offset;
    for (const size of [0, 3, 23, 24, 1000, 100_000, 1_000_000, dataStart - 5000, dataStart, 50e6, whole.size - 1]) {
      const part = cut(whole, size);
      await assert.rejects(openGguf(part), (error: PalisadeError) => {
        assert.ok(error instanceof PalisadeError, `${error}`);
        assert.ok(["gguf.truncated", "gguf.count"].includes(error.code), `${size}: ${error.message}`);
        assert.notEqual(error.where, "");
        return true;
      });
      assert.ok(Math.max(0, ...part.reads) <= 2 ** 20);
      assert.ok(part.reads.reduce((sum, n) => sum + n, 0) <= 3 * 2 ** 20);
    }
  } finally {
    await whole.close();
  }
});
