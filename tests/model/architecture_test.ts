/** An architecture and a tensor type are one entry each: made-up ones, added to the tables here alone, run everywhere. */
import assert from "node:assert/strict";
import type { PalisadeError } from "../../core/errors.ts";
import { randomSource } from "../../core/measure/random.ts";
import { type Architecture, ARCHITECTURES, type DenseOperation } from "../../model/architecture.ts";
import type { DenseEngine } from "../../model/dense/interface.ts";
import { createNodeEngine, probeNode } from "../../model/dense/ort/node.ts";
import { createWebEngine } from "../../model/dense/ort/web.ts";
import { createWasmEngine } from "../../model/dense/wasm/engine.ts";
import { Q8_0 } from "../../model/file/block_weights.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { TENSOR_TYPES, type TensorType, typeNamed } from "../../model/file/tensor_types.ts";
import { startPool } from "../../model/threads.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { assertClose } from "../_helper/close.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { build, type Entry, type TensorSpec } from "../_helper/gguf_builder.ts";
import { oracleLogits } from "../_helper/oracle.ts";
import { plainDense } from "../_helper/plain_dense.ts";
import { skipped } from "../_helper/skip.ts";

/** Q8_0 with the scale behind the numbers, for onnxruntime in blocks. */
const BEHIND: TensorType = {
  name: "TEST_BEHIND",
  id: 1000,
  block: 32,
  bytes: 34,
  decode: (bytes, out) => typeNamed("Q8_0").decode!(inFront(bytes), out),
  blocks: {
    ...Q8_0,
    unpack: (source, at, target, to) => Q8_0.unpack(inFront(source.subarray(at, at + 34)), 0, target, to),
  },
};

/** A scale of 2^-n for eight numbers: only its numbers are known, so every engine has it in float32. */
const POWERS: TensorType = {
  name: "TEST_POWERS",
  id: 1001,
  block: 8,
  bytes: 9,
  decode(bytes, out) {
    for (let i = 0; i < out.length; i++) {
      const at = Math.floor(i / 8) * 9;
      out[i] = (bytes[at + 1 + i % 8] << 24 >> 24) * 2 ** -(7 + (bytes[at] & 3));
    }
  },
};

function inFront(bytes: Uint8Array): Uint8Array {
  const out = new Uint8Array(bytes.length);
  for (let at = 0; at < bytes.length; at += 34) {
    out.set(bytes.subarray(at + 32, at + 34), at);
    out.set(bytes.subarray(at, at + 32), at + 2);
  }
  return out;
}

const WIDTH = 64, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 32, FEED_FORWARD = 96, VOCABULARY = 48;
const QUERIES = HEADS * HEAD_DIM, KEYS = KV_HEADS * HEAD_DIM;

const rows = (tensor: string, count: number, first = 0) => ({ tensor, first, rows: count, bias: false });

/** Everything an operation can be, in an order that no real model has. */
const ZIGZAG: Architecture = {
  name: "zigzag",
  pairs: "half",
  layer(model, index) {
    const b = `zig.${index}`, { width, feedForward } = model;
    const fused = QUERIES + 2 * KEYS;
    return {
      project: [
        { op: "norm", from: "hidden", to: "x", gains: `${b}.before.weight` },
        { op: "multiply", from: "x", to: "qkv", weights: [{ ...rows(`${b}.qkv`, fused), bias: true }], rows: fused },
        { op: "headNorm", from: "qkv", to: "q", gains: `${b}.q.weight`, first: 0, heads: HEADS, width: HEAD_DIM },
        {
          op: "headNorm",
          from: "q",
          to: "k",
          gains: `${b}.k.weight`,
          first: QUERIES,
          heads: KV_HEADS,
          width: HEAD_DIM,
        },
        { op: "scale", from: "k", to: "scaled", factor: 1.5, first: 0, width: QUERIES },
      ],
      finish: [
        { op: "multiply", from: "attention", to: "out", weights: [rows(`${b}.out`, width)], rows: width },
        { op: "norm", from: "out", to: "outNormed", gains: `${b}.after.weight` },
        { op: "add", from: ["outNormed", "hidden"], to: "residual" },
        // The feed-forward part reads the layer's input, and its halves are in one tensor, ups first.
        { op: "norm", from: "hidden", to: "x", gains: `${b}.before.weight` },
        {
          op: "multiply",
          from: "x",
          to: "both",
          weights: [rows(`${b}.up`, feedForward, feedForward), rows(`${b}.up`, feedForward)],
          rows: 2 * feedForward,
        },
        { op: "gate", from: "both", to: "gated", activation: "gelu" },
        { op: "multiply", from: "gated", to: "fed", weights: [rows(`${b}.down`, width)], rows: width },
        { op: "scale", from: "fed", to: "less", factor: 0.25, first: 0, width },
        { op: "add", from: ["residual", "less"], to: "next" },
      ],
    };
  },
  head: ({ vocabulary }): DenseOperation[] => [
    { op: "multiply", from: "hidden", to: "wide", weights: [rows("token_embd", vocabulary)], rows: vocabulary },
    { op: "cap", from: "wide", to: "logits", cap: 2 },
  ],
};

const SHAPES: Record<string, [shape: number[], type: string]> = {
  "token_embd.weight": [[WIDTH, VOCABULARY], "TEST_BEHIND"],
};
for (const b of ["zig.0", "zig.1"]) {
  Object.assign(SHAPES, {
    [`${b}.before.weight`]: [[WIDTH], "F32"],
    [`${b}.after.weight`]: [[WIDTH], "F32"],
    [`${b}.q.weight`]: [[HEAD_DIM], "F32"],
    [`${b}.k.weight`]: [[HEAD_DIM], "F32"],
    [`${b}.qkv.weight`]: [[WIDTH, QUERIES + 2 * KEYS], "TEST_BEHIND"],
    [`${b}.qkv.bias`]: [[QUERIES + 2 * KEYS], "F32"],
    [`${b}.out.weight`]: [[QUERIES, WIDTH], "TEST_POWERS"],
    [`${b}.up.weight`]: [[WIDTH, 2 * FEED_FORWARD], b === "zig.0" ? "TEST_BEHIND" : "TEST_POWERS"],
    [`${b}.down.weight`]: [[FEED_FORWARD, WIDTH], "TEST_BEHIND"],
  });
}

/** A file of the made-up architecture, without the tensor `missing`. */
function zigzagFile(missing = "", architecture = "zigzag") {
  const number = (key: string, value: number): Entry => ({ key: `${architecture}.${key}`, type: "uint32", value });
  const metadata: Entry[] = [
    { key: "general.architecture", type: "string", value: architecture },
    number("block_count", 2),
    number("context_length", 64),
    number("embedding_length", WIDTH),
    number("feed_forward_length", FEED_FORWARD),
    number("attention.head_count", HEADS),
    number("attention.head_count_kv", KV_HEADS),
    number("attention.key_length", HEAD_DIM),
    number("attention.value_length", HEAD_DIM),
    { key: `${architecture}.attention.layer_norm_rms_epsilon`, type: "float32", value: 1e-5 },
  ];
  const next = randomSource(3), tensors: TensorSpec[] = [], contents: [at: number, bytes: Uint8Array][] = [];
  let offset = 0;
  for (const [name, [shape, type]] of Object.entries(SHAPES)) {
    if (name === missing) continue;
    const bytes = randomTensor(type, shape.reduce((a, b) => a * b), next);
    tensors.push({ name, shape, type: typeNamed(type).id, offset });
    contents.push([offset, bytes]);
    offset += Math.ceil(bytes.length / 32) * 32;
  }
  const { bytes, dataStart } = build({ metadata, tensors, data: offset });
  for (const [at, content] of contents) bytes.set(content, dataStart + at);
  return openGguf(new CountingSource(bytes));
}

function randomTensor(type: string, elements: number, next: () => number): Uint8Array {
  if (type === "F32") return new Uint8Array(Float32Array.from({ length: elements }, () => next() + 0.5).buffer);
  const { block, bytes } = typeNamed(type);
  const raw = Uint8Array.from({ length: elements / block * bytes }, () => next() * 256);
  // Scales of about 2^-10.
  if (type === "TEST_BEHIND") { for (let at = 0; at < raw.length; at += 34) raw[at + 33] = 0x14; }
  return raw;
}

async function withTables(body: () => Promise<void>): Promise<void> {
  for (const type of [BEHIND, POWERS]) TENSOR_TYPES.set(type.id, type);
  ARCHITECTURES.set(ZIGZAG.name, ZIGZAG);
  try {
    await body();
  } finally {
    for (const type of [BEHIND, POWERS]) TENSOR_TYPES.delete(type.id);
    ARCHITECTURES.delete(ZIGZAG.name);
  }
}

async function pieces(engine: DenseEngine, count: number): Promise<Float32Array[]> {
  const { config } = engine, next = randomSource(9);
  const noise = (width: number) => Float32Array.from({ length: count * width }, () => next() * 4 - 2);
  const hidden = noise(WIDTH), attention = noise(QUERIES), all = [engine.embed([3, 1, 4])];
  for (let layer = 0; layer < config.layers; layer++) {
    all.push(await engine.qkv(layer, hidden, count), await engine.finish(layer, hidden, attention, count));
  }
  return [...all, await engine.logits(hidden, count)];
}

const probe = await probeNode();
type Opened = Awaited<ReturnType<typeof zigzagFile>>;
type Config = Awaited<ReturnType<typeof configOf>>;
const ENGINES: Record<string, [tolerance: number, (file: Opened, config: Config) => Promise<DenseEngine>]> = {
  "wasm float32": [2e-5, (file, config) => createWasmEngine(file, config, { precision: "float32" })],
  "wasm quantised": [4e-4, (file, config) => createWasmEngine(file, config)],
  "web float32": [2e-5, (file, config) => createWebEngine(file, config, "float32")],
  "web blocks": [2e-5, (file, config) => createWebEngine(file, config, "blocks")],
  "node float32": [2e-5, (file, config) => createNodeEngine(file, config, "float32")],
  "node blocks": [2e-5, (file, config) => createNodeEngine(file, config, "blocks")],
};

for (const [name, [tolerance, create]] of Object.entries(ENGINES)) {
  const title = `${name} runs a made-up architecture over made-up tensor types as the plain loops do`;
  if (name.startsWith("node") && !probe.available) {
    skipped(title, probe.reason, "device");
    continue;
  }
  Deno.test(title, () =>
    withTables(async () => {
      await using file = await zigzagFile();
      const config = await configOf(file);
      await using engine = await create(file, config);
      await using oracle = await plainDense(file, config);
      for (const count of [1, 5, 70]) {
        const want = await pieces(oracle, count);
        (await pieces(engine, count)).forEach((got, i) =>
          assertClose(got, want[i], tolerance, `${i} of ${count} rows`)
        );
      }
      const ids = [5, 17, 40, 2, 2, 31];
      assertClose(await oracleLogits(engine, ids, 6), await oracleLogits(oracle, ids, 6), 5 * tolerance, "logits");
    }));
}

Deno.test("a made-up architecture over threads has the bits of one thread", () =>
  withTables(async () => {
    await using file = await zigzagFile();
    const config = await configOf(file);
    for (const threads of [2, 3]) {
      using pool = await startPool(await currentRuntime(), threads);
      await using one = await createWasmEngine(file, config);
      await using several = await createWasmEngine(file, config, { pool, workPerWait: 0 });
      for (const count of [1, 5, 70]) assert.deepEqual(await pieces(several, count), await pieces(one, count));
    }
  }));

Deno.test("a file of the made-up architecture that lacks a tensor is refused, with the names it should have", () =>
  withTables(async () => {
    for (const missing of Object.keys(SHAPES)) {
      await using file = await zigzagFile(missing);
      await assert.rejects(configOf(file), (error: PalisadeError) => {
        assert.deepEqual([error.code, error.where], ["gguf.missing", `tensor["${missing}"]`]);
        return missing === "token_embd.weight" ||
          /zigzag has token_embd\.weight, .*zig\.0\.qkv\.bias/.test(error.message);
      });
    }
  }));

Deno.test("an architecture that no table has is refused, with the names of those known", async () => {
  await withTables(async () => {
    await using file = await zigzagFile("", "zagzig");
    await assert.rejects(configOf(file), /"zagzig"; supported are llama, qwen2.*, zigzag/);
  });
  assert.equal(ARCHITECTURES.has("zigzag"), false);
});
