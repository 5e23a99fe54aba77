/**
 * The architectures: one entry each, with its tensors and what it does with them. Everything else follows from the entry:
 * which files are taken (`model/file/gguf/config.ts`), which weights are read, and what the dense engines run.
 *
 * A new architecture is an entry here, its tokenizer aside, and a tiny model of it among the tests.
 */
import type { Operation } from "../core/dense/operations.ts";
import type { ModelShape } from "../core/shape.ts";

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
  /** From `hidden` to q, k and v side by side, `(heads + 2·kvHeads)·headDim`, before rotation. */
  readonly project: readonly DenseOperation[];
  /** From `hidden`, as before, and `attention`, `heads·headDim`, to the next hidden state. */
  readonly finish: readonly DenseOperation[];
}

/** A decoder without its attention. */
export interface DecoderOperations {
  /** Factor on the token embeddings. */
  readonly embeddingScale: number;
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
}

export interface Architecture {
  /** As in `general.architecture`. */
  readonly name: string;
  /** How the pairs of RoPE lie in the q and k rows of its files. */
  readonly pairs: "interleaved" | "half";
  /** Tensors that its files may have or not, and that no operation names. */
  readonly optional?: readonly string[];
  /** Layer `index`. */
  layer(model: Dimensions, index: number): LayerOperations;
  /** From the last layer to the logits; absent: a norm and the output head. */
  head?(model: Dimensions): readonly DenseOperation[];
}

const LIST: readonly Architecture[] = [
  {
    name: "llama",
    pairs: "interleaved",
    // Llama 3's divisors of the frequencies.
    optional: ["rope_freqs.weight"],
    layer: (model, index) => layerOf(model, `blk.${index}`, { bias: false }),
  },
  {
    name: "qwen2",
    pairs: "half",
    layer: (model, index) => layerOf(model, `blk.${index}`, { bias: true }),
  },
];

/** The architectures by name. A program may add to them. */
export const ARCHITECTURES: Map<string, Architecture> = new Map(LIST.map((entry) => [entry.name, entry]));

/** All operations of a model. */
export function decoderOf(entry: Architecture, model: Dimensions): DecoderOperations {
  return {
    embeddingScale: 1,
    layers: Array.from({ length: model.layers }, (_, index) => entry.layer(model, index)),
    head: headOf(entry, model),
  };
}

/** From the last layer to the logits. */
export function headOf(entry: Architecture, model: Dimensions): readonly DenseOperation[] {
  return entry.head?.(model) ?? plainHead(model);
}

/** Widths of the values that lists begin with. */
export function inputsOf({ width, heads, headDim }: Pick<Dimensions, "width" | "heads" | "headDim">) {
  return { hidden: width, attention: heads * headDim };
}

/** Pre-norm attention and a SiLU-gated feed-forward part, as most have it; `bias`: on q, k and v. */
function layerOf(model: Dimensions, block: string, { bias }: { bias: boolean }): LayerOperations {
  const { width, feedForward } = model;
  return {
    project: [
      norm("hidden", `${block}.attn_norm`, "x"),
      multiply("x", attentionRows(model, block, bias), "qkv"),
    ],
    finish: [
      multiply("attention", [all(`${block}.attn_output`, width)], "projected"),
      add("hidden", "projected", "residual"),
      norm("residual", `${block}.ffn_norm`, "x"),
      multiply("x", [all(`${block}.ffn_gate`, feedForward), all(`${block}.ffn_up`, feedForward)], "gateUp"),
      gate("gateUp", "silu", "gated"),
      multiply("gated", [all(`${block}.ffn_down`, width)], "fed"),
      add("residual", "fed", "next"),
    ],
  };
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

function gate(from: string, activation: "silu" | "gelu", to: string): DenseOperation {
  return { op: "gate", from, to, activation };
}

function add(a: string, b: string, to: string): DenseOperation {
  return { op: "add", from: [a, b], to };
}
