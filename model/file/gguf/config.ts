import { inputError } from "../../../core/errors.ts";
import type { Architecture, ModelConfig } from "../../config.ts";
import { quoted } from "./cursor.ts";
import {
  optionalNumber,
  optionalString,
  optionalStrings,
  refuseField,
  requireNumber,
  requireString,
} from "./fields.ts";
import { ropeOf } from "./rope.ts";
import { readableTypes } from "../tensor_types.ts";
import type { GgufFile, GgufValue } from "./types.ts";

/** How the pairs of RoPE lie in the q and k rows of a GGUF, by architecture. */
const PAIRS = { llama: "interleaved", qwen2: "half" } as const satisfies Record<Architecture, string>;

/** Tensors a file may have without the metadata saying so. */
const OPTIONAL_TENSORS = { llama: ["rope_freqs.weight"], qwen2: [] } as const satisfies Record<Architecture, string[]>;

const COUNT = { min: 1, max: 2 ** 31 - 1, integer: true };

/**
 * What the decoder must know of a model, from the file's metadata and tensor table. What we know to
 * change a model's answers and the decoder doesn't do is refused by name, and so is any tensor it wouldn't use.
 *
 * Errors: `gguf.architecture`, `gguf.missing` (key or tensor), `gguf.value`, `gguf.shape`, `gguf.dtype`,
 * `gguf.unsupported`; `where` is `metadata["…"]` or `tensor["…"]`, `.shape` or `.type` after it where that is wrong.
 * Reads nothing of the tensor data except `rope_freqs.weight`.
 */
export async function configOf(gguf: GgufFile): Promise<ModelConfig> {
  const architecture = architectureOf(gguf);
  refuseUnsupported(gguf, architecture);
  const layers = requireNumber(gguf, `${architecture}.block_count`, COUNT);
  const width = requireNumber(gguf, `${architecture}.embedding_length`, COUNT);
  const contextLength = requireNumber(gguf, `${architecture}.context_length`, COUNT);
  const shape = attentionOf(gguf, architecture, width);
  const dimensions = {
    ...shape,
    layers,
    width,
    feedForward: requireNumber(gguf, `${architecture}.feed_forward_length`, COUNT),
    vocabulary: vocabularyOf(gguf),
    tiedHead: !gguf.tensors.has("output.weight"),
    qkvBias: architecture === "qwen2",
  };
  checkSlidingWindow(gguf, architecture, contextLength);
  checkTensors(gguf, dimensions, OPTIONAL_TENSORS[architecture]);
  return {
    ...dimensions,
    architecture,
    name: optionalString(gguf, "general.name") ?? gguf.name,
    normEpsilon: requireNumber(gguf, `${architecture}.attention.layer_norm_rms_epsilon`, { min: 0, max: 1 }),
    contextLength,
    rope: await ropeOf(gguf, { architecture, pairs: PAIRS[architecture], headDim: shape.headDim, contextLength }),
  };
}

function architectureOf(gguf: GgufFile): Architecture {
  const name = requireString(gguf, "general.architecture");
  if (Object.hasOwn(PAIRS, name)) return name as Architecture;
  const supported = Object.keys(PAIRS).join(" and ");
  throw refuseField(gguf, "general.architecture", "gguf.architecture", `${quoted(name)}; ${supported} are supported`);
}

/** Keys that change what a model computes, and the values that mean "not used". `%` stands for the architecture. */
const UNSUPPORTED: readonly (readonly [key: string, ...inert: GgufValue[]])[] = [
  ["general.type", "model"],
  ["split.count", 0, 1],
  ["%.expert_count", 0],
  ["%.expert_used_count", 0],
  ["%.use_parallel_residual", false],
  ["%.attention.causal", true],
  ["%.attention.clamp_kqv", 0],
  ["%.attention.max_alibi_bias", 0],
  ["%.attention.scale", 0],
  ["%.attn_logit_softcapping", 0],
  ["%.final_logit_softcapping", 0],
  ["%.logit_scale", 0, 1],
  ["%.embedding_scale", 0, 1],
  ["%.residual_scale", 0, 1],
  ["%.pooling_type", 0],
];

function refuseUnsupported(gguf: GgufFile, architecture: Architecture): void {
  for (const [pattern, ...inert] of UNSUPPORTED) {
    const key = pattern.replace("%", architecture);
    const value = gguf.metadata.get(key);
    if (value === undefined || inert.includes(value)) continue;
    const given = typeof value === "string" ? quoted(value) : String(value).slice(0, 80);
    throw refuseField(gguf, key, "gguf.unsupported", `${given} is not supported, only ${inert.join(" or ")}`);
  }
}

/** A window at least as long as the context hides nothing. */
function checkSlidingWindow(gguf: GgufFile, architecture: Architecture, contextLength: number): void {
  const key = `${architecture}.attention.sliding_window`;
  const window = optionalNumber(gguf, key, { min: 0, integer: true }) ?? 0;
  if (window === 0 || window >= contextLength) return;
  throw refuseField(gguf, key, "gguf.unsupported", `sliding-window attention (${window} tokens) is not supported`);
}

function attentionOf(gguf: GgufFile, architecture: Architecture, width: number) {
  const prefix = `${architecture}.attention`;
  const heads = requireNumber(gguf, `${prefix}.head_count`, COUNT);
  const kvKey = `${prefix}.head_count_kv`;
  const kvHeads = optionalNumber(gguf, kvKey, COUNT) ?? heads;
  if (heads % kvHeads !== 0) {
    throw refuseField(gguf, kvKey, "gguf.value", `${kvHeads} KV heads do not divide ${heads} query heads`);
  }
  const headDim = optionalNumber(gguf, `${prefix}.key_length`, COUNT) ?? width / heads;
  if (!Number.isInteger(headDim)) {
    throw refuseField(gguf, `${prefix}.head_count`, "gguf.value", `${heads} heads do not divide a width of ${width}`);
  }
  const valueKey = `${prefix}.value_length`;
  const valueLength = optionalNumber(gguf, valueKey, COUNT) ?? width / heads;
  if (valueLength !== headDim) {
    throw refuseField(
      gguf,
      gguf.metadata.has(valueKey) ? valueKey : `${prefix}.key_length`,
      "gguf.unsupported",
      `keys of ${headDim} and values of ${valueLength}; only equal lengths are supported`,
    );
  }
  return { heads, kvHeads, headDim };
}

/** Rows of the embedding, which must be as many as the tokens. */
function vocabularyOf(gguf: GgufFile): number {
  const embedding = gguf.tensors.get("token_embd.weight");
  if (embedding === undefined) throw missingTensor(gguf, "token_embd.weight");
  const vocabulary = embedding.shape.length === 2 ? embedding.shape[1] : 0;
  const tokens = optionalStrings(gguf, "tokenizer.ggml.tokens")?.length ?? vocabulary;
  if (vocabulary > 0 && tokens !== vocabulary) {
    throw refuseField(
      gguf,
      "tokenizer.ggml.tokens",
      "gguf.value",
      `${tokens} tokens, and token_embd.weight has ${vocabulary} rows`,
    );
  }
  return vocabulary;
}

type Dimensions = Pick<
  ModelConfig,
  "layers" | "width" | "heads" | "kvHeads" | "headDim" | "feedForward" | "vocabulary" | "tiedHead" | "qkvBias"
>;

/** Every tensor the decoder reads is there, with its shape and a type we know; and there is none it doesn't read. */
function checkTensors(gguf: GgufFile, dimensions: Dimensions, optional: readonly string[]): void {
  const known = new Set(optional);
  for (const [name, shape] of neededTensors(dimensions)) {
    checkTensor(gguf, name, shape);
    known.add(name);
  }
  for (const name of gguf.tensors.keys()) {
    if (known.has(name)) continue;
    throw inputError(
      "gguf.unsupported",
      `${gguf.name}: tensor ${quoted(name)} is not part of a supported decoder`,
      `tensor[${quoted(name)}]`,
    );
  }
}

function checkTensor(gguf: GgufFile, name: string, shape: readonly number[]): void {
  const tensor = gguf.tensors.get(name);
  if (tensor === undefined) throw missingTensor(gguf, name);
  const path = `tensor[${quoted(name)}]`;
  if (tensor.shape.length !== shape.length || tensor.shape.some((size, d) => size !== shape[d])) {
    throw inputError(
      "gguf.shape",
      `${gguf.name}: ${name} has shape [${tensor.shape.join(", ")}]; the metadata says [${shape.join(", ")}]`,
      `${path}.shape`,
    );
  }
  if (!tensor.type.decode) {
    throw inputError(
      "gguf.dtype",
      `${gguf.name}: ${name} has type ${tensor.type.name}; supported are ${readableTypes().join(", ")}`,
      `${path}.type`,
    );
  }
}

function missingTensor(gguf: GgufFile, name: string) {
  return inputError("gguf.missing", `${gguf.name}: there is no tensor ${name}`, `tensor[${quoted(name)}]`);
}

/** Names and stored shapes, `[K, N]` with K the length of a row. Lazy: a wrong layer count stops at the first gap. */
function* neededTensors(d: Dimensions): Generator<readonly [name: string, shape: readonly number[]]> {
  const queries = d.heads * d.headDim;
  const keys = d.kvHeads * d.headDim;
  yield ["token_embd.weight", [d.width, d.vocabulary]];
  yield ["output_norm.weight", [d.width]];
  if (!d.tiedHead) yield ["output.weight", [d.width, d.vocabulary]];
  for (let layer = 0; layer < d.layers; layer++) {
    const block = `blk.${layer}`;
    yield [`${block}.attn_norm.weight`, [d.width]];
    yield [`${block}.attn_q.weight`, [d.width, queries]];
    yield [`${block}.attn_k.weight`, [d.width, keys]];
    yield [`${block}.attn_v.weight`, [d.width, keys]];
    if (d.qkvBias) {
      yield [`${block}.attn_q.bias`, [queries]];
      yield [`${block}.attn_k.bias`, [keys]];
      yield [`${block}.attn_v.bias`, [keys]];
    }
    yield [`${block}.attn_output.weight`, [queries, d.width]];
    yield [`${block}.ffn_norm.weight`, [d.width]];
    yield [`${block}.ffn_gate.weight`, [d.width, d.feedForward]];
    yield [`${block}.ffn_up.weight`, [d.width, d.feedForward]];
    yield [`${block}.ffn_down.weight`, [d.feedForward, d.width]];
  }
}
