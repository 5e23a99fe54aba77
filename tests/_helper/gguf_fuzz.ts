/**
 * Bad model files by the thousand: the tiny models with keys, tensor types, shapes and bytes changed, of every
 * architecture. Each is opened as `loadModel` opens it, and some of those that are taken run a token.
 */
import { readFileSync } from "node:fs";
import { PalisadeError } from "../../core/errors.ts";
import { pickDense } from "../../model/dense/pick.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { type GgufFile, type GgufValue, openGguf } from "../../model/file/gguf/reader.ts";
import { openGgufSources } from "../../model/file/gguf/split.ts";
import { tokenizerOf } from "../../model/text/tokenizer.ts";
import { CountingSource } from "./counting_source.ts";
import { build, type Entry, type Item, type TensorSpec, type ValueType } from "./gguf_builder.ts";
import { dice, type FuzzFigures } from "./snapshot_fuzz.ts";
import { splitGguf } from "./split_gguf.ts";
import { inputsOf } from "../../model/architecture.ts";
import { TINY_MODELS } from "./tiny_models.ts";

type Bytes = Uint8Array<ArrayBuffer>;
type Roll = (below: number) => number;

/** A file as its builder takes it. */
interface Spec {
  readonly metadata: Entry[];
  readonly tensors: TensorSpec[];
  readonly data: number;
}

const ARRAY_TYPES: readonly (readonly [abstract new (...args: never[]) => object, ValueType])[] = [
  [Uint8Array, "uint8"],
  [Int8Array, "int8"],
  [Uint16Array, "uint16"],
  [Int16Array, "int16"],
  [Uint32Array, "uint32"],
  [Int32Array, "int32"],
  [Float32Array, "float32"],
  [Float64Array, "float64"],
  [BigUint64Array, "uint64"],
  [BigInt64Array, "int64"],
];

function typeOf(value: GgufValue): ValueType {
  if (typeof value === "string") return "string";
  if (typeof value === "boolean") return "bool";
  if (typeof value === "bigint") return "uint64";
  if (typeof value === "object") return "array";
  if (!Number.isInteger(value) || Math.abs(value) > 2 ** 32 - 1) return "float64";
  return value < 0 ? "int32" : "uint32";
}

function itemOf(value: GgufValue): Item {
  if (typeof value === "boolean") return Number(value);
  if (typeof value !== "object") return value;
  const typed = ARRAY_TYPES.find(([Type]) => value instanceof Type)?.[1], items = Array.from<GgufValue>(value);
  return { of: typed ?? typeOf(items[0] ?? 0), items: items.map(itemOf) };
}

const entryOf = (key: string, value: GgufValue): Entry => ({ key, type: typeOf(value), value: itemOf(value) });

function specOf({ metadata, tensors, size }: GgufFile): Spec {
  const first = Math.min(...[...tensors.values()].map(({ offset }) => offset));
  return {
    metadata: [...metadata].map(([key, value]) => entryOf(key, value)),
    tensors: [...tensors.values()].map(({ name, shape, type, offset }) => {
      return { name, shape, type: type.id, offset: offset - first };
    }),
    data: size - first,
  };
}

/** What may stand where another value stood. */
const VALUES: readonly GgufValue[] = [
  ...[0, 1, 2, 3, 5, 7, 8, 16, 24, 31, 32, 33, 64, 96, 128, 256, 320, 1000, 65535, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1],
  ...[
    -1,
    -(2 ** 31),
    0.5,
    1e-30,
    1e30,
    1e300,
    -0.25,
    NaN,
    Infinity,
    2n ** 63n,
    true,
    false,
    "",
    "llama",
    "yarn",
    "none",
  ],
  ...["linear", "longrope", "{{ x", "gemma3", "lfm2", "gpt-oss", "gemma4", "\u0000", "é".repeat(40)],
  ...[
    new Uint32Array(0),
    Uint32Array.of(0),
    Uint32Array.of(2, 0),
    Int32Array.of(1, 2, 3, 4, 5, 6, 7),
    Float32Array.of(0.5),
  ],
  ...[Uint32Array.of(0, 2), [true, false], ["a", "b"], [], new Array<string>(320).fill("a"), [Uint8Array.of(1)]],
  ...[Float32Array.from({ length: 320 }, (_, i) => -i), Int32Array.from({ length: 320 }, (_, i) => i % 7)],
];

/** Keys that change what is computed, `%` the architecture, whether a file of ours has them or not. */
const KEYS: readonly string[] = [
  ...["context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"].map((key) =>
    `%.${key}`
  ),
  ...["head_count", "head_count_kv", "key_length", "value_length", "layer_norm_rms_epsilon", "sliding_window", "scale"]
    .map((key) => `%.attention.${key}`),
  ...[
    "sliding_window_pattern",
    "key_length_swa",
    "value_length_swa",
    "shared_kv_layers",
    "temperature_length",
    "causal",
  ]
    .map((key) => `%.attention.${key}`),
  ...["temperature_scale", "clamp_kqv", "max_alibi_bias"].map((key) => `%.attention.${key}`),
  ...["dimension_count", "dimension_count_swa", "freq_base", "freq_base_swa", "scale_linear", "scaling.type"]
    .map((key) => `%.rope.${key}`),
  ...["factor", "attn_factor", "original_context_length", "finetuned", "yarn_ext_factor", "yarn_attn_factor"]
    .map((key) => `%.rope.scaling.${key}`),
  ...["yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier"].map((key) => `%.rope.scaling.${key}`),
  ...["attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "residual_scale", "embedding_scale"]
    .map((key) => `%.${key}`),
  ...["expert_count", "expert_used_count", "expert_feed_forward_length", "expert_gating_func", "expert_weights_scale"]
    .map((key) => `%.${key}`),
  ...["leading_dense_block_count", "full_attention_interval", "shortconv.l_cache", "embedding_length_per_layer_input"]
    .map((key) => `%.${key}`),
  ...["general.architecture", "general.alignment", "general.type", "general.name", "split.no", "split.count"],
  ...["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "eot_token_id"]
    .map((key) => `tokenizer.ggml.${key}`),
  ...["eom_token_id", "unknown_token_id", "padding_token_id", "add_bos_token", "add_eos_token", "add_space_prefix"]
    .map((key) => `tokenizer.ggml.${key}`),
];

const SIZES: readonly (number | bigint)[] = [
  0,
  1,
  2,
  3,
  4,
  16,
  31,
  32,
  64,
  96,
  255,
  256,
  320,
  2 ** 31,
  2n ** 32n,
  2n ** 63n,
];

/** A list with one thing done to it: an item gone, doubled, or another in its place. */
function edited<T>(list: readonly T[], roll: Roll, change: (item: T) => T): T[] {
  const copy = [...list], at = roll(copy.length);
  if (copy.length === 0) return copy;
  const what = roll(12);
  if (what === 0) copy.splice(at, 1);
  else if (what === 1) copy.push(copy[at]);
  else copy[at] = change(copy[at]);
  return copy;
}

function changedEntry(entry: Entry, roll: Roll): Entry {
  const key = entry.key as string;
  return entryOf(roll(20) === 0 ? `${key}x` : key, VALUES[roll(VALUES.length)]);
}

function changedTensor(tensor: TensorSpec, roll: Roll): TensorSpec {
  const { name, shape, offset } = tensor;
  switch (roll(6)) {
    case 0:
    case 1:
      return { ...tensor, type: roll(44) };
    case 2:
      return { ...tensor, shape: edited(shape, roll, () => SIZES[roll(SIZES.length)]) };
    case 3:
      return { ...tensor, shape: [...shape].reverse() };
    case 4:
      return { ...tensor, offset: [0, 32, 33, 2n ** 63n, BigInt(offset) + 32n][roll(5)] };
    default:
      return {
        ...tensor,
        name: `${name}`.replace(/attn_q|ffn_up|\d+|weight/, () => ["attn_k", "9", "", "bias"][roll(4)]),
      };
  }
}

/** A file whose numbers are wrong and whose lengths are right. */
function rebuilt(spec: Spec, roll: Roll): Bytes {
  let { metadata, tensors } = spec;
  const architecture = String(spec.metadata.find(({ key }) => key === "general.architecture")?.value);
  for (let changes = 1 + roll(3); changes > 0; changes--) {
    const kind = roll(3);
    if (kind === 0) tensors = edited(tensors, roll, (tensor) => changedTensor(tensor, roll));
    else if (kind === 1) metadata = edited(metadata, roll, (entry) => changedEntry(entry, roll));
    else {
      const key = KEYS[roll(KEYS.length)].replace("%", architecture), value = VALUES[roll(VALUES.length)];
      metadata = [...metadata.filter((entry) => entry.key !== key), entryOf(key, value)];
    }
  }
  return build({ metadata, tensors, data: spec.data }).bytes;
}

function flipped(bytes: Bytes, end: number, roll: Roll): Bytes {
  const copy = bytes.slice();
  for (let flips = 1 + roll(4); flips > 0; flips--) copy[roll(end)] = roll(2) ? roll(256) : [0, 1, 0x7f, 0xff][roll(4)];
  return copy;
}

/** What inputs are made of. */
interface Base {
  readonly name: string;
  readonly bytes: Bytes;
  readonly spec: Spec;
  /** Where the tensors' data begin. */
  readonly header: number;
}

/** The tiny models, every architecture. */
async function bases(): Promise<Base[]> {
  const all: Base[] = [];
  for (const name of TINY_MODELS) {
    const bytes = new Uint8Array(readFileSync(new URL(`../data/models/${name}.gguf`, import.meta.url)));
    await using file = await openGguf(new CountingSource(bytes));
    const header = Math.min(...[...file.tensors.values()].map(({ offset }) => offset));
    all.push({ name, bytes, spec: specOf(file), header });
  }
  return all;
}

/** One bad file, or the parts of one. */
function badModel({ bytes, spec, header }: Base, roll: Roll): readonly Bytes[] {
  switch (roll(8)) {
    case 0:
      return [flipped(bytes, header, roll)];
    case 1:
      return [flipped(bytes, bytes.length, roll)];
    case 2:
      return [bytes.slice(0, roll(bytes.length))];
    case 3: {
      const parts = splitGguf(bytes, 2 + roll(3)), at = roll(parts.length);
      if (roll(4) === 0) return parts.filter((_, i) => i !== at);
      return parts.map((part, i) => i === at ? flipped(part, Math.min(part.length, 400), roll) : part);
    }
    default:
      return [rebuilt(spec, roll)];
  }
}

/** Bytes that a file's weights may be to be loaded here: more would measure the machine. */
const MOST_BYTES = 1 << 22;

/** What opening a model does with a file before and, where `runs`, after its weights are read. */
async function opened(parts: readonly Bytes[], runs: boolean): Promise<void> {
  const sources = parts.map((part) => new CountingSource(part));
  const file = parts.length === 1 ? await openGguf(sources[0]) : (await openGgufSources(sources)).file;
  try {
    tokenizerOf(file.metadata);
    const config = await configOf(file);
    if (!runs || file.size > MOST_BYTES) return;
    await using dense = await pickDense(file, config, { dense: "wasm" });
    const ids = [0, config.vocabulary - 1], hidden = dense.embed(ids), last = config.layers - 1;
    const qkv = await dense.qkv(last, hidden, 2), { attention } = inputsOf(config, last);
    await dense.finish(last, hidden, qkv.slice(0, 2 * attention), 2, ids);
    await dense.logits(hidden, 2);
  } finally {
    await file.close();
  }
}

/** Opens bad models; every `runEach`-th that is taken runs a token on our kernels. */
export async function fuzzModels(
  { inputs, seed, runEach }: { readonly inputs: number; readonly seed: number; readonly runEach: number },
): Promise<FuzzFigures & { readonly codes: ReadonlyMap<string, number> }> {
  const roll = dice(seed), all = await bases(), failures: string[] = [], codes = new Map<string, number>();
  let refused = 0, taken = 0, slowestMs = 0;
  for (let i = 0; i < inputs; i++) {
    const base = all[i % all.length], parts = badModel(base, roll), runs = roll(runEach) === 0;
    const start = performance.now();
    try {
      await opened(parts, runs);
      taken++;
    } catch (error) {
      const typed = error instanceof PalisadeError && error.where !== "";
      if (typed) refused++;
      else if (failures.length < 5) failures.push(`input ${i}, ${base.name}: ${(error as Error).stack}`);
      if (typed) codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
    }
    slowestMs = Math.max(slowestMs, performance.now() - start);
  }
  return { inputs, refused, taken, failures, slowestMs, codes };
}
