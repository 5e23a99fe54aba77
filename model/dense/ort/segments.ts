/**
 * The ONNX graphs of a decoder cut at attention: `qkv` and `finish` of one layer, and `logits`. Layer i's `finish` and
 * layer i+1's `qkv` stay apart, because layer-major prefill keeps nothing but hidden states between layers.
 *
 * All activations are float32 `[T, width]`; T is free. Operators without a page in the ONNX standard are described in
 * microsoft/onnxruntime `docs/ContribOperators.md`.
 */
import type { ModelConfig } from "../../config.ts";
import { type BlockWeights, inHalves, withZeroPoints } from "./blocks.ts";
import type { Graph, Initializer, OnnxNode } from "./onnx.ts";

/** Weights of a linear layer `y = x·Wᵀ + bias`; W is `[outputs, inputs]`. */
export interface Linear {
  readonly inputs: number;
  readonly outputs: number;
  readonly weights: FloatWeights | BlockWeights;
  /** `[outputs]`. */
  readonly bias?: Float32Array;
}

/** Plain float32 weights. */
export interface FloatWeights {
  readonly kind: "float32";
  /** `[outputs, inputs]`. */
  readonly values: Float32Array;
}

/** A layer up to attention. */
export interface QkvWeights {
  /** Gains of the norm before attention, `[width]`. */
  readonly norm: Float32Array;
  /** Query, key and value rows in this order, in one or several layers. */
  readonly qkv: readonly Linear[];
}

/** A layer from attention on. */
export interface FinishWeights {
  readonly output: Linear;
  /** Gains of the norm before the feed-forward part, `[width]`. */
  readonly norm: Float32Array;
  /** Gate rows, then up rows, in one or two layers. */
  readonly gateUp: readonly Linear[];
  readonly down: Linear;
}

/** Final norm and output head. */
export interface HeadWeights {
  /** `[width]`. */
  readonly norm: Float32Array;
  readonly head: Linear;
}

/**
 * How block weights are multiplied, always in float32. `web`: onnxruntime-web unpacks a whole matrix at every call, so
 * what counts is few operators; offsets go into float zero points. `native`: the fast kernel takes 4 bits without zero
 * points; offsets times the sums of the input's blocks are added to the product, and 8 bits are multiplied as halves.
 */
export type LinearStyle = "web" | "native";

/** A stretch of graph: reads existing names, writes `result`. */
interface Piece {
  readonly nodes: readonly OnnxNode[];
  readonly initializers: readonly Initializer[];
  readonly result: string;
}

/** `hidden [T, width]` → norm → q, k and v in one product → `qkv [T, (heads + 2·kvHeads)·headDim]`. */
export function qkvGraph(config: ModelConfig, { norm: gains, qkv }: QkvWeights, style: LinearStyle): Graph {
  const norm = rmsNorm("norm", "hidden", gains, config.normEpsilon);
  const product = linears("qkv", norm.result, qkv, style);
  return graph(
    "qkv",
    { hidden: config.width },
    { [product.result]: qkv.reduce((sum, part) => sum + part.outputs, 0) },
    [norm, product],
  );
}

/**
 * `hidden [T, width]`, `attention [T, heads·headDim]` → output projection, residual, norm, SwiGLU, residual →
 * `next [T, width]`.
 */
export function finishGraph(config: ModelConfig, layer: FinishWeights, style: LinearStyle): Graph {
  const output = linear("output", "attention", layer.output, style);
  const norm = residualNorm("norm", "hidden", output.result, layer.norm, config.normEpsilon);
  const gateUp = linears("gateUp", "norm", layer.gateUp, style);
  const gated = swiglu("gated", gateUp.result);
  const down = linear("down", gated.result, layer.down, style);
  const next: Piece = {
    nodes: [{ op: "Add", inputs: ["norm.sum", down.result], outputs: ["next"] }],
    initializers: [],
    result: "next",
  };
  const inputs = { hidden: config.width, attention: config.heads * config.headDim };
  return graph("finish", inputs, { next: config.width }, [output, norm, gateUp, gated, down, next]);
}

/** `hidden [T, width]` → final norm → head rows in `head` → `logits [T, head.outputs]`. */
export function logitsGraph(config: ModelConfig, { norm: gains, head }: HeadWeights, style: LinearStyle): Graph {
  const norm = rmsNorm("norm", "hidden", gains, config.normEpsilon);
  const product = linear("logits", norm.result, head, style);
  return graph("logits", { hidden: config.width }, { [product.result]: head.outputs }, [norm, product]);
}

function graph(
  name: string,
  inputs: Record<string, number>,
  outputs: Record<string, number>,
  pieces: readonly Piece[],
): Graph {
  return {
    name,
    inputs: Object.entries(inputs).map(([name, width]) => ({ name, width })),
    outputs: Object.entries(outputs).map(([name, width]) => ({ name, width })),
    nodes: pieces.flatMap((piece) => piece.nodes),
    initializers: pieces.flatMap((piece) => piece.initializers),
  };
}

/** `x · gain / sqrt(mean(x²) + epsilon)` per row. */
function rmsNorm(name: string, input: string, gains: Float32Array, epsilon: number): Piece {
  const gain = { name: `${name}.gain`, dims: [gains.length], data: gains };
  const attributes = { epsilon: { float: epsilon } };
  const node = { op: "SimplifiedLayerNormalization", inputs: [input, gain.name], outputs: [name], attributes };
  return { nodes: [node], initializers: [gain], result: name };
}

/** `name` = the norm of `a + b`, and `name.sum` = `a + b`. */
function residualNorm(name: string, a: string, b: string, gains: Float32Array, epsilon: number): Piece {
  const gain = { name: `${name}.gain`, dims: [gains.length], data: gains };
  const node: OnnxNode = {
    op: "SkipSimplifiedLayerNormalization",
    domain: "com.microsoft",
    inputs: [a, b, gain.name],
    outputs: [name, "", "", `${name}.sum`],
    attributes: { epsilon: { float: epsilon } },
  };
  return { nodes: [node], initializers: [gain], result: name };
}

/** `silu(gate) · up` of an input that holds both halves side by side. */
function swiglu(name: string, input: string): Piece {
  const halves = [`${name}.gate`, `${name}.up`];
  const split = { axis: { int: 1 }, num_outputs: { int: 2 } };
  // QuickGelu with alpha 1 is x·sigmoid(x), which is SiLU.
  const alpha = { alpha: { float: 1 } };
  const nodes: OnnxNode[] = [
    { op: "Split", inputs: [input], outputs: halves, attributes: split },
    { op: "QuickGelu", domain: "com.microsoft", inputs: [halves[0]], outputs: [`${name}.silu`], attributes: alpha },
    { op: "Mul", inputs: [`${name}.silu`, halves[1]], outputs: [name] },
  ];
  return { nodes, initializers: [], result: name };
}

/** Layers over the same input, their outputs side by side. */
function linears(name: string, input: string, layers: readonly Linear[], style: LinearStyle): Piece {
  if (layers.length === 1) return linear(name, input, layers[0], style);
  const pieces = layers.map((layer, i) => linear(`${name}.${i}`, input, layer, style));
  const inputs = pieces.map((piece) => piece.result);
  const concat: OnnxNode = { op: "Concat", inputs, outputs: [name], attributes: { axis: { int: 1 } } };
  return {
    nodes: [...pieces.flatMap((piece) => piece.nodes), concat],
    initializers: pieces.flatMap((piece) => piece.initializers),
    result: name,
  };
}

function linear(name: string, input: string, layer: Linear, style: LinearStyle): Piece {
  return layer.weights.kind === "float32"
    ? floatLinear(name, input, layer, layer.weights)
    : blockLinear(name, input, layer, layer.weights, style);
}

function floatLinear(name: string, input: string, layer: Linear, { values }: FloatWeights): Piece {
  const initializers: Initializer[] = [{ name: `${name}.weight`, dims: [layer.outputs, layer.inputs], data: values }];
  if (layer.bias) initializers.push({ name: `${name}.bias`, dims: [layer.outputs], data: layer.bias });
  const node = gemm(input, initializers.map((tensor) => tensor.name), name);
  return { nodes: [node], initializers, result: name };
}

function blockLinear(name: string, input: string, layer: Linear, weights: BlockWeights, style: LinearStyle): Piece {
  const pieces = style === "web"
    ? [blockProduct(`${name}.product`, input, layer.outputs, withZeroPoints(weights))]
    : nativeProduct(name, input, layer.outputs, weights);
  if (layer.bias) pieces.push(addBias(`${name}.biased`, pieces[pieces.length - 1].result, layer.bias));
  return {
    nodes: pieces.flatMap((piece) => piece.nodes),
    initializers: pieces.flatMap((piece) => piece.initializers),
    result: pieces[pieces.length - 1].result,
  };
}

function nativeProduct(name: string, input: string, outputs: number, weights: BlockWeights): Piece[] {
  const pieces: Piece[] = [];
  let factor = input;
  if (weights.bits === 8) {
    factor = `${name}.twice`;
    const node = { op: "Concat", inputs: [input, input], outputs: [factor], attributes: { axis: { int: 1 } } };
    pieces.push({ nodes: [node], initializers: [], result: factor });
  }
  const nibbles = weights.bits === 8 ? inHalves(weights, outputs) : weights;
  const product = blockProduct(`${name}.product`, factor, outputs, nibbles);
  pieces.push(product);
  if (nibbles.offsets) {
    pieces.push(offsetProduct(`${name}.offset`, input, product.result, outputs, weights.block, nibbles.offsets));
  }
  return pieces;
}

/** `x · (scale·(q − zero))ᵀ`. */
function blockProduct(
  name: string,
  input: string,
  outputs: number,
  weights: BlockWeights & { readonly zeroPoints?: Float32Array },
): Piece {
  const blocks = weights.scales.length / outputs;
  const packed = weights.block * weights.bits / 8;
  const initializers: Initializer[] = [
    { name: `${name}.quants`, dims: [outputs, blocks, packed], data: weights.quants },
    { name: `${name}.scales`, dims: [outputs, blocks], data: weights.scales },
  ];
  if (weights.zeroPoints) {
    initializers.push({ name: `${name}.zeros`, dims: [outputs, blocks], data: weights.zeroPoints });
  }
  const node: OnnxNode = {
    op: "MatMulNBits",
    domain: "com.microsoft",
    inputs: [input, ...initializers.map((tensor) => tensor.name)],
    outputs: [name],
    attributes: {
      K: { int: blocks * weights.block },
      N: { int: outputs },
      bits: { int: weights.bits },
      block_size: { int: weights.block },
      // 0 multiplies in float32; 4, which rounds the input to 8 bits, moves logits by up to 2.
      accuracy_level: { int: 0 },
    },
  };
  return { nodes: [node], initializers, result: name };
}

/** `base + (sum of each input block) · offsetsᵀ`. */
function offsetProduct(
  name: string,
  input: string,
  base: string,
  outputs: number,
  block: number,
  offsets: Float32Array,
): Piece {
  const blocks = offsets.length / outputs;
  const initializers: Initializer[] = [
    { name: `${name}.shape`, dims: [3], data: BigInt64Array.of(-1n, BigInt(blocks), BigInt(block)) },
    { name: `${name}.axis`, dims: [1], data: BigInt64Array.of(2n) },
    { name: `${name}.offsets`, dims: [outputs, blocks], data: offsets },
  ];
  const nodes: OnnxNode[] = [
    { op: "Reshape", inputs: [input, `${name}.shape`], outputs: [`${name}.blocks`] },
    {
      op: "ReduceSum",
      inputs: [`${name}.blocks`, `${name}.axis`],
      outputs: [`${name}.sums`],
      attributes: { keepdims: { int: 0 } },
    },
    gemm(`${name}.sums`, [`${name}.offsets`, base], name),
  ];
  return { nodes, initializers, result: name };
}

function addBias(name: string, input: string, bias: Float32Array): Piece {
  const tensor = { name: `${name}.bias`, dims: [bias.length], data: bias };
  return {
    nodes: [{ op: "Add", inputs: [input, tensor.name], outputs: [name] }],
    initializers: [tensor],
    result: name,
  };
}

/** `input · weightᵀ`, plus the addend when `operands` has a second name. */
function gemm(input: string, operands: readonly string[], output: string): OnnxNode {
  return { op: "Gemm", inputs: [input, ...operands], outputs: [output], attributes: { transB: { int: 1 } } };
}
