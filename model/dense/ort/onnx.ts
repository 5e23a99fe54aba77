/**
 * Writes the few ONNX messages our segments need. Own writer, not generated code: the subset is one varint and one
 * length-delimited rule, while the generated `onnx-proto` would add 0.4 MB and protobufjs at run time.
 * Field numbers: onnx/onnx `onnx/onnx.proto3` (IR version 10).
 */
import { concatenate } from "../../../core/concatenate.ts";

/** An integer, a list of integers, or a float attribute of a node. */
export type Attribute = { readonly int: number } | { readonly ints: readonly number[] } | { readonly float: number };

export interface OnnxNode {
  readonly op: string;
  /** Names read; an empty name skips an optional input. */
  readonly inputs: readonly string[];
  /** Names written; an empty name skips an optional output. */
  readonly outputs: readonly string[];
  /** `com.microsoft` for onnxruntime's own operators; absent for the ONNX ones. */
  readonly domain?: "com.microsoft";
  readonly attributes?: Readonly<Record<string, Attribute>>;
}

/** A constant of the graph. The element type follows the array: float32, uint8 or int64. */
export interface Initializer {
  readonly name: string;
  readonly dims: readonly number[];
  readonly data: Float32Array | Uint8Array | BigInt64Array;
}

/** Name and width of a float32 input or output `[T, width]`. */
export interface Port {
  readonly name: string;
  readonly width: number;
}

export interface Graph {
  readonly name: string;
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly nodes: readonly OnnxNode[];
  readonly initializers: readonly Initializer[];
}

/** A model and the weights that stay beside it, as onnxruntime's `externalData` takes them. */
export interface EncodedModel {
  readonly bytes: Uint8Array;
  readonly external: readonly { readonly path: string; readonly data: Uint8Array }[];
}

/** Constants from this size on travel beside the model, which saves two copies of each while a session is made. */
const EXTERNAL_FROM_BYTES = 4096;

const IR_VERSION = 10;
const ONNX_OPSET = 21;
const MICROSOFT_OPSET = 1;

/**
 * One ONNX model with `graph` in it. Large constants are referred to, not copied: `external[i].data` views the
 * initialiser's own buffer.
 */
export function encodeModel(graph: Graph): EncodedModel {
  const external = graph.initializers.filter(isExternal).map((tensor) => ({
    path: tensor.name,
    data: bytesOf(tensor),
  }));
  const bytes = concatenate([
    ...uint(1, IR_VERSION),
    ...text(2, "palisade"),
    ...message(7, encodeGraph(graph)),
    ...message(8, [...text(1, ""), ...uint(2, ONNX_OPSET)]),
    ...message(8, [...text(1, "com.microsoft"), ...uint(2, MICROSOFT_OPSET)]),
  ], Uint8Array);
  return { bytes, external };
}

function encodeGraph(graph: Graph): Uint8Array[] {
  return [
    ...graph.nodes.flatMap((node, index) => message(1, encodeNode(node, index))),
    ...text(2, graph.name),
    ...graph.initializers.flatMap((tensor) => message(5, encodeTensor(tensor))),
    ...graph.inputs.flatMap((port) => message(11, encodePort(port))),
    ...graph.outputs.flatMap((port) => message(12, encodePort(port))),
  ];
}

function encodeNode(node: OnnxNode, index: number): Uint8Array[] {
  return [
    ...node.inputs.flatMap((name) => text(1, name)),
    ...node.outputs.flatMap((name) => text(2, name)),
    ...text(3, `${node.op}_${index}`),
    ...text(4, node.op),
    ...Object.entries(node.attributes ?? {}).flatMap(([name, value]) => message(5, encodeAttribute(name, value))),
    ...text(7, node.domain ?? ""),
  ];
}

function encodeAttribute(name: string, value: Attribute): Uint8Array[] {
  const head = text(1, name);
  if ("float" in value) return [...head, ...float(2, value.float), ...uint(20, 1)];
  if ("int" in value) return [...head, ...uint(3, value.int), ...uint(20, 2)];
  return [...head, ...value.ints.flatMap((item) => uint(8, item)), ...uint(20, 7)];
}

function encodeTensor(tensor: Initializer): Uint8Array[] {
  const head = [
    ...tensor.dims.flatMap((dim) => uint(1, dim)),
    ...uint(2, elementType(tensor.data)),
    ...text(8, tensor.name),
  ];
  if (!isExternal(tensor)) return [...head, ...message(9, [bytesOf(tensor)])];
  const entries = { location: tensor.name, offset: "0", length: String(tensor.data.byteLength) };
  const external = Object.entries(entries).flatMap(([key, value]) => message(13, [...text(1, key), ...text(2, value)]));
  return [...head, ...external, ...uint(14, 1)];
}

/** Value info of a float32 `[T, width]`. */
function encodePort(port: Port): Uint8Array[] {
  const shape = [...message(1, text(2, "T")), ...message(1, uint(1, port.width))];
  return [...text(1, port.name), ...message(2, message(1, [...uint(1, 1), ...message(2, shape)]))];
}

/** TensorProto.DataType. */
function elementType(data: Initializer["data"]): number {
  if (data instanceof Float32Array) return 1;
  return data instanceof Uint8Array ? 2 : 7;
}

function isExternal(tensor: Initializer): boolean {
  return tensor.data.byteLength >= EXTERNAL_FROM_BYTES;
}

function bytesOf({ data }: Initializer): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** A field of wire type 0; `value` is a non-negative safe integer. */
function uint(field: number, value: number): Uint8Array[] {
  return [varint(field * 8), varint(value)];
}

/** A field of wire type 5. */
function float(field: number, value: number): Uint8Array[] {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setFloat32(0, value, true);
  return [varint(field * 8 + 5), bytes];
}

/** A field of wire type 2. */
function message(field: number, parts: readonly Uint8Array[]): Uint8Array[] {
  return [varint(field * 8 + 2), varint(parts.reduce((sum, part) => sum + part.length, 0)), ...parts];
}

function text(field: number, value: string): Uint8Array[] {
  return message(field, [new TextEncoder().encode(value)]);
}

function varint(value: number): Uint8Array {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Uint8Array.from([...bytes, value]);
}
