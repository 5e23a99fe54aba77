import { inputError } from "../../../core/errors.ts";
import { widthsOf } from "../../../core/dense/operations.ts";
import {
  type Architecture,
  ARCHITECTURES,
  decoderOf,
  type DenseOperation,
  type Dimensions,
  headOf,
  inputsOf,
  type TensorRows,
} from "../../architecture.ts";
import type { ModelConfig, Rope } from "../../config.ts";
import { quoted } from "./cursor.ts";
import {
  optionalFlags,
  optionalNumber,
  optionalNumbers,
  optionalString,
  optionalStrings,
  refuseField,
  requireNumber,
  requireString,
} from "./fields.ts";
import { localRope, noRope, type RopeContext, ropeOf, rotationLimit } from "./rope.ts";
import { readableTypes } from "../tensor_types.ts";
import type { GgufFile, GgufValue } from "./types.ts";

const COUNT = { min: 1, max: 2 ** 31 - 1, integer: true };

export interface ConfigOptions {
  /**
   * Most tokens there will be at once, text, question and answer: LongRoPE (phi3) turns those within the original
   * context otherwise, which is then where the model's context ends. Default: all that it was trained on.
   */
  readonly tokens?: number;
}

/**
 * What the decoder must know of a model, from the file's metadata and tensor table. What we know to
 * change a model's answers and the decoder doesn't do is refused by name, and so is any tensor it wouldn't use.
 *
 * Errors: `gguf.architecture`, `gguf.missing` (key or tensor), `gguf.value`, `gguf.shape`, `gguf.dtype`,
 * `gguf.unsupported`; `where` is `metadata["…"]` or `tensor["…"]`, `.shape` or `.type` after it where that is wrong.
 * Reads nothing of the tensor data except what RoPE is divided by, null logits, and the taps of convolutions.
 */
export async function configOf(gguf: GgufFile, options: ConfigOptions = {}): Promise<ModelConfig> {
  const entry = architectureOf(gguf), architecture = entry.name;
  refuseUnsupported(gguf, entry);
  const layers = requireNumber(gguf, `${architecture}.block_count`, COUNT);
  const width = requireNumber(gguf, `${architecture}.embedding_length`, COUNT);
  const contextLength = requireNumber(gguf, `${architecture}.context_length`, COUNT);
  const mixed = entry.mixed && mixedOf(gguf, entry, contextLength, layers);
  const shape = mixed ? mixed.attention : attentionOf(gguf, entry, width, layers), { convolves, ...attention } = shape;
  const sizes = {
    ...attention,
    layers,
    width,
    feedForward: mixed
      ? Math.max(...mixed.feedForwards)
      : requireNumber(gguf, `${architecture}.feed_forward_length`, COUNT),
    vocabulary: vocabularyOf(gguf),
    tiedHead: !gguf.tensors.has("output.weight"),
  };
  const settings = settingsOf(gguf, entry), taps = convolves ? tapsOf(gguf, entry) : 0;
  checkExperts(gguf, entry, settings);
  const sized = { ...sizes, settings, convolves, taps, has: (name: string) => gguf.tensors.has(name) };
  const dimensions = mixed ? { ...sized, windows: mixed.locals, feedForwards: mixed.feedForwards } : sized;
  checkTensors(gguf, entry, dimensions);
  const locals = mixed ? mixed.locals : localLayers(gguf, entry, contextLength, layers);
  const factors = await factorsOf(gguf, entry, layers);
  const context: RopeContext = {
    architecture,
    pairs: entry.pairs,
    fractionalYarn: entry.fractionalYarn,
    headDim: shape.headDim,
    contextLength,
    tokens: options.tokens ?? contextLength,
  };
  return {
    ...sizes,
    architecture,
    name: optionalString(gguf, "general.name") ?? gguf.name,
    normEpsilon: requireNumber(gguf, `${architecture}.attention.layer_norm_rms_epsilon`, { min: 0, max: 1 }),
    contextLength: rotationLimit(gguf, architecture, contextLength, options.tokens),
    ropes: await ropesOf(
      gguf,
      entry,
      { all: context, local: { ...context, headDim: mixed?.attention.windowHeads.headDim ?? context.headDim } },
      locals,
      convolves,
    ),
    // Where window layers are of another shape they stay what they are.
    windows: mixed ? locals : locals.map((window, index) => {
      return convolves?.[index] ? taps : window < contextLength ? window : 0;
    }),
    ...(convolves && {
      convolved: convolves.map((each) => each ? width / 2 / shape.kvHeads : 0),
      convolutions: await convolutionsOf(gguf, entry, convolves),
    }),
    ...(entry.nullLogits && { nulls: await nullsOf(gguf, entry, layers) }),
    decoder: decoderOf(entry, factors ? { ...dimensions, factors } : dimensions),
  };
}

/** The factors of an entry's layers, 1 where the file has none. @throws PalisadeError `gguf.value` for one that is not finite. */
async function factorsOf(gguf: GgufFile, entry: Architecture, layers: number): Promise<number[] | undefined> {
  if (!entry.factor) return undefined;
  const factors: number[] = [];
  for (let index = 0; index < layers; index++) {
    const name = entry.factor(index);
    factors.push(gguf.tensors.has(name) ? (await finiteNumbers(gguf, name))[0] : 1);
  }
  return factors;
}

/** What a `mixed` entry's file says of its layers (`Architecture.mixed`). */
function mixedOf(gguf: GgufFile, entry: Architecture, contextLength: number, layers: number) {
  const prefix = `${entry.name}.attention`;
  if (layers > gguf.tensors.size) {
    const message = `${layers}; the file has ${gguf.tensors.size} tensors in all, and every layer needs some`;
    throw refuseField(gguf, `${entry.name}.block_count`, "gguf.value", message);
  }
  const locals = localLayers(gguf, entry, contextLength, layers);
  const heads = requireNumber(gguf, `${prefix}.head_count`, COUNT);
  const width = (key: string) => {
    const [keys, values] = ["key", "value"].map((part) => requireNumber(gguf, `${prefix}.${part}_length${key}`, COUNT));
    if (keys === values) return keys;
    const given = `keys of ${keys} and values of ${values}; only equal lengths are supported`;
    throw refuseField(gguf, `${prefix}.value_length${key}`, "gguf.unsupported", given);
  };
  const headDim = width(""), kvHeads = perLayer(gguf, `${prefix}.head_count_kv`, layers);
  const windowHeads = {
    kvHeads: ofKind(gguf, `${prefix}.head_count_kv`, kvHeads, locals, true),
    headDim: width("_swa"),
  };
  const attention = { heads, kvHeads: ofKind(gguf, `${prefix}.head_count_kv`, kvHeads, locals, false), headDim };
  for (const count of [attention.kvHeads, windowHeads.kvHeads]) {
    if (heads % count === 0) continue;
    throw refuseField(
      gguf,
      `${prefix}.head_count_kv`,
      "gguf.value",
      `${count} KV heads do not divide ${heads} query heads`,
    );
  }
  const feedForwards = perLayer(gguf, `${entry.name}.feed_forward_length`, layers);
  return {
    locals,
    attention: { ...attention, windowHeads, sources: sourcesOf(gguf, entry, locals), convolves: undefined },
    feedForwards,
  };
}

/** A count for each layer, where the file has one for all or a list. */
function perLayer(gguf: GgufFile, key: string, layers: number): readonly number[] {
  const list = optionalNumbers(gguf, key, COUNT) ?? new Array<number>(layers).fill(requireNumber(gguf, key, COUNT));
  if (list.length === layers) return list;
  throw refuseField(gguf, key, "gguf.value", `${list.length} numbers; one for each of ${layers} layers is right`);
}

/** The count that all window layers have, or all others. */
function ofKind(gguf: GgufFile, key: string, counts: readonly number[], locals: readonly number[], local: boolean) {
  const of = new Set(counts.filter((_, layer) => (locals[layer] > 0) === local)), [count = counts[0]] = of;
  if (of.size <= 1) return count;
  const kind = local ? "window" : "global";
  throw refuseField(
    gguf,
    key,
    "gguf.unsupported",
    `[${counts.slice(0, 16)}]; one number for all ${kind} layers is supported`,
  );
}

/** The layer whose keys and values each one looks at: its own, or those of the last of its kind that has some. */
function sourcesOf(gguf: GgufFile, entry: Architecture, locals: readonly number[]): number[] | undefined {
  const key = `${entry.name}.attention.shared_kv_layers`, layers = locals.length;
  const shared = optionalNumber(gguf, key, { min: 0, max: layers - 1, integer: true }) ?? 0, first = layers - shared;
  if (shared === 0) return undefined;
  return locals.map((window, layer) => {
    if (layer < first) return layer;
    const source = locals.findLastIndex((each, i) => i < first && (each > 0) === (window > 0));
    if (source >= 0) return source;
    const kind = window > 0 ? "window" : "global";
    throw refuseField(
      gguf,
      key,
      "gguf.value",
      `${shared}; no ${kind} layer before the last ${shared} has keys and values`,
    );
  });
}

/** Each layer's rotation; local layers have a base of their own and no scaling. */
async function ropesOf(
  gguf: GgufFile,
  entry: Architecture,
  context: { readonly all: RopeContext; readonly local: RopeContext },
  locals: readonly number[],
  convolves: readonly boolean[] | undefined,
): Promise<Rope[]> {
  const { all, local } = context;
  const rotations = { rope: await ropeOf(gguf, all), local: localRope(gguf, local), none: noRope(all) };
  const own = entry.window?.turn === "own";
  return locals.map((window, index) => {
    if (convolves?.[index]) return rotations.none;
    return rotations[own && window > 0 ? "local" : entry.rotation?.(index) ?? "rope"];
  });
}

/** What each layer gives to nothing. @throws PalisadeError `gguf.value` for a logit that is not finite. */
async function nullsOf(gguf: GgufFile, entry: Architecture, layers: number): Promise<Float32Array[]> {
  const nulls: Float32Array[] = [];
  for (let index = 0; index < layers; index++) nulls.push(await finiteNumbers(gguf, entry.nullLogits!(index)));
  return nulls;
}

async function finiteNumbers(gguf: GgufFile, name: string): Promise<Float32Array> {
  const numbers = await gguf.readFloat32(name), odd = numbers.find((each) => !Number.isFinite(each));
  if (odd === undefined) return numbers;
  throw inputError("gguf.value", `${gguf.name}: ${name} holds ${odd}; finite is right`, `tensor[${quoted(name)}]`);
}

/** Most tokens that a convolution takes: those of models are three or four. */
const MOST_TAPS = 64;

function tapsOf(gguf: GgufFile, entry: Architecture): number {
  const range = { min: 2, max: MOST_TAPS, integer: true };
  return requireNumber(gguf, `${entry.name}.${entry.convolution!.taps}`, range);
}

/** The taps of layers that convolve. @throws PalisadeError `gguf.value` for one that is not finite. */
async function convolutionsOf(gguf: GgufFile, entry: Architecture, convolves: readonly boolean[]) {
  const taps: (Float32Array | undefined)[] = [];
  for (const [index, each] of convolves.entries()) {
    taps.push(each ? await finiteNumbers(gguf, entry.convolution!.tensor(index)) : undefined);
  }
  return taps;
}

function architectureOf(gguf: GgufFile): Architecture {
  const name = requireString(gguf, "general.architecture");
  const entry = ARCHITECTURES.get(name);
  if (entry !== undefined) return entry;
  const known = [...ARCHITECTURES.keys()].join(", ");
  throw refuseField(gguf, "general.architecture", "gguf.architecture", `${quoted(name)}; supported are ${known}`);
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
  // To llama.cpp the sign of a granite that turns nothing.
  ["granite.rope.scaling.finetuned", true],
];

/** The numbers that an architecture reads for itself. */
function settingsOf(gguf: GgufFile, { name, settings = [] }: Architecture): Record<string, number> {
  return Object.fromEntries(settings.flatMap((setting) => {
    const value = optionalNumber(gguf, `${name}.${setting}`, { min: 0 });
    return value === undefined ? [] : [[setting, value]];
  }));
}

/** Most experts: those of models are far fewer, and each is a matrix of its own. */
const MOST_EXPERTS = 1024;

/** Of an architecture with experts: how many there are, and how many a token is sent to. */
function checkExperts(gguf: GgufFile, { name, settings = [] }: Architecture, given: Readonly<Record<string, number>>) {
  if (!settings.includes("expert_count")) return;
  const count = requireNumber(gguf, `${name}.expert_count`, { min: 1, max: MOST_EXPERTS, integer: true });
  requireNumber(gguf, `${name}.expert_used_count`, { min: 1, max: count, integer: true });
  if (given.expert_feed_forward_length === undefined) return;
  requireNumber(gguf, `${name}.expert_feed_forward_length`, COUNT);
}

function refuseUnsupported(gguf: GgufFile, { name, settings = [] }: Architecture): void {
  for (const [pattern, ...inert] of UNSUPPORTED) {
    if (settings.some((setting) => pattern === `%.${setting}`)) continue;
    const key = pattern.replace("%", name);
    const value = gguf.metadata.get(key);
    if (value === undefined || inert.includes(value)) continue;
    const given = typeof value === "string" ? quoted(value) : String(value).slice(0, 80);
    throw refuseField(gguf, key, "gguf.unsupported", `${given} is not supported, only ${inert.join(" or ")}`);
  }
}

/** The window of each layer, 0 for those that look at everything. A window as long as the context hides nothing. */
function localLayers(gguf: GgufFile, entry: Architecture, contextLength: number, layers: number): number[] {
  const key = `${entry.name}.attention.sliding_window`, global = new Array<number>(layers).fill(0);
  if (entry.ignoresWindow) return global;
  const window = optionalNumber(gguf, key, { min: 0, integer: true }) ?? 0;
  if (entry.window) {
    const flags = optionalFlags(gguf, `${key}_pattern`);
    if (flags?.length === layers) return flags.map((local) => local ? window : 0);
    if (flags) {
      const given = `${flags.length} flags; one for each of ${layers} layers is right`;
      throw refuseField(gguf, `${key}_pattern`, "gguf.value", given);
    }
    const pattern = optionalNumber(gguf, `${key}_pattern`, { min: 1, integer: true }) ?? entry.window.pattern;
    return global.map((_, index) => (index + 1) % pattern === 0 ? 0 : window);
  }
  if (window === 0 || window >= contextLength) return global;
  throw refuseField(gguf, key, "gguf.unsupported", `sliding-window attention (${window} tokens) is not supported`);
}

function attentionOf(gguf: GgufFile, entry: Architecture, width: number, layers: number) {
  const prefix = `${entry.name}.attention`;
  const heads = requireNumber(gguf, `${prefix}.head_count`, COUNT);
  const kvKey = `${prefix}.head_count_kv`;
  const perLayer = entry.convolution && kvHeadsByLayer(gguf, kvKey, layers);
  const kvHeads = perLayer?.kvHeads ?? optionalNumber(gguf, kvKey, COUNT) ?? heads, convolves = perLayer?.convolves;
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
  // Half a row of keys and values holds what a KV head convolves.
  if (convolves && (headDim * heads !== width || width % (2 * kvHeads) !== 0 || kvHeads > MOST_CONVOLVED)) {
    const given = `${heads} heads of ${headDim} over ${kvHeads} beside convolutions of ${width} channels`;
    throw refuseField(gguf, kvKey, "gguf.unsupported", `${given}; heads as wide as the model together are supported`);
  }
  return { heads, kvHeads, headDim, convolves };
}

/** Most KV heads beside convolutions; backends hold twice as many query heads. */
const MOST_CONVOLVED = 2048;

/** KV heads where the file has a list of them, and which layers have none; nothing where it has one number for all. */
function kvHeadsByLayer(gguf: GgufFile, key: string, layers: number) {
  const counts = optionalNumbers(gguf, key, { ...COUNT, min: 0 });
  if (!counts) return undefined;
  const kvHeads = counts.find((count) => count > 0) ?? 0;
  if (counts.length === layers && kvHeads > 0 && counts.every((count) => count === 0 || count === kvHeads)) {
    return { kvHeads, convolves: counts.includes(0) ? counts.map((count) => count === 0) : undefined };
  }
  const right = `one number for each of ${layers} layers, 0 or the same, is right`;
  throw refuseField(gguf, key, "gguf.value", `[${counts.slice(0, 16)}]; ${right}`);
}

/** Rows of the embedding, which must be as many as the tokens. */
function vocabularyOf(gguf: GgufFile): number {
  const embedding = gguf.tensors.get("token_embd.weight");
  if (embedding === undefined) throw missingTensor(gguf, "token_embd.weight", "every decoder has its embeddings");
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

/** Every tensor the decoder reads is there, with its shape and a type we know; and there is none it doesn't read. */
function checkTensors(gguf: GgufFile, entry: Architecture, dimensions: Dimensions): void {
  const known = new Set(entry.optional);
  for (const [name, shape] of neededTensors(entry, dimensions)) {
    if (known.has(name)) continue;
    checkTensor(gguf, entry, name, shape, dimensions);
    known.add(name);
  }
  for (const name of gguf.tensors.keys()) {
    if (known.has(name)) continue;
    throw inputError(
      "gguf.unsupported",
      `${gguf.name}: tensor ${quoted(name)} is not part of a supported decoder; ${needs(entry, dimensions)}`,
      `tensor[${quoted(name)}]`,
    );
  }
}

function checkTensor(
  gguf: GgufFile,
  entry: Architecture,
  name: string,
  shape: readonly number[],
  dimensions: Dimensions,
): void {
  const tensor = gguf.tensors.get(name);
  if (tensor === undefined) throw missingTensor(gguf, name, needs(entry, dimensions));
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

function missingTensor(gguf: GgufFile, name: string, needed: string) {
  return inputError("gguf.missing", `${gguf.name}: there is no tensor ${name}; ${needed}`, `tensor[${quoted(name)}]`);
}

/** What an architecture's files hold, for people. */
function needs(entry: Architecture, dimensions: Dimensions): string {
  const block = "blk.0.";
  const names = [...neededTensors(entry, { ...dimensions, layers: 1 })].map(([name]) => name);
  const inBlocks = names.filter((name) => name.startsWith(block)).map((name) => name.slice(block.length));
  const others = names.filter((name) => !name.startsWith(block));
  return `${entry.name} has ${[...new Set(others)].join(", ")} and in each layer ${[...new Set(inBlocks)].join(", ")}`;
}

/**
 * Names and stored shapes, `[K, N]` with K the length of a row, from the operations. Lazy: a wrong layer count stops at
 * the first gap.
 */
function* neededTensors(
  entry: Architecture,
  dimensions: Dimensions,
): Generator<readonly [name: string, shape: readonly number[]]> {
  const { vocabulary, width, layers } = dimensions, embeddings = entry.perLayer?.(dimensions);
  yield ["token_embd.weight", [width, vocabulary]];
  yield* entry.tensors?.(dimensions) ?? [];
  yield* tensorsOf(headOf(entry, dimensions), inputsOf(dimensions));
  for (let index = 0; index < layers; index++) {
    const { project, finish } = entry.layer(dimensions, index), inputs = inputsOf(dimensions, index, embeddings);
    const factor = entry.factor?.(index);
    if (factor !== undefined && dimensions.has(factor)) yield [factor, [1]];
    if (dimensions.convolves?.[index]) yield [entry.convolution!.tensor(index), [dimensions.taps!, width]];
    if (entry.nullLogits) yield [entry.nullLogits(index), [dimensions.heads]];
    yield* tensorsOf(project, inputs);
    yield* tensorsOf(finish, inputs);
  }
}

function* tensorsOf(
  operations: readonly DenseOperation[],
  inputs: Readonly<Record<string, number>>,
): Generator<readonly [name: string, shape: readonly number[]]> {
  const widths = widthsOf(operations, inputs);
  for (const operation of operations) {
    if (operation.op === "norm") yield [operation.gains, [widths.get(operation.from)!]];
    if (operation.op === "headNorm") yield [operation.gains, [operation.width]];
    if (operation.op === "expand" || operation.op === "collect") yield* expertTensors(operation, widths);
    if (operation.op !== "multiply") continue;
    const rows = rowsOf(operation.weights);
    for (const { tensor, bias } of operation.weights) {
      yield [`${tensor}.weight`, [widths.get(operation.from)!, rows.get(tensor)!]];
      if (bias) yield [`${tensor}.bias`, [rows.get(tensor)!]];
    }
  }
}

/** Experts' matrices lie one behind the other in a tensor of three dimensions. */
function* expertTensors(
  operation: Extract<DenseOperation, { op: "expand" | "collect" }>,
  widths: ReadonlyMap<string, number>,
): Generator<readonly [name: string, shape: readonly number[]]> {
  const { weights: { length: experts, 0: first }, rows } = operation, width = widths.get(operation.from)!;
  for (const { tensor, bias } of first) {
    yield [`${tensor}.weight`, [operation.op === "collect" ? width / operation.used : width, rows, experts]];
    if (bias) yield [`${tensor}.bias`, [rows, experts]];
  }
}

/** Rows of each tensor; several parts of one tensor fill it. */
function rowsOf(weights: readonly TensorRows[]): ReadonlyMap<string, number> {
  const rows = new Map<string, number>();
  for (const each of weights) rows.set(each.tensor, Math.max(rows.get(each.tensor) ?? 0, each.first + each.rows));
  return rows;
}
