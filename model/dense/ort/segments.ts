/**
 * The ONNX graphs of a decoder's lists of operations: `project` and `finish` of one layer, and the head. Layer i's
 * `finish` and layer i+1's `project` stay apart, because layer-major prefill keeps nothing but hidden states between
 * layers.
 *
 * All activations are float32 `[T, width]`; T is free. Operators without a page in the ONNX standard are described in
 * microsoft/onnxruntime `docs/ContribOperators.md`.
 */
import {
  type Activation,
  type HeadNorm,
  type Operation,
  readsOf,
  resultOf,
  type Scale,
  widthsOf,
} from "../../../core/dense/operations.ts";
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

/** An operation with its gains, and its weights in layers side by side. */
export type SegmentOperation = Operation<Float32Array, readonly Linear[]>;

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

/**
 * The graph of a list of operations, from those of its `inputs` (widths by name) that it reads to its last result. Names
 * in the graph are the list's.
 */
export function segmentGraph(
  name: string,
  operations: readonly SegmentOperation[],
  inputs: Readonly<Record<string, number>>,
  epsilon: number,
  style: LinearStyle,
): Graph {
  const pieces: Piece[] = [], widths = widthsOf(operations, inputs);
  /** Where each value is in the graph. */
  const places = new Map(Object.keys(inputs).map((input) => [input, input]));
  const place = (value: string) => places.get(value)!;
  for (let i = 0; i < operations.length; i++) {
    const operation = operations[i], next = operations[i + 1];
    if (operation.op === "add" && next?.op === "norm" && next.from === operation.to) {
      const [a, b] = operation.from.map(place);
      const piece = residualNorm(next.to, a, b, next.gains, epsilon);
      pieces.push(piece);
      places.set(operation.to, `${next.to}.sum`).set(next.to, piece.result);
      i++;
      continue;
    }
    const piece = pieceOf(operation, place, widths, epsilon, style);
    pieces.push(piece);
    places.set(operation.to, piece.result);
  }
  const result = resultOf(operations), read = new Set(operations.flatMap(readsOf));
  const ports = Object.entries(inputs).filter(([input]) => read.has(input));
  return graph(name, Object.fromEntries(ports), { [place(result)]: widths.get(result)! }, pieces);
}

function pieceOf(
  operation: SegmentOperation,
  place: (value: string) => string,
  widths: ReadonlyMap<string, number>,
  epsilon: number,
  style: LinearStyle,
): Piece {
  const { to } = operation;
  switch (operation.op) {
    case "norm":
      return rmsNorm(to, place(operation.from), operation.gains, epsilon);
    case "headNorm":
      return headNorm(operation, place(operation.from), widths.get(operation.from)!, epsilon);
    case "multiply":
      return linears(to, place(operation.from), operation.weights, style);
    case "gate":
      return gate(to, place(operation.from), operation.activation);
    case "add":
      return piece(to, [{ op: "Add", inputs: operation.from.map(place), outputs: [to] }]);
    case "scale":
      return scale(operation, place(operation.from), widths.get(operation.from)!);
    case "cap":
      return cap(to, place(operation.from), operation.cap);
    case "choose":
    case "expand":
    case "collect":
      throw new RangeError("No graph sends tokens to experts");
    case "couple":
      throw new RangeError("No graph convolves");
    case "unitNorm":
    case "gateBy":
      throw new RangeError("No graph runs layers of several shapes");
    default:
      throw new TypeError(`Unknown operation ${operation satisfies never}`);
  }
}

function piece(result: string, nodes: readonly OnnxNode[], initializers: readonly Initializer[] = []): Piece {
  return { nodes, initializers, result };
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

/** The norm of each head in the middle columns of an input of `width`. */
function headNorm(operation: HeadNorm<Float32Array>, input: string, width: number, epsilon: number): Piece {
  const { to, gains, first, heads, width: headWidth } = operation;
  const sizes = [first, heads * headWidth, width - first - heads * headWidth];
  const parts = ["before", "heads", "after"].map((part, i) => ({ name: `${to}.${part}`, size: sizes[i] }))
    .filter(({ size }) => size > 0);
  const constants: Initializer[] = [
    { name: `${to}.sizes`, dims: [parts.length], data: BigInt64Array.from(parts, ({ size }) => BigInt(size)) },
    { name: `${to}.perHead`, dims: [2], data: BigInt64Array.of(-1n, BigInt(headWidth)) },
    { name: `${to}.perToken`, dims: [2], data: BigInt64Array.of(-1n, BigInt(heads * headWidth)) },
  ];
  const norm = rmsNorm(`${to}.normed`, `${to}.rows`, gains, epsilon), axis = { axis: { int: 1 } };
  return piece(to, [
    { op: "Split", inputs: [input, `${to}.sizes`], outputs: parts.map(({ name }) => name), attributes: axis },
    { op: "Reshape", inputs: [`${to}.heads`, `${to}.perHead`], outputs: [`${to}.rows`] },
    ...norm.nodes,
    { op: "Reshape", inputs: [norm.result, `${to}.perToken`], outputs: [`${to}.done`] },
    {
      op: "Concat",
      inputs: parts.map(({ name }) => name === `${to}.heads` ? `${to}.done` : name),
      outputs: [to],
      attributes: axis,
    },
  ], [...constants, ...norm.initializers]);
}

/** `activation(a) · b` of an input that holds both halves side by side. */
function gate(name: string, input: string, activation: Activation): Piece {
  const halves = [`${name}.gate`, `${name}.up`], active = `${name}.${activation}`;
  const split = { axis: { int: 1 }, num_outputs: { int: 2 } };
  // QuickGelu with alpha 1 is x·sigmoid(x), which is SiLU; FastGelu is GELU's tanh form.
  const node: OnnxNode = activation === "silu"
    ? { op: "QuickGelu", domain: "com.microsoft", inputs: [halves[0]], outputs: [active], attributes: ALPHA_1 }
    : { op: "FastGelu", domain: "com.microsoft", inputs: [halves[0]], outputs: [active] };
  return piece(name, [
    { op: "Split", inputs: [input], outputs: halves, attributes: split },
    node,
    { op: "Mul", inputs: [active, halves[1]], outputs: [name] },
  ]);
}

const ALPHA_1 = { alpha: { float: 1 } };

/** Each column times its factor, which is 1 outside the operation's. */
function scale({ to, factor, first, width: scaled }: Scale, input: string, width: number): Piece {
  const factors = new Float32Array(width).fill(1).fill(factor, first, first + scaled);
  const constant = { name: `${to}.factors`, dims: [width], data: factors };
  return piece(to, [{ op: "Mul", inputs: [input, constant.name], outputs: [to] }], [constant]);
}

function cap(name: string, input: string, most: number): Piece {
  const constant = { name: `${name}.cap`, dims: [1], data: Float32Array.of(most) };
  return piece(name, [
    { op: "Div", inputs: [input, constant.name], outputs: [`${name}.share`] },
    { op: "Tanh", inputs: [`${name}.share`], outputs: [`${name}.tanh`] },
    { op: "Mul", inputs: [`${name}.tanh`, constant.name], outputs: [name] },
  ], [constant]);
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
