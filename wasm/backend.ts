/** The WebAssembly backend: SIMD kernels in Rust (`wasm/kernels/`) behind the backend interface. */
import { checkedRows } from "../core/backend/checked_rows.ts";
import type { Backend } from "../core/backend/interface.ts";
import { ReusedTensors } from "../core/backend/reused_tensors.ts";
import type { CacheType } from "../core/cache/entry_type.ts";
import { gateWidth, type LinearGate } from "../core/measure/gate_scores.ts";
import { checkSelection, type Segment, type SelectionInput } from "../core/select/select.ts";
import type { AttentionShape } from "../core/shape.ts";
import { Kernels, type WasmOptions } from "./module.ts";
import { PageMeter, WasmRows } from "./rows.ts";
import { descentOf, solverOf } from "./solve.ts";

export type { WasmOptions };

export interface WasmBackend extends Backend<Float32Array> {
  /** Rows of some heads, `shape`, of the layer `whole`, where other threads hold the others. They trust their caller. */
  createPart(shape: AttentionShape, reserve: number, type: CacheType, whole: AttentionShape): WasmRows;
}

/**
 * Starts the kernels: one module instance with a memory of its own, one thread. Runs wherever WebAssembly has 128-bit
 * vectors; takes the build with relaxed vectors where the engine has those.
 *
 * Its rows throw `PalisadeError` (`resources`, `wasm.memory`) when the memory can't grow; what they held stays usable.
 * @throws PalisadeError `wasm.start` when the engine can't run the module.
 */
export async function createWasmBackend(options: WasmOptions = {}): Promise<WasmBackend> {
  const kernels = await Kernels.start(options);
  const meter = new PageMeter(), place = { kernels, meter, tensors: new ReusedTensors() };
  return {
    name: "wasm",
    detail: `WebAssembly ${kernels.relaxed ? "relaxed SIMD" : "SIMD"}, one thread`,
    memory: () => meter.memory(kernels.memoryBytes),
    refits: true,
    reduces: true,
    packs: true,
    products: (a, b, depth) => products(kernels, a, b, depth),
    solve: solverOf(kernels),
    boundedLeastSquares: descentOf(kernels),
    tensors: place.tensors,
    createRows: (shape, reserve, type = "f32") =>
      checkedRows(shape, reserve, type, (checked) => new WasmRows(place, checked, reserve, type)),
    createPart: (shape, reserve, type, whole) => new WasmRows(place, shape, reserve, type, whole),
    // deno-lint-ignore require-await -- a bad input must reject, not throw
    select: async (input) => select(kernels, input),
    // deno-lint-ignore require-await -- as above
    gateScores: async (gate, hidden, count) => gateScores(kernels, gate, hidden, count),
    [Symbol.dispose]: () => {},
  };
}

/** Inputs and outputs of products pass through buffers of about this size. */
const BUFFER_FLOATS = 1 << 19;
/** The number of float32 weights among GGUF's types. */
const FLOATS = 0;

function select(kernels: Kernels, { segments, count }: SelectionInput): Int32Array[] {
  const entries = checkSelection({ segments, count });
  return kernels.withBuffers((buffers) => {
    const scores = buffers.from(joined(segments, Float32Array, (segment) => segment.scores));
    const second = segments.some((segment) => segment.second)
      ? buffers.from(joined(segments, Float32Array, (segment) => segment.second))
      : -1;
    const shielded = segments.some((segment) => segment.protectedEntries)
      ? buffers.from(joined(segments, Uint8Array, (segment) => segment.protectedEntries))
      : -1;
    const chosen = buffers.zeros(count * 4);
    kernels.check(kernels.call.select_top(scores, second, shielded, entries, count, chosen), "select entries");
    return perSegment(buffers.read(chosen, new Int32Array(count)), segments);
  });
}

/** The float32 kernels of dense layers, `b` taken as their weights; some rows of `a` at a time. */
function products(kernels: Kernels, a: Float32Array, b: Float32Array, depth: number): Float32Array {
  const n = a.length / depth, m = b.length / depth, product = new Float32Array(n * m);
  if (!Number.isInteger(n) || !Number.isInteger(m)) {
    throw new RangeError(`Cannot multiply ${a.length} and ${b.length} floats of depth ${depth}`);
  }
  if (product.length === 0) return product;
  const most = Math.max(1, Math.floor(BUFFER_FLOATS / (depth + m)));
  kernels.withBuffers((shared) => {
    const weights = shared.from(b);
    for (let first = 0; first < n; first += most) {
      const rows = Math.min(most, n - first);
      kernels.withBuffers((buffers) => {
        const x = buffers.from(a.subarray(first * depth, (first + rows) * depth)), out = buffers.zeros(4 * rows * m);
        const done = kernels.call.dense_multiply(weights, FLOATS, m, depth, 1, x, rows, -1, out, m, 0, 0);
        kernels.check(done, "multiply");
        buffers.read(out, product.subarray(first * m, (first + rows) * m));
      });
    }
  });
  return product;
}

function gateScores(kernels: Kernels, gate: LinearGate, hidden: Float32Array, count: number): Float32Array {
  const { weights, bias, epsilon } = gate, width = gateWidth(gate, hidden, count);
  return kernels.withBuffers((buffers) => {
    const scores = new Float32Array(count * bias.length), out = buffers.zeros(scores.byteLength);
    const [w, b, x] = [weights, bias, hidden].map((numbers) => buffers.from(numbers));
    kernels.check(kernels.call.gate_scores(w, b, bias.length, width, epsilon, x, count, out), "score by a gate");
    return buffers.read(out, scores);
  });
}

/** One array of all segments' keys, 0 where a segment has none. */
function joined<A extends Float32Array | Uint8Array>(
  segments: readonly Segment[],
  kind: new (length: number) => A,
  key: (segment: Segment) => A | undefined,
): A {
  const all = new kind(segments.reduce((sum, { scores }) => sum + scores.length, 0));
  let start = 0;
  for (const segment of segments) {
    const mine = key(segment);
    if (mine) all.set(mine, start);
    start += segment.scores.length;
  }
  return all;
}

/** Ascending indices into the pool → ascending indices into each segment. */
function perSegment(chosen: Int32Array, segments: readonly Segment[]): Int32Array[] {
  let start = 0, next = 0;
  return segments.map(({ scores }) => {
    const first = next, end = start + scores.length;
    while (next < chosen.length && chosen[next] < end) next++;
    const mine = chosen.slice(first, next).map((index) => index - start);
    start = end;
    return mine;
  });
}
