import assert from "node:assert/strict";
import type { PalisadeError } from "../../core/errors.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { CountingSource } from "../_helper/counting_source.ts";
import { build, type Entry, type TensorSpec } from "../_helper/gguf_builder.ts";

type Metadata = Record<string, Omit<Entry, "key"> | undefined>;
type Shapes = Record<string, readonly number[] | undefined>;

const u32 = (value: number) => ({ type: "uint32", value }) as const;
const f32 = (value: number) => ({ type: "float32", value }) as const;
const text = (value: string) => ({ type: "string", value }) as const;
const bool = (value: number) => ({ type: "bool", value }) as const;
const texts = (items: string[]) => ({ type: "array", value: { of: "string", items } }) as const;

const ARCHITECTURES = ["llama", "qwen2"] as const;

/** Width 8, 4 query and 2 KV heads of 2, feed-forward 12, 5 tokens, 2 layers. */
function metadataOf(architecture: string): Metadata {
  return {
    "general.architecture": text(architecture),
    [`${architecture}.block_count`]: u32(2),
    [`${architecture}.context_length`]: u32(128),
    [`${architecture}.embedding_length`]: u32(8),
    [`${architecture}.feed_forward_length`]: u32(12),
    [`${architecture}.attention.head_count`]: u32(4),
    [`${architecture}.attention.head_count_kv`]: u32(2),
    [`${architecture}.attention.layer_norm_rms_epsilon`]: f32(0.5),
  };
}

function shapesOf(architecture: string, q = 8, k = 4): Shapes {
  const shapes: Record<string, readonly number[]> = { "token_embd.weight": [8, 5], "output_norm.weight": [8] };
  for (const block of ["blk.0", "blk.1"]) {
    Object.assign(shapes, {
      [`${block}.attn_norm.weight`]: [8],
      [`${block}.attn_q.weight`]: [8, q],
      [`${block}.attn_k.weight`]: [8, k],
      [`${block}.attn_v.weight`]: [8, k],
      [`${block}.attn_output.weight`]: [q, 8],
      [`${block}.ffn_norm.weight`]: [8],
      [`${block}.ffn_gate.weight`]: [8, 12],
      [`${block}.ffn_up.weight`]: [8, 12],
      [`${block}.ffn_down.weight`]: [12, 8],
    });
    if (architecture === "qwen2") {
      Object.assign(shapes, {
        [`${block}.attn_q.bias`]: [q],
        [`${block}.attn_k.bias`]: [k],
        [`${block}.attn_v.bias`]: [k],
      });
    }
  }
  return shapes;
}

interface Change {
  readonly metadata?: Metadata;
  readonly shapes?: Shapes;
  /** Tensor types that are not F32. */
  readonly types?: Record<string, number>;
  /** Contents of `rope_freqs.weight`. */
  readonly factors?: readonly number[];
}

/** The configuration of a tiny file with `change` made to it; `undefined` takes an entry away. */
async function config(architecture: string, change: Change = {}) {
  const metadata = Object.entries({ ...metadataOf(architecture), ...change.metadata })
    .flatMap(([key, entry]) => entry === undefined ? [] : [{ key, ...entry }]);
  const shapes: Shapes = { ...shapesOf(architecture), ...change.shapes };
  if (change.factors) shapes["rope_freqs.weight"] = [change.factors.length];
  let offset = 0;
  let factorsAt = 0;
  const tensors: TensorSpec[] = [];
  for (const [name, shape] of Object.entries(shapes)) {
    if (shape === undefined) continue;
    tensors.push({ name, shape, type: change.types?.[name] ?? 0, offset });
    if (name === "rope_freqs.weight") factorsAt = offset;
    offset += Math.ceil(shape.reduce((product, size) => product * size, 4) / 32) * 32;
  }
  const { bytes, dataStart } = build({ metadata, tensors, data: offset });
  if (change.factors) bytes.set(new Uint8Array(Float32Array.from(change.factors).buffer), dataStart + factorsAt);
  return await configOf(await openGguf(new CountingSource(bytes)));
}

const plain = (rotated: number, base = 10000) =>
  Float64Array.from({ length: rotated / 2 }, (_, j) => base ** (-2 * j / rotated));

for (const architecture of ARCHITECTURES) {
  Deno.test(`configOf() of a small ${architecture}`, async () => {
    const { decoder, ropes, windows, ...rest } = await config(architecture);
    const tensors = decoder.layers.flatMap(({ project, finish }) => [...project, ...finish]).concat(decoder.head)
      .flatMap((each) => each.op === "multiply" ? each.weights : []);
    assert.equal(tensors.length, 2 * 7 + 1);
    assert.equal(tensors.filter(({ bias }) => bias).length, architecture === "qwen2" ? 6 : 0);
    assert.equal(ropes[1], ropes[0]);
    assert.deepEqual(windows, [0, 0]);
    assert.deepEqual(ropes[0], {
      pairs: architecture === "llama" ? "interleaved" : "half",
      rotated: 2,
      frequencies: Float64Array.of(1),
      magnitude: 1,
    });
    assert.deepEqual(rest, {
      architecture,
      name: "test.gguf",
      layers: 2,
      heads: 4,
      kvHeads: 2,
      headDim: 2,
      width: 8,
      feedForward: 12,
      vocabulary: 5,
      normEpsilon: 0.5,
      contextLength: 128,
      tiedHead: true,
    });
  });
}

Deno.test("configOf() takes what is optional: name, own head, own lengths of heads, all heads as KV heads", async () => {
  const named = await config("llama", {
    metadata: { "general.name": text("Small") },
    shapes: { "output.weight": [8, 5] },
  });
  assert.deepEqual([named.name, named.tiedHead], ["Small", false]);

  const lengths = { "llama.attention.key_length": u32(6), "llama.attention.value_length": u32(6) };
  const wide = await config("llama", { metadata: lengths, shapes: shapesOf("llama", 24, 12) });
  assert.deepEqual([wide.headDim, wide.ropes[0].rotated], [6, 6]);

  const all = await config("llama", {
    metadata: { "llama.attention.head_count_kv": undefined },
    shapes: shapesOf("llama", 8, 8),
  });
  assert.equal(all.kvHeads, 4);
});

Deno.test("configOf() accepts fields that say a thing is not used", async () => {
  const metadata = {
    "general.type": text("model"),
    "llama.expert_count": u32(0),
    "llama.attention.causal": bool(1),
    "llama.use_parallel_residual": bool(0),
    "llama.logit_scale": f32(1),
    "llama.attention.sliding_window": u32(128),
    "llama.rope.scaling.type": text("none"),
    "tokenizer.ggml.tokens": texts(["a", "b", "c", "d", "e"]),
  };
  assert.equal((await config("llama", { metadata })).ropes[0].magnitude, 1);
  await config("llama", { metadata: { "llama.attention.sliding_window": u32(0) } });
});

/** Heads of 8, so that RoPE has four pairs. */
const eight = (metadata: Metadata = {}) => ({
  metadata: { "llama.attention.key_length": u32(8), "llama.attention.value_length": u32(8), ...metadata },
  shapes: shapesOf("llama", 32, 16),
});

Deno.test("configOf() reads RoPE's base and the rotated dimensions", async () => {
  const { ropes: [rope] } = await config(
    "llama",
    eight({ "llama.rope.freq_base": f32(500), "llama.rope.dimension_count": u32(6) }),
  );
  assert.deepEqual(rope, { pairs: "interleaved", rotated: 6, frequencies: plain(6, 500), magnitude: 1 });
});

Deno.test("configOf() divides by linear scaling's factor, under its old name too, and without a type", async () => {
  const expected = plain(8).map((frequency) => frequency / 4);
  const ways: Metadata[] = [
    { "llama.rope.scaling.type": text("linear"), "llama.rope.scaling.factor": f32(4) },
    { "llama.rope.scaling.factor": f32(4) },
    { "llama.rope.scale_linear": f32(4) },
    { "llama.rope.scale_linear": f32(9), "llama.rope.scaling.factor": f32(4) },
  ];
  for (const way of ways) assert.deepEqual((await config("llama", eight(way))).ropes[0].frequencies, expected);
});

Deno.test("configOf() divides by rope_freqs.weight, before other scaling", async () => {
  const factors = [1, 2, 4, 8];
  const expected = plain(8).map((frequency, j) => frequency / factors[j]);
  assert.deepEqual((await config("llama", { ...eight(), factors })).ropes[0].frequencies, expected);
  const both = await config("llama", { ...eight({ "llama.rope.scaling.factor": f32(2) }), factors });
  assert.deepEqual(both.ropes[0].frequencies, expected.map((frequency) => frequency / 2));
});

Deno.test("configOf() mixes frequencies and sets the magnitude for YaRN", async () => {
  const yarn = { "llama.rope.scaling.type": text("yarn"), "llama.rope.scaling.factor": f32(4) };
  const original = { ...yarn, "llama.rope.scaling.original_context_length": u32(4096) };
  // pairs 1.31 and 2.81 turn 32 times and once over 4096 positions: the ramp goes from pair 1 to pair 3
  const mixed = plain(8).map((frequency, j) => frequency * [1, 1, 0.5 + 0.5 / 4, 1 / 4][j]);
  const { ropes: [rope] } = await config("llama", eight(original));
  rope.frequencies.forEach((frequency, j) => assert.ok(Math.abs(frequency - mixed[j]) < 1e-15, `${j}: ${frequency}`));
  assert.equal(rope.magnitude, 0.1 * Math.log(4) + 1);

  const multiplied = await config("llama", eight({ ...original, "llama.rope.scaling.attn_factor": f32(0.5) }));
  assert.equal(multiplied.ropes[0].magnitude, 0.5 * (0.1 * Math.log(4) + 1));
  const shrunk = await config("llama", eight({ ...original, "llama.rope.scaling.factor": f32(0.5) }));
  assert.equal(shrunk.ropes[0].magnitude, 1);

  // without an original length the trained context of 128 counts: the ramp goes from pair 0 to pair 2
  const trained = await config("llama", eight(yarn));
  const expected = plain(8).map((frequency, j) => frequency * [1, 0.5 + 0.5 / 4, 1 / 4, 1 / 4][j]);
  trained.ropes[0].frequencies.forEach((frequency, j) => assert.ok(Math.abs(frequency - expected[j]) < 1e-15));

  // no pair turns even once: all but the first, where the ramp starts, are slow
  const short = { ...yarn, "llama.rope.scaling.original_context_length": u32(2), "llama.rope.freq_base": f32(2) };
  assert.deepEqual(
    (await config("llama", eight(short))).ropes[0].frequencies,
    plain(8, 2).map((frequency, j) => j === 0 ? frequency : frequency / 4),
  );

  const betas = { "llama.rope.scaling.yarn_beta_fast": f32(8), "llama.rope.scaling.yarn_beta_slow": f32(0.01) };
  const slower = await config("llama", eight({ ...original, ...betas }));
  assert.notDeepEqual(slower.ropes[0].frequencies, rope.frequencies);
});

const key = (name: string) => `metadata["${name}"]`;
const tensor = (name: string, field = "") => `tensor["${name}"]${field}`;

type Refusal = readonly [what: string, architecture: string, change: Change, code: string, where: string];

function wrongValue(name: string, entry: Omit<Entry, "key">, code = "gguf.value", rest: Metadata = {}): Refusal {
  const shown = typeof entry.value === "object" ? "an array" : `${entry.value}`;
  return [`${name} = ${shown} (${entry.type})`, "llama", { metadata: { ...rest, [name]: entry } }, code, key(name)];
}

/** A count of layers that is not the file's. */
function layers(count: number, code: string, name: string): Refusal {
  return [`${count} layers`, "llama", { metadata: { "llama.block_count": u32(count) } }, code, tensor(name)];
}

const COUNTS = [
  "llama.block_count",
  "llama.context_length",
  "llama.embedding_length",
  "llama.feed_forward_length",
  "llama.attention.head_count",
  "llama.attention.head_count_kv",
  "llama.attention.key_length",
  "llama.attention.value_length",
  "llama.rope.dimension_count",
];

const REQUIRED = [
  "general.architecture",
  "llama.block_count",
  "llama.context_length",
  "llama.embedding_length",
  "llama.feed_forward_length",
  "llama.attention.head_count",
  "llama.attention.layer_norm_rms_epsilon",
];

const YARN: Metadata = { "llama.rope.scaling.type": text("yarn"), "llama.rope.scaling.factor": f32(4) };

const UNSUPPORTED: [name: string, entry: Omit<Entry, "key">][] = [
  ["general.type", text("adapter")],
  ["split.count", { type: "uint16", value: 2 }],
  ["llama.expert_count", u32(8)],
  ["llama.expert_used_count", u32(2)],
  ["llama.use_parallel_residual", bool(1)],
  ["llama.attention.causal", bool(0)],
  ["llama.attention.clamp_kqv", f32(8)],
  ["llama.attention.max_alibi_bias", f32(8)],
  ["llama.attention.scale", f32(0.25)],
  ["llama.attn_logit_softcapping", f32(50)],
  ["llama.final_logit_softcapping", f32(30)],
  ["llama.logit_scale", f32(0.5)],
  ["llama.embedding_scale", f32(12)],
  ["llama.residual_scale", f32(0.5)],
  ["llama.pooling_type", u32(1)],
  ["llama.attention.sliding_window", u32(127)],
  ["llama.rope.scaling.type", text("longrope")],
];

const METADATA_REFUSALS: Refusal[] = [
  ...REQUIRED.map((
    name,
  ): Refusal => [`no ${name}`, "llama", { metadata: { [name]: undefined } }, "gguf.missing", key(name)]),
  ...COUNTS.flatMap((name) => [
    wrongValue(name, u32(0)),
    wrongValue(name, u32(2 ** 31)),
    wrongValue(name, { type: "int32", value: -1 }),
    wrongValue(name, { type: "uint64", value: 2n ** 64n - 1n }),
    wrongValue(name, f32(2.5)),
    wrongValue(name, text("2")),
    wrongValue(name, { type: "array", value: { of: "uint32", items: [2, 2] } }),
  ]),
  ...UNSUPPORTED.map(([name, entry]) => wrongValue(name, entry, "gguf.unsupported")),
  ...["gpt2", "Llama", "llama4", "qwen2moe", "qwen4", "", "__proto__", "toString"].map((name) =>
    wrongValue("general.architecture", text(name), "gguf.architecture")
  ),
  wrongValue("general.architecture", u32(1)),
  wrongValue("general.name", u32(1)),
  ...[NaN, Infinity, -1, 2].map((n) => wrongValue("llama.attention.layer_norm_rms_epsilon", f32(n))),
  wrongValue("llama.attention.head_count_kv", u32(3)),
  wrongValue("llama.attention.head_count", u32(3), "gguf.value", { "llama.attention.head_count_kv": undefined }),
  wrongValue("llama.attention.key_length", u32(4), "gguf.unsupported"),
  wrongValue("llama.attention.value_length", u32(4), "gguf.unsupported"),
  wrongValue("llama.attention.sliding_window", f32(0.5)),
  ...[0, -1, 0.5, NaN, Infinity].map((n) => wrongValue("llama.rope.freq_base", f32(n))),
  wrongValue("llama.rope.freq_base", f32(1), "gguf.value", YARN),
  wrongValue("llama.rope.dimension_count", u32(3)),
  [
    "five rotated dimensions of eight",
    "llama",
    eight({ "llama.rope.dimension_count": u32(5) }),
    "gguf.value",
    key("llama.rope.dimension_count"),
  ],
  wrongValue("llama.rope.scaling.type", u32(1)),
  ...[0, -2, NaN].map((n) => wrongValue("llama.rope.scaling.factor", f32(n))),
  wrongValue("llama.rope.scale_linear", f32(0)),
  ...[0, NaN].map((n) => wrongValue("llama.rope.scaling.attn_factor", f32(n))),
  wrongValue("llama.rope.scaling.original_context_length", u32(0), "gguf.value", YARN),
  ...["yarn_beta_fast", "yarn_beta_slow"].map((name) =>
    wrongValue(`llama.rope.scaling.${name}`, f32(0), "gguf.value", YARN)
  ),
  wrongValue("llama.rope.scaling.yarn_log_multiplier", f32(-1), "gguf.value", YARN),
  wrongValue("llama.attention.temperature_scale", f32(-1)),
  wrongValue("llama.attention.temperature_length", u32(0)),
  ...["yarn_ext_factor", "yarn_attn_factor"].map((name) =>
    wrongValue(`llama.rope.scaling.${name}`, f32(1), "gguf.unsupported", YARN)
  ),
  ...["linear", "yarn"].map((kind): Refusal => [
    `${kind} scaling without a factor`,
    "llama",
    { metadata: { "llama.rope.scaling.type": text(kind) } },
    "gguf.missing",
    key("llama.rope.scaling.factor"),
  ]),
  wrongValue("tokenizer.ggml.tokens", texts(["a", "b"])),
  wrongValue("tokenizer.ggml.tokens", { type: "array", value: { of: "uint8", items: [1, 2, 3, 4, 5] } }),
  wrongValue("tokenizer.ggml.tokens", { type: "array", value: { of: "uint8", items: [] } }),
  wrongValue("tokenizer.ggml.tokens", text("abcde")),
  layers(1, "gguf.unsupported", "blk.1.attn_norm.weight"),
  layers(3, "gguf.missing", "blk.2.attn_norm.weight"),
  layers(2 ** 31 - 1, "gguf.missing", "blk.2.attn_norm.weight"),
];

function tensorRefusals(architecture: string): Refusal[] {
  return Object.entries(shapesOf(architecture)).flatMap(([name, shape]): Refusal[] => {
    const longer = shape!.map((size, d) => d === 0 ? size + 1 : size);
    const refusals: Refusal[] = [
      [`no ${name}`, architecture, { shapes: { [name]: undefined } }, "gguf.missing", tensor(name)],
      [`${name} of longer rows`, architecture, { shapes: { [name]: longer } }, "gguf.shape", tensor(name, ".shape")],
      [
        `${name} of 3 dimensions`,
        architecture,
        { shapes: { [name]: [...shape!, 1, 1].slice(0, 3) } },
        "gguf.shape",
        tensor(name, ".shape"),
      ],
      [`${name} of type I8`, architecture, { types: { [name]: 24 } }, "gguf.dtype", tensor(name, ".type")],
    ];
    return refusals;
  });
}

/** Tensors of other models, which must not be passed over. */
const FOREIGN: [architecture: string, name: string][] = [
  ["llama", "blk.0.attn_k.bias"],
  ["llama", "blk.0.ffn_down.bias"],
  ["llama", "blk.1.attn_q_norm.weight"],
  ["llama", "blk.1.attn_k_norm.weight"],
  ["llama", "blk.0.ffn_gate_inp.weight"],
  ["llama", "blk.0.attn_sinks.weight"],
  ["llama", "output.bias"],
  ["llama", "anything"],
  ["qwen2", "blk.0.ffn_up.bias"],
  ["qwen2", "rope_freqs.weight"],
];

const TENSOR_REFUSALS: Refusal[] = [
  ...ARCHITECTURES.flatMap(tensorRefusals),
  ...FOREIGN.map(([architecture, name]): Refusal => [
    `${architecture} with ${name}`,
    architecture,
    { shapes: { [name]: [8] } },
    "gguf.unsupported",
    tensor(name),
  ]),
  [
    "a head of another width",
    "llama",
    { shapes: { "output.weight": [7, 5] } },
    "gguf.shape",
    tensor("output.weight", ".shape"),
  ],
  ["two factors for one pair", "llama", { factors: [1, 2] }, "gguf.shape", tensor("rope_freqs.weight", ".shape")],
  [
    "factors of type I8",
    "llama",
    { shapes: { "rope_freqs.weight": [1] }, types: { "rope_freqs.weight": 24 } },
    "gguf.dtype",
    tensor("rope_freqs.weight", ".type"),
  ],
  ...[0, -1, NaN, Infinity].map((n): Refusal => [
    `a factor of ${n}`,
    "llama",
    { factors: [n] },
    "gguf.value",
    tensor("rope_freqs.weight"),
  ]),
];

/** phi3's shapes: q, k and v, gate and up in one tensor each. */
function phi3(more: Shapes): Shapes {
  const shapes: Record<string, readonly number[] | undefined> = { ...more };
  for (const block of ["blk.0", "blk.1"]) {
    for (const name of ["attn_q", "attn_k", "attn_v", "ffn_gate"]) shapes[`${block}.${name}.weight`] = undefined;
    shapes[`${block}.attn_qkv.weight`] = [8, 16];
    shapes[`${block}.ffn_up.weight`] = [8, 24];
  }
  return shapes;
}

const FACTORS = { "rope_factors_long.weight": [1], "rope_factors_short.weight": [1] };
const original = (tokens: number) => ({ "phi3.rope.scaling.original_context_length": u32(tokens) });

Deno.test("configOf() of a small phi3 takes no notice of the window", async () => {
  const window = { "phi3.attention.sliding_window": u32(16) };
  const { decoder, ropes: [rope] } = await config("phi3", { metadata: window, shapes: phi3({}) });
  assert.equal(decoder.layers.length, 2);
  assert.deepEqual([rope.pairs, rope.magnitude], ["half", 1]);
});

/** gemma3's shapes: two norms more a layer, and those of its heads. */
function gemma3(): Shapes {
  const block = (name: string) => ({
    [`${name}.attn_q_norm.weight`]: [2],
    [`${name}.attn_k_norm.weight`]: [2],
    [`${name}.post_attention_norm.weight`]: [8],
    [`${name}.post_ffw_norm.weight`]: [8],
  });
  return { ...block("blk.0"), ...block("blk.1") };
}

Deno.test("configOf() of a small gemma3: windows and their rotation, by the file's pattern or every sixth", async () => {
  const small = (metadata: Metadata) => config("gemma3", { metadata, shapes: gemma3() });
  const window = { "gemma3.attention.sliding_window": u32(16) }, base = { "gemma3.rope.freq_base": f32(1e6) };
  assert.deepEqual((await small(base)).windows, [0, 0]);
  const sixth = await small({ ...base, ...window });
  assert.deepEqual(sixth.windows, [16, 16]);
  assert.equal(sixth.decoder.embeddingScale, Math.sqrt(8));
  const pattern = { "gemma3.attention.sliding_window_pattern": u32(2) };
  assert.deepEqual((await small({ ...window, ...pattern })).windows, [16, 0]);
  // A window as long as the context hides nothing; its layers turn by their base all the same.
  const wide = await config("gemma3", {
    metadata: {
      ...base,
      ...pattern,
      "gemma3.attention.sliding_window": u32(128),
      "gemma3.attention.head_count": u32(2),
      "gemma3.attention.head_count_kv": u32(1),
      "gemma3.rope.freq_base_swa": f32(100),
    },
    shapes: {
      ...gemma3(),
      ...Object.fromEntries(
        ["blk.0", "blk.1"].flatMap((
          block,
        ) => [[`${block}.attn_q_norm.weight`, [4]], [`${block}.attn_k_norm.weight`, [4]]]),
      ),
    },
  });
  assert.deepEqual(wide.windows, [0, 0]);
  assert.deepEqual(wide.ropes.map(({ frequencies }) => frequencies), [plain(4, 100), plain(4, 1e6)]);
});

const GEMMA_0: Metadata = {
  "gemma3.attention.sliding_window": u32(16),
  "gemma3.attention.sliding_window_pattern": u32(0),
};

const SETTING_REFUSALS: Refusal[] = [
  ["no original context", "phi3", { shapes: phi3(FACTORS) }, "gguf.missing", key(Object.keys(original(1))[0])],
  ...([[64, "long", 128], [128, "short", 128]] as const).map(([tokens, lost]): Refusal => [
    `no ${lost} factors`,
    "phi3",
    { metadata: original(tokens), shapes: phi3({ ...FACTORS, [`rope_factors_${lost}.weight`]: undefined }) },
    "gguf.missing",
    tensor(`rope_factors_${lost}.weight`),
  ]),
  [
    "gate and up too short",
    "phi3",
    { shapes: { ...phi3({}), "blk.1.ffn_up.weight": [8, 12] } },
    "gguf.shape",
    tensor("blk.1.ffn_up.weight", ".shape"),
  ],
  ...["embedding_scale", "residual_scale", "logit_scale", "attention.scale"].flatMap((name): Refusal[] => [
    [`a bad ${name}`, "granite", { metadata: { [`granite.${name}`]: f32(-1) } }, "gguf.value", key(`granite.${name}`)],
    [
      `${name} of qwen3`,
      "qwen3",
      { metadata: { [`qwen3.${name}`]: f32(3) } },
      "gguf.unsupported",
      key(`qwen3.${name}`),
    ],
  ]),
  [
    "a bias of q without those of k and v",
    "llama",
    { shapes: { "blk.1.attn_q.bias": [8] } },
    "gguf.missing",
    tensor("blk.1.attn_k.bias"),
  ],
  [
    "a bias of another length",
    "llama",
    { shapes: { "blk.1.attn_output.bias": [7] } },
    "gguf.shape",
    tensor("blk.1.attn_output.bias", ".shape"),
  ],
  [
    "granite that turns nothing",
    "granite",
    { metadata: { "granite.rope.scaling.finetuned": bool(0) } },
    "gguf.unsupported",
    key("granite.rope.scaling.finetuned"),
  ],
  [
    "a pattern of 0",
    "gemma3",
    { metadata: GEMMA_0, shapes: gemma3() },
    "gguf.value",
    key("gemma3.attention.sliding_window_pattern"),
  ],
  ["qwen3 without norms of its heads", "qwen3", {}, "gguf.missing", tensor("blk.0.attn_q_norm.weight")],
];

const ALL_REFUSALS = { metadata: METADATA_REFUSALS, tensors: TENSOR_REFUSALS, settings: SETTING_REFUSALS };
for (const [group, refusals] of Object.entries(ALL_REFUSALS)) {
  Deno.test(`configOf() refuses bad ${group}, naming the key or tensor`, async (t) => {
    for (const [what, architecture, change, code, where] of refusals) {
      await t.step(what, async () => {
        await assert.rejects(config(architecture, change), (error: PalisadeError) => {
          assert.deepEqual([error.code, error.where, error.kind], [code, where, "input"], error.message);
          assert.ok(error.message.startsWith("test.gguf: "), error.message);
          return true;
        });
      });
    }
  });
}

/** A qwen3moe of four experts, two for each token, of six rows each. */
function moe(metadata: Metadata = {}, shapes: Shapes = {}): Change {
  const experts = (block: string): Shapes => ({
    [`${block}.attn_q_norm.weight`]: [2],
    [`${block}.attn_k_norm.weight`]: [2],
    [`${block}.ffn_gate.weight`]: undefined,
    [`${block}.ffn_up.weight`]: undefined,
    [`${block}.ffn_down.weight`]: undefined,
    [`${block}.ffn_gate_inp.weight`]: [8, 4],
    [`${block}.ffn_gate_exps.weight`]: [8, 6, 4],
    [`${block}.ffn_up_exps.weight`]: [8, 6, 4],
    [`${block}.ffn_down_exps.weight`]: [6, 8, 4],
  });
  const counts = { expert_count: 4, expert_used_count: 2, expert_feed_forward_length: 6 };
  return {
    metadata: {
      ...Object.fromEntries(Object.entries(counts).map(([key, value]) => [`qwen3moe.${key}`, u32(value)])),
      ...metadata,
    },
    shapes: { ...experts("blk.0"), ...experts("blk.1"), ...shapes },
  };
}

Deno.test("configOf() of experts: their matrices lie in tensors of three dimensions", async () => {
  const { decoder: { layers: [{ finish }] } } = await config("qwen3moe", moe());
  const expand = finish.find(({ op }) => op === "expand"), collect = finish.find(({ op }) => op === "collect");
  assert.ok(expand?.op === "expand" && collect?.op === "collect");
  assert.deepEqual([expand.weights.length, expand.parts, expand.rows, collect.rows], [4, 2, 6, 8]);
  assert.deepEqual(expand.weights[3].map(({ tensor, first, rows }) => [tensor, first, rows]), [
    ["blk.0.ffn_gate_exps", 18, 6],
    ["blk.0.ffn_up_exps", 18, 6],
  ]);
});

for (
  const [what, change, code, where] of [
    ["no count", moe({ "qwen3moe.expert_count": undefined }), "gguf.missing", "expert_count"],
    ["no count of those used", moe({ "qwen3moe.expert_used_count": undefined }), "gguf.missing", "expert_used_count"],
    ["no expert", moe({ "qwen3moe.expert_count": u32(0) }), "gguf.value", "expert_count"],
    ["too many", moe({ "qwen3moe.expert_count": u32(1 << 30) }), "gguf.value", "expert_count"],
    ["more used than there are", moe({ "qwen3moe.expert_used_count": u32(5) }), "gguf.value", "expert_used_count"],
    ["experts of no rows", moe({ "qwen3moe.expert_feed_forward_length": u32(0) }), "gguf.value", "feed_forward_length"],
    ["one expert fewer", moe({}, { "blk.1.ffn_up_exps.weight": [8, 6, 3] }), "gguf.shape", "blk.1.ffn_up_exps"],
    ["a flat tensor", moe({}, { "blk.0.ffn_down_exps.weight": [6, 32] }), "gguf.shape", "blk.0.ffn_down_exps"],
    ["no router", moe({}, { "blk.0.ffn_gate_inp.weight": undefined }), "gguf.missing", "blk.0.ffn_gate_inp"],
  ] as const
) {
  Deno.test(`configOf() refuses experts: ${what}`, async () => {
    await assert.rejects(config("qwen3moe", change), (error: PalisadeError) => {
      assert.ok(`${error.where}`.includes(where), `${error.where}`);
      return error.code === code;
    });
  });
}

/** A gpt-oss of four experts with biases, and two logits for nothing a layer. */
function gptOss(change: Change = {}): Change {
  const { metadata, shapes } = moe();
  const renamed = Object.entries(metadata!).map(([key, value]) => [key.replace("qwen3moe", "gpt-oss"), value]);
  const block = (name: string): Shapes => ({
    [`${name}.attn_q_norm.weight`]: undefined,
    [`${name}.attn_k_norm.weight`]: undefined,
    [`${name}.ffn_norm.weight`]: undefined,
    [`${name}.post_attention_norm.weight`]: [8],
    [`${name}.attn_q.bias`]: [8],
    [`${name}.attn_k.bias`]: [4],
    [`${name}.attn_v.bias`]: [4],
    [`${name}.attn_output.bias`]: [8],
    [`${name}.attn_sinks.weight`]: [4],
    [`${name}.ffn_gate_inp.bias`]: [4],
    [`${name}.ffn_gate_exps.bias`]: [6, 4],
    [`${name}.ffn_up_exps.bias`]: [6, 4],
    [`${name}.ffn_down_exps.bias`]: [8, 4],
  });
  return {
    metadata: { ...Object.fromEntries(renamed), ...change.metadata },
    shapes: { ...shapes, ...block("blk.0"), ...block("blk.1"), ...change.shapes },
  };
}

Deno.test("configOf() of a gpt-oss: windows in every second layer, logits for nothing, biases of experts", async () => {
  const got = await config("gpt-oss", gptOss({ metadata: { "gpt-oss.attention.sliding_window": u32(32) } }));
  assert.deepEqual(got.windows, [32, 0]);
  assert.equal(got.ropes[0], got.ropes[1]);
  assert.deepEqual(got.nulls?.map(({ length }) => length), [4, 4]);
  const { decoder: { layers: [{ finish }] } } = got;
  const expand = finish.find(({ op }) => op === "expand"), gate = finish.find(({ op }) => op === "gate");
  assert.ok(expand?.op === "expand" && gate?.op === "gate");
  assert.deepEqual(expand.weights[3][1], { tensor: "blk.0.ffn_up_exps", first: 18, rows: 6, bias: true });
  assert.equal(gate.activation, "limited");
});

for (
  const [what, shapes, code, where] of [
    ["no logits for nothing", { "blk.1.attn_sinks.weight": undefined }, "gguf.missing", "blk.1.attn_sinks.weight"],
    ["one logit too many", { "blk.0.attn_sinks.weight": [5] }, "gguf.shape", "blk.0.attn_sinks.weight"],
    ["an expert without bias", { "blk.0.ffn_up_exps.bias": [6, 3] }, "gguf.shape", "blk.0.ffn_up_exps.bias"],
    ["no biases of a router", { "blk.1.ffn_gate_inp.bias": undefined }, "gguf.missing", "blk.1.ffn_gate_inp.bias"],
  ] as [string, Shapes, string, string][]
) {
  Deno.test(`configOf() refuses a gpt-oss with ${what}`, async () => {
    await assert.rejects(config("gpt-oss", gptOss({ shapes })), (error: PalisadeError) => {
      assert.ok(`${error.where}`.includes(where), `${error.where}`);
      return error.code === code;
    });
  });
}

/** An lfm2 of two layers, of which the second attends. */
function lfm2(metadata: Metadata = {}, shapes: Shapes = {}): Change {
  const none = (block: string, names: readonly string[]) =>
    Object.fromEntries(names.map((name) => [`${block}.${name}.weight`, undefined]));
  return {
    metadata: { "lfm2.attention.head_count_kv": counts(0, 2), "lfm2.shortconv.l_cache": u32(3), ...metadata },
    shapes: {
      "output_norm.weight": undefined,
      "token_embd_norm.weight": [8],
      ...none("blk.0", ["attn_q", "attn_k", "attn_v", "attn_output"]),
      "blk.0.shortconv.conv.weight": [3, 8],
      "blk.0.shortconv.in_proj.weight": [8, 24],
      "blk.0.shortconv.out_proj.weight": [8, 8],
      "blk.1.attn_q_norm.weight": [2],
      "blk.1.attn_k_norm.weight": [2],
      ...shapes,
    },
  };
}

function counts(...items: number[]): Metadata[string] {
  return { type: "array", value: { of: "int32", items } } as unknown as Metadata[string];
}

Deno.test("configOf() of an lfm2: layers without KV heads convolve", async () => {
  const got = await config("lfm2", lfm2());
  assert.deepEqual([got.kvHeads, got.windows, got.convolved], [2, [3, 0], [2, 0]]);
  assert.deepEqual(got.convolutions?.map((taps) => taps?.length), [24, undefined]);
  assert.deepEqual(got.ropes.map(({ rotated }) => rotated), [0, 2]);
  const [multiply] = got.decoder.layers[0].project.filter(({ op }) => op === "multiply");
  assert.ok(multiply.op === "multiply");
  // What lets results out; then even and odd blocks of two channels of what lets in, and of what comes in.
  assert.deepEqual(multiply.weights.map(({ first, rows }) => [first, rows]), [
    ...[[8, 8], [0, 2], [4, 2], [2, 2], [6, 2]],
    ...[[16, 2], [20, 2], [18, 2], [22, 2]],
  ]);
  const attending = await config("lfm2", {
    metadata: { "lfm2.attention.head_count_kv": u32(2) },
    shapes: {
      "output_norm.weight": undefined,
      "token_embd_norm.weight": [8],
      ...Object.fromEntries(
        ["q", "k"].flatMap((name) => [0, 1].map((i) => [`blk.${i}.attn_${name}_norm.weight`, [2]])),
      ),
    },
  });
  assert.deepEqual([attending.windows, attending.convolved], [[0, 0], undefined]);
});

const KV = "lfm2.attention.head_count_kv", TAPS_KEY = "lfm2.shortconv.l_cache";
for (
  const [what, change, code, where] of [
    ["one layer too many", lfm2({ [KV]: counts(0, 2, 0) }), "gguf.value", KV],
    ["no layer that attends", lfm2({ [KV]: counts(0, 0) }), "gguf.value", KV],
    ["layers of different heads", lfm2({ [KV]: counts(1, 2) }), "gguf.value", KV],
    ["less than no head", lfm2({ [KV]: counts(-1, 2) }), "gguf.value", KV],
    ["heads by name", lfm2({ [KV]: texts(["two"]) }), "gguf.value", KV],
    ["no length of its convolutions", lfm2({ [TAPS_KEY]: undefined }), "gguf.missing", TAPS_KEY],
    ["convolutions of one token", lfm2({ [TAPS_KEY]: u32(1) }), "gguf.value", TAPS_KEY],
    ["convolutions of very many tokens", lfm2({ [TAPS_KEY]: u32(65) }), "gguf.value", TAPS_KEY],
    [
      "heads wider than the model",
      lfm2({ "lfm2.attention.key_length": u32(4), "lfm2.attention.value_length": u32(4) }),
      "gguf.unsupported",
      KV,
    ],
    ["taps of other channels", lfm2({}, { "blk.0.shortconv.conv.weight": [3, 7] }), "gguf.shape", "shortconv.conv"],
    ["no taps", lfm2({}, { "blk.0.shortconv.conv.weight": undefined }), "gguf.missing", "shortconv.conv"],
    ["attention where it convolves", lfm2({}, { "blk.0.attn_q.weight": [8, 8] }), "gguf.unsupported", "blk.0.attn_q"],
  ] as [string, Change, string, string][]
) {
  Deno.test(`configOf() refuses an lfm2 with ${what}`, async () => {
    await assert.rejects(config("lfm2", change), (error: PalisadeError) => {
      assert.ok(`${error.where}`.includes(where), `${error.where}`);
      return error.code === code;
    });
  });
}
