/**
 * The architectures: one entry each, with its tensors and what it does with them. Everything else follows from the entry:
 * which files are taken (`model/file/gguf/config.ts`), which weights are read, and what the dense engines run.
 *
 * A new architecture is an entry here, its tokenizer aside, and a tiny model of it among the tests.
 */
import type { Activation, Operation } from "../core/dense/operations.ts";
import { layerShape, type ModelShape, sourceOf } from "../core/shape.ts";

/** Some rows of a matrix in the file. */
export interface TensorRows {
  /** The tensor's name without its `.weight`. */
  readonly tensor: string;
  /** First row. */
  readonly first: number;
  readonly rows: number;
  /** Whether a bias, `tensor.bias`, is added to the product. */
  readonly bias: boolean;
}

/** Gains by the whole name of their tensor; weights as rows of matrices, one below the other. */
export type DenseOperation = Operation<string, readonly TensorRows[]>;

/** A layer, cut at attention. */
export interface LayerOperations {
  /**
   * From `hidden` to q, k and v side by side, `(heads + 2·kvHeads)·headDim`, before rotation; for a layer that convolves
   * as `ModelShape.convolved` has it, and for one that looks at another's rows q alone.
   */
  readonly project: readonly DenseOperation[];
  /**
   * From `hidden`, as before, and `attention`, `heads·headDim`, to the next hidden state; with {@link DecoderOperations.perLayer}
   * also from `embedded`, the token's embedding, and `perLayer`, its row of the layer.
   */
  readonly finish: readonly DenseOperation[];
}

/** A table with a row of `layers · width` for each token: `width` for each layer. */
export interface PerLayer {
  /** The tensor's name without its `.weight`. */
  readonly tensor: string;
  readonly width: number;
  /** Factor on them. */
  readonly scale: number;
}

/** A decoder without its attention. */
export interface DecoderOperations {
  /** Factor on the token embeddings. */
  readonly embeddingScale: number;
  /** Embeddings of a token that each layer gets for itself; absent: none. */
  readonly perLayer?: PerLayer;
  readonly layers: readonly LayerOperations[];
  /** From the last `hidden` to the logits. */
  readonly head: readonly DenseOperation[];
}

/** What an entry may ask of a model. */
export interface Dimensions extends ModelShape {
  readonly width: number;
  readonly feedForward: number;
  readonly vocabulary: number;
  /** True when the file has no output head of its own, and the embeddings serve. */
  readonly tiedHead: boolean;
  /** What the file says for the entry's {@link Architecture.settings}; a key that it lacks is absent. */
  readonly settings: Readonly<Record<string, number>>;
  /** Whether each layer convolves instead of attending, `[layers]`; absent: none does. */
  readonly convolves?: readonly boolean[];
  /** The feed-forward part of each layer where they differ, `[layers]`. */
  readonly feedForwards?: readonly number[];
  /** The numbers of {@link Architecture.factor}, `[layers]`. */
  readonly factors?: readonly number[];
  /** Tokens that a convolution takes. */
  readonly taps?: number;
  /** Whether the file has a tensor, for biases that some models have and some don't. */
  readonly has: (tensor: string) => boolean;
}

/** One architecture: what its files hold, and the operations of its layers. */
export interface Architecture {
  /** As in `general.architecture`. */
  readonly name: string;
  /** How the pairs of RoPE lie in the q and k rows of its files. */
  readonly pairs: "interleaved" | "half";
  /** Tensors that its files may have or not, and that no operation names. */
  readonly optional?: readonly string[];
  /** Keys of numbers that its files may hold beside those of all, without the architecture's name in front. */
  readonly settings?: readonly string[];
  /** What layer `index` turns queries and keys by; absent: the file's rotation in every layer. */
  rotation?(index: number): "rope" | "none";
  /**
   * Every `pattern`-th layer, or as the file has it, looks at everything, the others back over the file's window, where
   * they turn by a base of their own, or as all do: `turn`.
   */
  readonly window?: { readonly pattern: number; readonly turn: "own" | "as all" };
  /**
   * Whether window layers may have KV heads and widths of their own (`…_swa`), layers other feed-forward widths, and the
   * last `attention.shared_kv_layers` look at the keys and values of the last one of their kind before them.
   */
  readonly mixed?: true;
  /** A tensor of one number that the entry reads for layer `index`, where the file has it. */
  factor?(index: number): string;
  /** Embeddings of each layer's own. */
  perLayer?(model: Dimensions): PerLayer | undefined;
  /** Whole tensors of which layers read parts: names and shapes as stored. */
  tensors?(model: Dimensions): readonly (readonly [name: string, shape: readonly number[]])[];
  /**
   * Layers without KV heads convolve: the key of how many tokens each takes, without the architecture's name, and the
   * tensor of its taps, `[taps, width]` as stored.
   */
  readonly convolution?: { readonly taps: string; readonly tensor: (index: number) => string };
  /** Of the logits that layer `index` gives to nothing, `[heads]` (`AttentionShape.nullLogits`); absent: there are none. */
  nullLogits?(index: number): string;
  /** Whether YaRN's borders between pairs stay fractions; absent: whole pairs, outwards. */
  readonly fractionalYarn?: true;
  /** True where a window that the file names hides nothing. */
  readonly ignoresWindow?: boolean;
  /** Factor on the token embeddings; absent: 1. */
  embeddingScale?(model: Dimensions): number;
  /** Layer `index`. */
  layer(model: Dimensions, index: number): LayerOperations;
  /** From the last layer to the logits; absent: a norm and the output head. */
  head?(model: Dimensions): readonly DenseOperation[];
}

/** What files with experts say of them. */
const EXPERT_SETTINGS = ["expert_count", "expert_used_count", "expert_feed_forward_length"];

const LIST: readonly Architecture[] = [
  {
    name: "llama",
    pairs: "interleaved",
    // Llama 3's divisors of the frequencies.
    optional: ["rope_freqs.weight"],
    layer: (model, index) => layerOf(model, `blk.${index}`),
  },
  {
    name: "qwen2",
    pairs: "half",
    layer: (model, index) => layerOf(model, `blk.${index}`, { bias: true }),
  },
  {
    name: "qwen3",
    pairs: "half",
    layer: (model, index) => {
      const block = `blk.${index}`, { heads, kvHeads } = model, { project, finish } = layerOf(model, block);
      return {
        project: [
          ...project,
          headNorm("qkv", model, 0, heads, `${block}.attn_q_norm`, "qNormed"),
          headNorm("qNormed", model, heads, kvHeads, `${block}.attn_k_norm`, "qkNormed"),
        ],
        finish,
      };
    },
  },
  {
    name: "qwen3moe",
    pairs: "half",
    settings: EXPERT_SETTINGS,
    layer: (model, index) => {
      const block = `blk.${index}`, { heads, kvHeads } = model, { project, finish } = layerOf(model, block);
      return {
        project: [
          ...project,
          headNorm("qkv", model, 0, heads, `${block}.attn_q_norm`, "qNormed"),
          headNorm("qNormed", model, heads, kvHeads, `${block}.attn_k_norm`, "qkNormed"),
        ],
        finish: withExperts(finish, model, block),
      };
    },
  },
  {
    name: "gpt-oss",
    pairs: "half",
    settings: EXPERT_SETTINGS,
    window: { pattern: 2, turn: "as all" },
    nullLogits: (index) => `blk.${index}.attn_sinks.weight`,
    // As trained: llama.cpp rounds the borders.
    fractionalYarn: true,
    layer: (model, index) => {
      const block = `blk.${index}`, { project, finish } = layerOf(model, block, { bias: true });
      const named = finish.map((operation): DenseOperation =>
        operation.op === "norm" ? { ...operation, gains: `${block}.post_attention_norm.weight` } : operation
      );
      return { project, finish: withExperts(named, model, block, { bias: true, activation: "limited" }) };
    },
  },
  {
    name: "lfm2",
    pairs: "half",
    convolution: { taps: "shortconv.l_cache", tensor: (index) => `blk.${index}.shortconv.conv.weight` },
    layer: (model, index) => {
      const block = `blk.${index}`, { heads, kvHeads, width } = model, { project, finish } = layerOf(model, block);
      if (model.convolves?.[index]) {
        const [norm] = project, [, ...rest] = finish;
        return {
          project: [
            norm,
            multiply("x", convolvedRows(model, `${block}.shortconv.in_proj`), "gated"),
            { op: "couple", from: "gated", to: "qkv", first: width, width },
          ],
          finish: [multiply("attention", [all(`${block}.shortconv.out_proj`, width)], "projected"), ...rest],
        };
      }
      return {
        project: [
          ...project,
          headNorm("qkv", model, 0, heads, `${block}.attn_q_norm`, "qNormed"),
          headNorm("qNormed", model, heads, kvHeads, `${block}.attn_k_norm`, "qkNormed"),
        ],
        finish,
      };
    },
    head: (model) => {
      const [, output] = plainHead(model);
      return [norm("hidden", "token_embd_norm", "x"), output];
    },
  },
  {
    name: "granite",
    pairs: "interleaved",
    optional: ["rope_freqs.weight"],
    settings: ["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
    embeddingScale: ({ settings }) => settings.embedding_scale || 1,
    layer: (model, index) => {
      const { width, settings: { residual_scale: residual = 1 } } = model;
      const { project, finish } = layerOf(model, `blk.${index}`);
      return {
        project: [...project, queryScale("qkv", model, model.settings["attention.scale"], "scaled")],
        finish: finish.flatMap((operation) => {
          if (operation.op !== "add") return [operation];
          const [before, part] = operation.from, less = `${part}Scaled`;
          return [scale(part, residual, 0, width, less), add(before, less, operation.to)];
        }),
      };
    },
    head: (model) => {
      const { vocabulary, settings: { logit_scale: divisor = 1 } } = model;
      return [...plainHead(model), scale("logits", 1 / divisor, 0, vocabulary, "scaled")];
    },
  },
  {
    name: "phi3",
    pairs: "half",
    optional: ["rope_factors_long.weight", "rope_factors_short.weight"],
    ignoresWindow: true,
    layer: (model, index) => {
      const block = `blk.${index}`, { heads, kvHeads, headDim, feedForward } = model;
      const { project: [norm], finish } = layerOf(model, block), up = `${block}.ffn_up`;
      return {
        project: [norm, multiply("x", [all(`${block}.attn_qkv`, (heads + 2 * kvHeads) * headDim)], "qkv")],
        finish: finish.map((operation) => {
          if (operation.to !== "gateUp") return operation;
          return multiply("x", [all(up, feedForward), { ...all(up, feedForward), first: feedForward }], "gateUp");
        }),
      };
    },
  },
  {
    name: "smollm3",
    pairs: "interleaved",
    optional: ["rope_freqs.weight"],
    layer: (model, index) => layerOf(model, `blk.${index}`),
    // Every fourth layer turns nothing, and no key of its files says so.
    rotation: (index) => (index + 1) % 4 === 0 ? "none" : "rope",
  },
  {
    name: "mistral3",
    pairs: "interleaved",
    optional: ["rope_freqs.weight"],
    layer: (model, index) => layerOf(model, `blk.${index}`),
  },
  {
    name: "gemma3",
    pairs: "half",
    window: { pattern: 6, turn: "own" },
    embeddingScale: ({ width }) => Math.sqrt(width),
    layer: (model, index) => {
      const block = `blk.${index}`, { width, heads, kvHeads, feedForward, layers } = model;
      // The largest of the family, 27B, goes by the width a head would have if heads shared the model's.
      const scaled = layers === 62 ? [queryScale("qkNormed", model, (width / heads) ** -0.5, "scaled")] : [];
      return {
        project: [
          ...layerOf(model, block).project,
          headNorm("qkv", model, 0, heads, `${block}.attn_q_norm`, "qNormed"),
          headNorm("qNormed", model, heads, kvHeads, `${block}.attn_k_norm`, "qkNormed"),
          ...scaled,
        ],
        finish: [
          multiply("attention", [all(`${block}.attn_output`, width)], "projected"),
          norm("projected", `${block}.post_attention_norm`, "attended"),
          add("hidden", "attended", "residual"),
          norm("residual", `${block}.ffn_norm`, "x"),
          multiply("x", [all(`${block}.ffn_gate`, feedForward), all(`${block}.ffn_up`, feedForward)], "gateUp"),
          gate("gateUp", "gelu", "gated"),
          multiply("gated", [all(`${block}.ffn_down`, width)], "down"),
          norm("down", `${block}.post_ffw_norm`, "fed"),
          add("residual", "fed", "next"),
        ],
      };
    },
  },
  {
    name: "gemma4",
    pairs: "half",
    window: { pattern: 6, turn: "own" },
    mixed: true,
    // Divisors of global layers: 10³⁰ for pairs that don't turn.
    optional: ["rope_freqs.weight"],
    settings: ["final_logit_softcapping", "embedding_length_per_layer_input"],
    embeddingScale: ({ width }) => Math.sqrt(width),
    factor: (index) => `blk.${index}.layer_output_scale.weight`,
    perLayer: ({ settings: { embedding_length_per_layer_input: width = 0 } }) =>
      width > 0 ? { tensor: "per_layer_token_embd", width, scale: Math.sqrt(width) } : undefined,
    tensors: ({ layers, width, vocabulary, settings: { embedding_length_per_layer_input: each = 0 } }) =>
      each === 0 ? [] : [
        ["per_layer_token_embd.weight", [each * layers, vocabulary]],
        ["per_layer_model_proj.weight", [width, each * layers]],
      ],
    layer: (model, index) => ({ project: gemma4Projections(model, index), finish: gemma4Finish(model, index) }),
    head: (model) => {
      const { settings: { final_logit_softcapping: cap = 0 } } = model, head = plainHead(model);
      return cap === 0 ? head : [...head, { op: "cap", from: "logits", to: "capped", cap }];
    },
  },
];

/** The architectures by name. A program may add to them. */
export const ARCHITECTURES: Map<string, Architecture> = new Map(LIST.map((entry) => [entry.name, entry]));

/** All operations of a model. */
export function decoderOf(entry: Architecture, model: Dimensions): DecoderOperations {
  return {
    embeddingScale: entry.embeddingScale?.(model) ?? 1,
    perLayer: entry.perLayer?.(model),
    layers: Array.from({ length: model.layers }, (_, index) => entry.layer(model, index)),
    head: headOf(entry, model),
  };
}

/** From the last layer to the logits. */
export function headOf(entry: Architecture, model: Dimensions): readonly DenseOperation[] {
  return entry.head?.(model) ?? plainHead(model);
}

/** Widths of the values that a layer's lists begin with; the head begins with the first of them. */
export function inputsOf(
  model: Omit<Dimensions, "feedForward" | "vocabulary" | "tiedHead" | "settings" | "has">,
  layer = 0,
  perLayer?: PerLayer,
) {
  const { width } = model, { heads, headDim } = model.convolved?.[layer] ? model : layerShape(model, layer);
  return { hidden: width, attention: heads * headDim, ...(perLayer && { embedded: width, perLayer: perLayer.width }) };
}

/**
 * Pre-norm attention and a SiLU-gated feed-forward part, as most have it; `bias`: on q, k and v always, else where the
 * file has them.
 */
function layerOf(model: Dimensions, block: string, { bias = model.has(`${block}.attn_q.bias`) } = {}): LayerOperations {
  const { width, feedForward } = model;
  return {
    project: [
      norm("hidden", `${block}.attn_norm`, "x"),
      multiply("x", attentionRows(model, block, bias), "qkv"),
    ],
    finish: [
      multiply("attention", [outputRows(model, block)], "projected"),
      add("hidden", "projected", "residual"),
      norm("residual", `${block}.ffn_norm`, "x"),
      multiply("x", [all(`${block}.ffn_gate`, feedForward), all(`${block}.ffn_up`, feedForward)], "gateUp"),
      gate("gateUp", "silu", "gated"),
      multiply("gated", [all(`${block}.ffn_down`, width)], "fed"),
      add("residual", "fed", "next"),
    ],
  };
}

/** Queries, keys and values, each head normed, values without gains; attention divides by a root that they make up for. */
function gemma4Projections(model: Dimensions, index: number): DenseOperation[] {
  const block = `blk.${index}`, shape = { ...model, ...layerShape(model, index) }, { heads, kvHeads, headDim } = shape;
  const queries = all(`${block}.attn_q`, heads * headDim), keys = all(`${block}.attn_k`, kvHeads * headDim);
  const begin = norm("hidden", `${block}.attn_norm`, "x"), own = sourceOf(model, index) === index;
  const queryNorm = headNorm("qkv", shape, 0, heads, `${block}.attn_q_norm`, "qNormed");
  if (!own) return [begin, multiply("x", [queries], "qkv"), queryNorm, queryScale("qNormed", shape, 1, "scaled")];
  const values = model.has(`${block}.attn_v.weight`) ? all(`${block}.attn_v`, kvHeads * headDim) : keys;
  return [
    begin,
    multiply("x", [queries, keys, values], "qkv"),
    queryNorm,
    headNorm("qNormed", shape, heads, kvHeads, `${block}.attn_k_norm`, "qkNormed"),
    {
      op: "unitNorm",
      from: "qkNormed",
      to: "normed",
      first: (heads + kvHeads) * headDim,
      heads: kvHeads,
      width: headDim,
    },
    queryScale("normed", shape, 1, "scaled"),
  ];
}

/** Attention's and the feed-forward part, each normed behind, what the layer makes of the token alone, and its factor. */
function gemma4Finish(model: Dimensions, index: number): DenseOperation[] {
  const block = `blk.${index}`, { width, settings, factors, feedForwards, feedForward } = model;
  const inner = feedForwards?.[index] ?? feedForward, each = settings.embedding_length_per_layer_input ?? 0;
  const factor = factors?.[index] ?? 1;
  const operations: DenseOperation[] = [
    multiply("attention", [all(`${block}.attn_output`, width)], "projected"),
    norm("projected", `${block}.post_attention_norm`, "attended"),
    add("hidden", "attended", "residual"),
    norm("residual", `${block}.ffn_norm`, "x"),
    multiply("x", [all(`${block}.ffn_gate`, inner), all(`${block}.ffn_up`, inner)], "gateUp"),
    gate("gateUp", "gelu", "gated"),
    multiply("gated", [all(`${block}.ffn_down`, width)], "down"),
    norm("down", `${block}.post_ffw_norm`, "fed"),
    add("residual", "fed", "next"),
  ];
  if (each > 0) {
    const rows = { ...all("per_layer_model_proj", each), first: index * each };
    operations.push(
      multiply("embedded", [rows], "fromEmbedding"),
      scale("fromEmbedding", width ** -0.5, 0, each, "fromScaled"),
      norm("fromScaled", "per_layer_proj_norm", "fromNormed"),
      add("fromNormed", "perLayer", "both"),
      scale("both", Math.SQRT1_2, 0, each, "token"),
      multiply("next", [all(`${block}.inp_gate`, each)], "inner"),
      { op: "gateBy", from: "inner", by: "token", to: "innerGated", activation: "gelu" },
      multiply("innerGated", [all(`${block}.proj`, width)], "outer"),
      norm("outer", `${block}.post_norm`, "outerNormed"),
      add("next", "outerNormed", "last"),
    );
  }
  const { to } = operations[operations.length - 1];
  return factor === 1 ? operations : [...operations, scale(to, factor, 0, width, "factored")];
}

function plainHead({ tiedHead, vocabulary }: Dimensions): readonly DenseOperation[] {
  return [
    norm("hidden", "output_norm", "x"),
    multiply("x", [all(tiedHead ? "token_embd" : "output", vocabulary)], "logits"),
  ];
}

/** Query, key and value rows. */
function attentionRows({ heads, kvHeads, headDim }: Dimensions, block: string, bias: boolean): TensorRows[] {
  const keys = kvHeads * headDim;
  return [
    { ...all(`${block}.attn_q`, heads * headDim), bias },
    { ...all(`${block}.attn_k`, keys), bias },
    { ...all(`${block}.attn_v`, keys), bias },
  ];
}

/**
 * Of a projection that holds what lets inputs in, what lets results out, and the inputs, one below the other: results' gates
 * first, then the other two, channels of even blocks before those of odd ones, as keys and values hold them.
 */
function convolvedRows({ width, kvHeads }: Dimensions, tensor: string): TensorRows[] {
  const block = width / 2 / kvHeads, rows = (first: number, rows: number) => ({ tensor, first, rows, bias: false });
  const blocks = (part: number) =>
    [0, 1].flatMap((odd) =>
      Array.from({ length: kvHeads }, (_, g) => rows(part * width + (2 * g + odd) * block, block))
    );
  return [rows(width, width), ...blocks(0), ...blocks(2)];
}

/** Attention's output projection. */
function outputRows({ width, has }: Dimensions, block: string): TensorRows {
  return { ...all(`${block}.attn_output`, width), bias: has(`${block}.attn_output.bias`) };
}

/** A whole matrix. */
function all(tensor: string, rows: number): TensorRows {
  return { tensor, first: 0, rows, bias: false };
}

function norm(from: string, tensor: string, to: string): DenseOperation {
  return { op: "norm", from, to, gains: `${tensor}.weight` };
}

function multiply(from: string, weights: readonly TensorRows[], to: string): DenseOperation {
  return { op: "multiply", from, to, weights, rows: weights.reduce((sum, { rows }) => sum + rows, 0) };
}

/** Of `heads` heads from the `first` one on, q's before k's. */
function headNorm(
  from: string,
  { headDim }: Dimensions,
  first: number,
  heads: number,
  tensor: string,
  to: string,
): DenseOperation {
  return { op: "headNorm", from, to, gains: `${tensor}.weight`, first: first * headDim, heads, width: headDim };
}

/** Queries for attention that divides by the root of the head's width, where the model scales by `factor`, 0 for none. */
function queryScale(from: string, { heads, headDim }: Dimensions, factor = 0, to: string): DenseOperation {
  return scale(from, factor === 0 ? 1 : factor * Math.sqrt(headDim), 0, heads * headDim, to);
}

function scale(from: string, factor: number, first: number, width: number, to: string): DenseOperation {
  return { op: "scale", from, to, factor, first, width };
}

/** A layer's feed-forward part by the experts that a token is sent to. */
function withExperts(
  finish: readonly DenseOperation[],
  { width, settings, feedForward }: Dimensions,
  block: string,
  { bias = false, activation = "silu" as Activation } = {},
): DenseOperation[] {
  const { expert_count: experts = 1, expert_used_count: used = 1 } = settings;
  const inner = settings.expert_feed_forward_length ?? feedForward, chosen = "chosen";
  const stack = (names: readonly string[], rows: number): TensorRows[][] =>
    Array.from({ length: experts }, (_, expert) => {
      return names.map((name) => ({ tensor: `${block}.ffn_${name}_exps`, first: expert * rows, rows, bias }));
    });
  const before = finish.slice(0, finish.findIndex(({ to }) => to === "gateUp"));
  return [
    ...before,
    multiply("x", [{ ...all(`${block}.ffn_gate_inp`, experts), bias }], "router"),
    { op: "choose", from: "router", to: chosen, used },
    {
      op: "expand",
      from: "x",
      chosen,
      to: "gateUp",
      used,
      parts: 2,
      rows: inner,
      weights: stack(["gate", "up"], inner),
    },
    gate("gateUp", activation, "gated"),
    { op: "collect", from: "gated", chosen, to: "fed", used, rows: width, weights: stack(["down"], width) },
    add("residual", "fed", "next"),
  ];
}

function gate(from: string, activation: Activation, to: string): DenseOperation {
  return { op: "gate", from, to, activation };
}

function add(a: string, b: string, to: string): DenseOperation {
  return { op: "add", from: [a, b], to };
}
