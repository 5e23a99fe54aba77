/**
 * Tiny llama files whose answer is known: a fixed chain of tokens. Embeddings are one-hot, the blocks add nothing, and
 * the output matrix is a table of next tokens, so the model says `chain` whatever it is asked.
 *
 * ```ts
 * chainModel({ chain: ["\n", "42", "<|im_end|>"], template: CHATML }); // answers 42 and stops
 * ```
 *
 * The vocabulary is the 256 bytes in GPT-2's alphabet, then the special tokens; there are no merges.
 */

/** A token of the vocabulary: its text (bytes for a name that isn't UTF-8) and GGUF's type (1 normal, 3 control, …). */
export type ChainToken = readonly [text: string | Uint8Array, type: number];

/** More metadata, as GGUF stores it. */
export type ChainEntry =
  | readonly [key: string, type: "u32" | "f32", value: number]
  | readonly [key: string, type: "bool", value: boolean]
  | readonly [key: string, type: "str", value: string | Uint8Array];

export interface ChainOptions {
  /** What the model says, from the token before its first word on: special tokens by name, other texts byte by byte. */
  readonly chain: readonly string[];
  readonly special?: readonly ChainToken[];
  readonly template?: string;
  /** The end token by its text. Default `<|endoftext|>`. */
  readonly eos?: string;
  readonly eosId?: number;
  readonly extra?: readonly ChainEntry[];
  /** Changes or adds tokens, e.g. unused ones. */
  readonly mutate?: (tokens: (string | Uint8Array)[], types: number[]) => void;
  /** Trained context in tokens. Default 512. */
  readonly context?: number;
  /** Default 1. */
  readonly layers?: number;
}

export const CHATML =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/** Markers of chatml as control tokens, and GPT-2's end. */
export const CHATML_SPECIAL: readonly ChainToken[] = [["<|im_start|>", 3], ["<|im_end|>", 3], ["<|endoftext|>", 3]];

const WIDTH = 320, HEADS = 2, KV_HEADS = 1, HEAD_DIM = 8, HIDDEN = 32;

/** The bytes of the GGUF file. */
export function chainModel(options: ChainOptions): Uint8Array<ArrayBuffer> {
  const special = options.special ?? CHATML_SPECIAL;
  const tokens: (string | Uint8Array)[] = [...ALPHABET, ...special.map(([text]) => text)];
  const types = [...ALPHABET.map(() => 1), ...special.map(([, type]) => type)];
  options.mutate?.(tokens, types);
  if (tokens.length > WIDTH) throw new RangeError(`chainModel() has room for ${WIDTH} tokens, not ${tokens.length}`);
  const tensors = tensorsOf(tokens, options);
  const metadata = metadataOf(tokens, types, options);
  const file = new Bytes();
  file.add(ascii("GGUF"), u32(3), u64(tensors.length), u64(metadata.length), ...metadata);
  let offset = 0;
  for (const { name, shape, values } of tensors) {
    file.add(text(name), u32(shape.length), ...shape.map(u64), u32(0), u64(offset));
    offset += padded(4 * values.length);
  }
  file.pad();
  for (const { values } of tensors) {
    file.add(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    file.pad();
  }
  return file.whole();
}

/** GPT-2's printable stand-ins for the 256 bytes, in the order of the bytes. */
const ALPHABET: readonly string[] = (() => {
  let next = 0x100;
  const printable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();

interface Tensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly values: Float32Array<ArrayBuffer>;
}

function tensorsOf(tokens: readonly (string | Uint8Array)[], { chain, layers = 1 }: ChainOptions): Tensor[] {
  const count = tokens.length, sequence = chainIds(tokens, chain);
  const next = new Map<number, number>();
  sequence.slice(1).forEach((to, i) => next.has(sequence[i]) || next.set(sequence[i], to));
  const embedding = new Float32Array(count * WIDTH), output = new Float32Array(count * WIDTH);
  for (let id = 0; id < count; id++) {
    embedding[id * WIDTH + id] = 1;
    output[(next.get(id) ?? sequence[1] ?? 0) * WIDTH + id] = 1;
  }
  return [
    { name: "token_embd.weight", shape: [WIDTH, count], values: embedding },
    { name: "output_norm.weight", shape: [WIDTH], values: new Float32Array(WIDTH).fill(1) },
    { name: "output.weight", shape: [WIDTH, count], values: output },
    ...Array.from({ length: layers }, (_, layer) => blockOf(`blk.${layer}.`)).flat(),
  ];
}

/** Queries, keys and values are small numbers, so that policies have something to choose by; nothing comes of them. */
function blockOf(prefix: string): Tensor[] {
  const small = (columns: number) =>
    Float32Array.from({ length: WIDTH * columns }, (_, i) => (i * 7919 % 97 - 48) / 480);
  const none = (rows: number, columns: number) => new Float32Array(rows * columns);
  const ones = () => new Float32Array(WIDTH).fill(1);
  const tensor = (name: string, shape: number[], values: Float32Array<ArrayBuffer>) => ({
    name: `${prefix}${name}.weight`,
    shape,
    values,
  });
  return [
    tensor("attn_norm", [WIDTH], ones()),
    tensor("attn_q", [WIDTH, HEADS * HEAD_DIM], small(HEADS * HEAD_DIM)),
    tensor("attn_k", [WIDTH, KV_HEADS * HEAD_DIM], small(KV_HEADS * HEAD_DIM)),
    tensor("attn_v", [WIDTH, KV_HEADS * HEAD_DIM], small(KV_HEADS * HEAD_DIM)),
    tensor("attn_output", [HEADS * HEAD_DIM, WIDTH], none(HEADS * HEAD_DIM, WIDTH)),
    tensor("ffn_norm", [WIDTH], ones()),
    tensor("ffn_gate", [WIDTH, HIDDEN], none(WIDTH, HIDDEN)),
    tensor("ffn_up", [WIDTH, HIDDEN], none(WIDTH, HIDDEN)),
    tensor("ffn_down", [HIDDEN, WIDTH], none(HIDDEN, WIDTH)),
  ];
}

function chainIds(tokens: readonly (string | Uint8Array)[], chain: readonly string[]): number[] {
  return chain.flatMap((part) => {
    const id = part.length > 1 ? tokens.indexOf(part) : -1;
    return id >= 0 ? [id] : [...ascii(part)].map((byte) => tokens.indexOf(ALPHABET[byte]));
  });
}

function metadataOf(tokens: readonly (string | Uint8Array)[], types: readonly number[], options: ChainOptions) {
  const { template, eos = "<|endoftext|>", eosId = tokens.indexOf(eos), extra = [], context = 512, layers = 1 } =
    options;
  const strings = (key: string, items: readonly (string | Uint8Array)[]) =>
    join(text(key), u32(9), u32(8), u64(items.length), ...items.map(text));
  const i32s = (key: string, items: readonly number[]) =>
    join(text(key), u32(9), u32(5), u64(items.length), ...items.map(u32));
  return [
    entry(["general.architecture", "str", "llama"]),
    entry(["general.name", "str", "tiny chain"]),
    entry(["llama.block_count", "u32", layers]),
    entry(["llama.embedding_length", "u32", WIDTH]),
    entry(["llama.context_length", "u32", context]),
    entry(["llama.feed_forward_length", "u32", HIDDEN]),
    entry(["llama.attention.head_count", "u32", HEADS]),
    entry(["llama.attention.head_count_kv", "u32", KV_HEADS]),
    entry(["llama.attention.key_length", "u32", HEAD_DIM]),
    entry(["llama.attention.value_length", "u32", HEAD_DIM]),
    entry(["llama.attention.layer_norm_rms_epsilon", "f32", 1e-5]),
    entry(["tokenizer.ggml.model", "str", "gpt2"]),
    entry(["tokenizer.ggml.pre", "str", "gpt-2"]),
    strings("tokenizer.ggml.tokens", tokens),
    i32s("tokenizer.ggml.token_type", types),
    strings("tokenizer.ggml.merges", []),
    entry(["tokenizer.ggml.eos_token_id", "u32", eosId]),
    entry(["tokenizer.ggml.add_bos_token", "bool", false]),
    ...(template === undefined ? [] : [entry(["tokenizer.chat_template", "str", template])]),
    ...extra.map(entry),
  ];
}

function entry([key, type, value]: ChainEntry): Uint8Array {
  switch (type) {
    case "u32":
      return join(text(key), u32(4), u32(value));
    case "f32":
      return join(text(key), u32(6), new Uint8Array(Float32Array.of(value).buffer));
    case "bool":
      return join(text(key), u32(7), Uint8Array.of(value ? 1 : 0));
    case "str":
      return join(text(key), u32(8), text(value));
    default:
      throw new TypeError(`Unknown type ${type satisfies never}`);
  }
}

function ascii(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

/** Length and bytes. */
function text(value: string | Uint8Array): Uint8Array {
  const bytes = typeof value === "string" ? ascii(value) : value;
  return join(u64(bytes.length), bytes);
}

function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function u64(value: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
}

function padded(bytes: number): number {
  return Math.ceil(bytes / 32) * 32;
}

function join(...parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Bytes();
  bytes.add(...parts);
  return bytes.whole();
}

/** Bytes one after another. */
class Bytes {
  readonly #parts: Uint8Array[] = [];
  #length = 0;

  add(...parts: readonly Uint8Array[]): void {
    for (const part of parts) {
      this.#parts.push(part);
      this.#length += part.length;
    }
  }

  pad(): void {
    this.add(new Uint8Array(padded(this.#length) - this.#length));
  }

  whole(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.#length);
    let at = 0;
    for (const part of this.#parts) {
      bytes.set(part, at);
      at += part.length;
    }
    return bytes;
  }
}
