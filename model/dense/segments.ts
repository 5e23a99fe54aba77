/**
 * The ONNX graphs of a decoder cut at attention: `qkv` and `finish` of one layer, and `logits`. Layer i's `finish` and
 * layer i+1's `qkv` stay apart, because layer-major prefill keeps nothing but hidden states between layers.
 *
 * All activations are float32 `[T, width]`; T is free. Operators without a page in the ONNX standard are described in
 * microsoft/onnxruntime `docs/ContribOperators.md`.
 */
import type { ModelConfig } from "../config.ts";
import type { Attribute, Graph, Initializer, OnnxNode } from "./onnx.ts";

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

/** Weights in blocks along the input: `w = scale·(q − zero) + offset`, where zero is 8 (4 bits) or 128 (8 bits). */
export interface BlockWeights {
  readonly kind: "blocks";
  readonly bits: 4 | 8;
  /** Weights per block. */
  readonly block: number;
  /** `[outputs, inputs / block, block·bits / 8]`; of two 4-bit values the earlier one is in the low half. */
  readonly quants: Uint8Array;
  /** `[outputs, inputs / block]`. */
  readonly scales: Float32Array;
  /** `[outputs, inputs / block]`; absent when all are 0. */
  readonly offsets?: Float32Array;
}

/** A layer up to attention. */
export interface QkvWeights {
  /** Gains of the norm before attention, `[width]`. */
  readonly norm: Float32Array;
  /** Query, key and value rows in this order. */
  readonly qkv: Linear;
}

/** A layer from attention on. */
export interface FinishWeights {
  readonly output: Linear;
  /** Gains of the norm before the feed-forward part, `[width]`. */
  readonly norm: Float32Array;
  /** Gate rows, then up rows. */
  readonly gateUp: Linear;
  readonly down: Linear;
}

/** Final norm and output head. */
export interface HeadWeights {
  /** `[width]`. */
  readonly norm: Float32Array;
  readonly head: Linear;
}

/** How block weights are multiplied. */
export interface LinearStyle {
  /**
   * Where a block's offset goes. `sums`: the sum of each input block times the offsets, added to the product, which
   * leaves the native 4-bit kernel usable. `zeroPoints`: into a float zero point, `zero − offset / scale`.
   */
  readonly offsets: "sums" | "zeroPoints";
  /** `accuracy_level` of MatMulNBits: 0 multiplies in float32, 4 rounds the input to 8 bits where the CPU can. */
  readonly accuracy: 0 | 4;
}

/** A stretch of graph: reads existing names, writes `result`. */
interface Piece {
  readonly nodes: readonly OnnxNode[];
  readonly initializers: readonly Initializer[];
  readonly result: string;
}

/** `hidden [T, width]` → norm → q, k and v in one product → `qkv [T, (heads + 2·kvHeads)·headDim]`. */
export function qkvGraph(config: ModelConfig, { norm: gains, qkv }: QkvWeights, style: LinearStyle): Graph {
  const norm = rmsNorm("norm", "hidden", gains, config.normEpsilon);
  const product = linear("qkv", norm.result, qkv, style);
  return graph("qkv", { hidden: config.width }, { [product.result]: qkv.outputs }, [norm, product]);
}

/**
 * `hidden [T, width]`, `attention [T, heads·headDim]` → output projection, residual, norm, SwiGLU, residual →
 * `next [T, width]`.
 */
export function finishGraph(config: ModelConfig, layer: FinishWeights, style: LinearStyle): Graph {
  const output = linear("output", "attention", layer.output, style);
  const norm = residualNorm("norm", "hidden", output.result, layer.norm, config.normEpsilon);
  const gateUp = linear("gateUp", "norm", layer.gateUp, style);
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
  const asZeroPoints = weights.offsets !== undefined && style.offsets === "zeroPoints";
  const product = asZeroPoints
    ? blockProduct(`${name}.product`, input, layer, withZeroPoints(weights), style.accuracy)
    : blockProduct(`${name}.product`, input, layer, weights, style.accuracy);
  const pieces = [product];
  if (weights.offsets && !asZeroPoints) {
    pieces.push(offsetProduct(`${name}.offset`, input, product.result, layer, weights.block, weights.offsets));
  }
  if (layer.bias) pieces.push(addBias(`${name}.biased`, pieces[pieces.length - 1].result, layer.bias));
  return {
    nodes: pieces.flatMap((piece) => piece.nodes),
    initializers: pieces.flatMap((piece) => piece.initializers),
    result: pieces[pieces.length - 1].result,
  };
}

/** `x · (scale·(q − zero))ᵀ`. */
function blockProduct(
  name: string,
  input: string,
  layer: Linear,
  weights: BlockWeights & { zeroPoints?: Float32Array },
  accuracy: number,
): Piece {
  const blocks = layer.inputs / weights.block;
  const packed = weights.block * weights.bits / 8;
  const initializers: Initializer[] = [
    { name: `${name}.quants`, dims: [layer.outputs, blocks, packed], data: weights.quants },
    { name: `${name}.scales`, dims: [layer.outputs, blocks], data: weights.scales },
  ];
  if (weights.zeroPoints) {
    initializers.push({ name: `${name}.zeros`, dims: [layer.outputs, blocks], data: weights.zeroPoints });
  }
  const attributes: Record<string, Attribute> = {
    K: { int: layer.inputs },
    N: { int: layer.outputs },
    bits: { int: weights.bits },
    block_size: { int: weights.block },
    accuracy_level: { int: accuracy },
  };
  const inputs = [input, ...initializers.map((tensor) => tensor.name)];
  const node: OnnxNode = { op: "MatMulNBits", domain: "com.microsoft", inputs, outputs: [name], attributes };
  return { nodes: [node], initializers, result: name };
}

/** `base + (sum of each input block) · offsetsᵀ`. */
function offsetProduct(
  name: string,
  input: string,
  base: string,
  layer: Linear,
  block: number,
  offsets: Float32Array,
): Piece {
  const blocks = layer.inputs / block;
  const initializers: Initializer[] = [
    { name: `${name}.shape`, dims: [3], data: BigInt64Array.of(-1n, BigInt(blocks), BigInt(block)) },
    { name: `${name}.axis`, dims: [1], data: BigInt64Array.of(2n) },
    { name: `${name}.offsets`, dims: [layer.outputs, blocks], data: offsets },
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

/** Folds offsets into zero points. A block of scale 0 is constant: scale := offset, q := 0, zero := −1. */
function withZeroPoints(weights: BlockWeights): BlockWeights & { zeroPoints: Float32Array } {
  const offsets = weights.offsets!;
  const zero = weights.bits === 4 ? 8 : 128;
  const quants = weights.quants.slice();
  const scales = weights.scales.slice();
  const packed = weights.block * weights.bits / 8;
  const zeroPoints = scales.map((scale, i) => scale === 0 ? -1 : zero - offsets[i] / scale);
  for (let i = 0; i < scales.length; i++) {
    if (scales[i] !== 0) continue;
    scales[i] = offsets[i];
    quants.fill(0, i * packed, (i + 1) * packed);
  }
  return { ...weights, quants, scales, zeroPoints };
}
