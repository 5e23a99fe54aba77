/** The tiny models of `tools/make_tiny_models.py`: configuration and weights give the logits of transformers. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import type { DenseOperation } from "../../model/architecture.ts";
import type { ModelConfig, Rope } from "../../model/config.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { readableTypes } from "../../model/file/tensor_types.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { oracleLogits } from "../_helper/oracle.ts";
import { plainDense } from "../_helper/plain_dense.ts";
import { TINY_MODELS } from "../_helper/tiny_models.ts";

const TOLERANCE = 1e-3;

interface Reference {
  readonly ids: number[];
  readonly positions: number[];
  readonly logits: number[][];
}

const data = new URL("../data/models/", import.meta.url);

async function open(name: string) {
  const gguf = await openGguf(new CountingSource(await readFile(new URL(`${name}.gguf`, data))));
  const reference: Reference = JSON.parse(await readFile(new URL(`${name}.logits.json`, data), "utf8"));
  return { gguf, config: await configOf(gguf), reference };
}

/** Largest difference from transformers when `config` is believed. */
async function difference(name: string, change: (config: ModelConfig) => ModelConfig = (config) => config) {
  const { gguf, config, reference: { ids, positions, logits } } = await open(name);
  await using dense = await plainDense(gguf, change(config));
  const ours = await oracleLogits(dense, ids, ids.length);
  const differences = positions.flatMap((position, i) =>
    logits[i].map((value, token) => Math.abs(ours[position * config.vocabulary + token] - value))
  );
  assert.equal(differences.length, positions.length * config.vocabulary);
  return Math.max(...differences);
}

for (const name of TINY_MODELS) {
  Deno.test(`configOf() and readFloat32() of ${name} give the logits of transformers`, async () => {
    const worst = await difference(name);
    assert.ok(worst <= TOLERANCE, `differs by ${worst}`);
  });
}

/** Frequencies where YaRN's borders are whole pairs, as in models before gpt-oss. */
function wholePairs({ rotated }: Rope): Float64Array {
  const pairOf = (turns: number) => rotated * Math.log(128 / (turns * 2 * Math.PI)) / (2 * Math.log(150000));
  const low = Math.max(Math.floor(pairOf(32)), 0), high = Math.ceil(pairOf(1));
  return Float64Array.from({ length: rotated / 2 }, (_, j) => {
    const slowness = Math.min(Math.max((j - low) / (high - low), 0), 1);
    return 150000 ** (-2 * j / rotated) * (1 - slowness + slowness / 32);
  });
}

const PLAIN = (rope: Rope) => Float64Array.from(rope.frequencies, (_, j) => 10000 ** (-2 * j / rope.rotated));
const WRONG_ROPE: Record<string, [name: string, change: (rope: Rope) => Partial<Rope>]> = {
  "linear scaling": ["llama-linear", (rope) => ({ frequencies: PLAIN(rope) })],
  "YaRN's frequencies": ["llama-yarn", (rope) => ({ frequencies: PLAIN(rope) })],
  "YaRN's frequencies for qwen2": ["qwen2-yarn", (rope) => ({ frequencies: PLAIN(rope) })],
  "YaRN's attention factor": ["llama-yarn", () => ({ magnitude: 1 })],
  "the llama 3 factors": ["llama3-factors", (rope) => ({ frequencies: PLAIN(rope) })],
  "llama's interleaved pairs": ["llama-plain", () => ({ pairs: "half" })],
  "qwen2's split pairs": ["qwen2-plain", () => ({ pairs: "interleaved" })],
  "what is in a layer that doesn't turn": [
    "smollm3-plain",
    (rope) => rope.rotated ? {} : { rotated: 2, frequencies: Float64Array.of(1) },
  ],
  "growing queries": ["mistral3-yarn", () => ({ growth: undefined })],
  "the length of their steps": ["mistral3-yarn", (rope) => ({ growth: { ...rope.growth!, length: 96 } })],
  "YaRN's trained attention factor": ["mistral3-yarn", () => ({ magnitude: 0.1 * Math.log(16) + 1 })],
  "mistral3's interleaved pairs": ["mistral3-yarn", () => ({ pairs: "half" })],
  "LongRoPE's factors": ["phi3-long", (rope) => ({ frequencies: PLAIN(rope) })],
  "LongRoPE's attention factor": ["phi3-long", () => ({ magnitude: 1 })],
  "fractions of pairs in YaRN": ["gpt-oss-plain", (rope) => ({ frequencies: wholePairs(rope) })],
  "phi3's unrotated half": ["phi3-long", () => ({ rotated: 16, frequencies: new Float64Array(8).fill(0.1) })],
};

for (const [what, [name, change]] of Object.entries(WRONG_ROPE)) {
  Deno.test(`the logits of ${name} notice the loss of ${what}`, async () => {
    const worst = await difference(
      name,
      (config) => ({ ...config, ropes: config.ropes.map((rope) => ({ ...rope, ...change(rope) })) }),
    );
    assert.ok(worst > 10 * TOLERANCE, `differs by ${worst} only`);
  });
}

Deno.test("LongRoPE takes the short factors where all tokens are within the original context", async () => {
  const { gguf, config } = await open("phi3-long");
  const short = await configOf(gguf, { tokens: 64 }), long = await configOf(gguf, { tokens: 65 });
  assert.deepEqual(long.ropes, config.ropes);
  const factors = Float32Array.of(1, 1.1, 1.2, 1.4);
  const expected = Float64Array.from(factors, (factor, j) => 10000 ** (-2 * j / 8) / factor);
  assert.deepEqual(short.ropes.map(({ frequencies }) => frequencies), [expected, expected]);
  // Keys turned for short texts can't be gone on with beyond them.
  assert.deepEqual([short.contextLength, long.contextLength, config.contextLength], [64, 1024, 1024]);
  assert.equal((await configOf(gguf, { tokens: 10 })).contextLength, 64);
  const plain = await open("llama-plain");
  assert.equal((await configOf(plain.gguf, { tokens: 10 })).contextLength, plain.config.contextLength);
  assert.equal(short.ropes[0].magnitude, config.ropes[0].magnitude);
});

/** The operations that `lost` picks, of all layers and the head, give what they read. */
function without(config: ModelConfig, lost: (operation: DenseOperation) => boolean): ModelConfig {
  const { decoder } = config;
  const list = (operations: readonly DenseOperation[]) =>
    operations.map((each): DenseOperation => {
      if (!lost(each)) return each;
      const from = typeof each.from === "string" ? each.from : each.from[0];
      return { op: "scale", from, to: each.to, factor: 1, first: 0, width: 0 };
    });
  const layers = decoder.layers.map(({ project, finish }) => ({ project: list(project), finish: list(finish) }));
  return { ...config, decoder: { ...decoder, layers, head: list(decoder.head) } };
}

function changed(config: ModelConfig, change: (operation: DenseOperation) => DenseOperation): ModelConfig {
  const { decoder } = config;
  const layers = decoder.layers.map(({ project, finish }) => ({ project, finish: finish.map(change) }));
  return { ...config, decoder: { ...decoder, layers } };
}

function changedProject(config: ModelConfig, change: (operation: DenseOperation) => DenseOperation): ModelConfig {
  const { decoder } = config;
  const layers = decoder.layers.map(({ project, finish }) => ({ project: project.map(change), finish }));
  return { ...config, decoder: { ...decoder, layers } };
}

/** Only the last `left` taps of each channel. */
function taps(config: ModelConfig, left: number): ModelConfig {
  const some = (all?: Float32Array) => all?.map((tap, i) => i % 3 < 3 - left ? 0 : tap);
  return { ...config, convolutions: config.convolutions!.map(some) };
}

function oneExpert<O extends DenseOperation>(operation: O): O {
  return { ...operation, used: 1 };
}

const LOST: Record<string, [name: string, change: (config: ModelConfig) => ModelConfig]> = {
  "the queries' norms": ["qwen3-plain", (config) => without(config, (each) => each.op === "headNorm" && !each.first)],
  "the keys' norms": ["qwen3-plain", (config) => without(config, (each) => each.op === "headNorm" && !!each.first)],
  "the second expert": [
    "qwen3moe-plain",
    (config) => changed(config, (each) => "used" in each ? oneExpert(each) : each),
  ],
  "the embeddings' scale": ["granite-plain", (c) => ({ ...c, decoder: { ...c.decoder, embeddingScale: 1 } })],
  "what was before, where it convolves": ["lfm2-plain", (config) => taps(config, 1)],
  "the oldest of what it convolves": ["lfm2-plain", (config) => taps(config, 2)],
  "what lets it in": [
    "lfm2-plain",
    (config) =>
      changedProject(config, (each) => {
        return each.op === "couple" ? { ...each, first: config.width * 2, width: config.width } : each;
      }),
  ],
  "the norms of lfm2's heads": ["lfm2-plain", (config) => without(config, (each) => each.op === "headNorm")],
  "what goes to nothing": ["gpt-oss-plain", (config) => ({ ...config, nulls: undefined })],
  "what goes to nothing in one head": ["gpt-oss-plain", (config) => ({
    ...config,
    nulls: config.nulls!.map((logits) => logits.map((logit, head) => head === 1 ? -Infinity : logit)),
  })],
  "gpt-oss's windows": ["gpt-oss-plain", (config) => ({ ...config, windows: [0, 0, 0] })],
  "the layer of gpt-oss that looks at everything": [
    "gpt-oss-plain",
    (config) => ({ ...config, windows: [24, 24, 24] }),
  ],
  "the biases of its attention": ["gpt-oss-plain", (config) => unbiased(config, /attn_/)],
  "the biases of its router": ["gpt-oss-plain", (config) => unbiased(config, /gate_inp$/)],
  "the biases of its experts": [
    "gpt-oss-plain",
    (config) =>
      changed(config, (each) => {
        if (each.op !== "collect" && each.op !== "expand") return each;
        const weights = each.weights.map((parts) => parts.map((rows) => ({ ...rows, bias: false })));
        return { ...each, weights };
      }),
  ],
  "the limits of its gates": [
    "gpt-oss-plain",
    (config) => changed(config, (each) => each.op === "gate" ? { ...each, activation: "silu" } : each),
  ],
  "a bias of q, k and v": ["llama-biases", (config) => unbiased(config, /attn_[qkv]$/)],
  "the bias behind attention": ["llama-biases", (config) => unbiased(config, /attn_output$/)],
  "the windows": ["gemma3-windows", (config) => ({ ...config, windows: config.windows.map(() => 0) })],
  "one token of the windows": [
    "gemma3-windows",
    (config) => ({ ...config, windows: config.windows.map((window) => window && window - 1) }),
  ],
  "the layer that looks at everything": [
    "gemma3-windows",
    (config) => ({ ...config, windows: config.windows.map(() => 24) }),
  ],
  "the local base": ["gemma3-windows", (config) => ({ ...config, ropes: config.ropes.map(() => config.ropes[5]) })],
  "the global base": ["gemma3-windows", (config) => ({ ...config, ropes: config.ropes.map(() => config.ropes[0]) })],
  "the scale of its embeddings": ["gemma3-windows", (c) => ({ ...c, decoder: { ...c.decoder, embeddingScale: 1 } })],
  "the norm behind attention": ["gemma3-windows", (config) => without(config, (each) => each.from === "projected")],
  "the norm behind the feed-forward part": [
    "gemma3-windows",
    (config) => without(config, (each) => each.from === "down"),
  ],
  "the norms of its heads": ["gemma3-windows", (config) => without(config, (each) => each.op === "headNorm")],
  "the attention's scale": ["granite-plain", (config) => without(config, scales("qkv"))],
  "the residual scale": ["granite-plain", (config) => without(config, scales("projected"))],
  "the residual scale of what was fed forward": ["granite-plain", (config) => without(config, scales("fed"))],
  "the logits' scale": ["granite-plain", (config) => without(config, scales("logits"))],
};

/** No biases of the tensors that `lost` matches. */
function unbiased(config: ModelConfig, lost: RegExp): ModelConfig {
  const list = (operations: readonly DenseOperation[]) =>
    operations.map((each): DenseOperation => {
      if (each.op !== "multiply") return each;
      return { ...each, weights: each.weights.map((rows) => lost.test(rows.tensor) ? { ...rows, bias: false } : rows) };
    });
  const layers = config.decoder.layers.map(({ project, finish }) => ({ project: list(project), finish: list(finish) }));
  return { ...config, decoder: { ...config.decoder, layers } };
}

function scales(value: string): (operation: DenseOperation) => boolean {
  return (operation) => operation.op === "scale" && operation.from === value;
}

for (const [what, [name, change]] of Object.entries(LOST)) {
  Deno.test(`the logits of ${name} notice the loss of ${what}`, async () => {
    const worst = await difference(name, change);
    assert.ok(worst > 10 * TOLERANCE, `differs by ${worst} only`);
  });
}

Deno.test("the tiny models hold the types that gguf can write and more, and heads that are tied and not", async () => {
  const opened = await Promise.all(TINY_MODELS.map(open));
  const types = new Set(opened.flatMap(({ gguf }) => [...gguf.tensors.values()].map((tensor) => tensor.type.name)));
  assert.ok([...types].every((type) => readableTypes().includes(type)));
  assert.deepEqual([...types].sort(), [
    ...["BF16", "F16", "F32", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS", "MXFP4"],
    ...["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q6_K", "Q8_0", "TQ1_0", "TQ2_0"],
  ]);
  assert.deepEqual(new Set(opened.map(({ config }) => config.tiedHead)), new Set([true, false]));
});
