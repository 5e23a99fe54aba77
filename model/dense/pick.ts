/** The one place where an engine and its precision are chosen. */
import { multiplyAddsOf } from "../../core/dense/operations.ts";
import { option, resourceError } from "../../core/errors.ts";
import { inputsOf } from "../architecture.ts";
import type { ModelConfig } from "../config.ts";
import type { GgufFile } from "../file/gguf/reader.ts";
import { hasSimd128 } from "../../runtime/features.ts";
import { wideVectors } from "../../runtime/wide_vectors.ts";
import type { ThreadPool } from "../../wasm/threads/pool.ts";

import type { DenseEngine, HostDenseName } from "./interface.ts";
import { MixedEngine } from "./by_rows.ts";
import { createNodeEngine, createNodeLayers, probeNode } from "./ort/node.ts";
import type { DenseOptions } from "./ort/engine.ts";
import { checkNeeded, neededBytes } from "./needed.ts";
import { engineRefused, type OwnKernelsFor, ownKernelsFor } from "./own_kernels.ts";
import { createWasmEngine, type WasmDenseOptions } from "./wasm/engine.ts";
import { createWebEngine } from "./ort/web.ts";
import type { WeightForm } from "./ort/weights.ts";

/**
 * `auto`: for a file whose layers are all in blocks `wasm`, our own kernels; where all blocks are of 32, vectors have no
 * 256 bits and onnxruntime-node can be loaded, those from {@link MANY_ROWS} rows at once on `node`. For files of float
 * weights `node` or, without it, `web`.
 */
export const DENSE_CHOICES = ["auto", "web", "node", "wasm", "webgpu"] as const;
/** One of {@link DENSE_CHOICES}. */
export type DenseChoice = typeof DENSE_CHOICES[number];
/** Engines on this side; `webgpu` starts with its backend (`model/start_device.ts`). */
export type HostDenseChoice = Exclude<DenseChoice, "webgpu">;

/**
 * `float32`: logits within 2e-3 of the file's weights in float32. `quantised`: weights stay in the file's blocks where
 * those can be multiplied (`toBlocks`), as exactly: a quarter of the memory. `auto`: what runs best.
 */
export type DensePrecision = "auto" | "float32" | "quantised";

export interface PickDenseOptions extends DenseOptions {
  /** Default `auto`. */
  readonly dense?: HostDenseChoice;
  /** Default `auto`. */
  readonly precision?: DensePrecision;
  /** `auto` takes one engine for any number of rows, `node` where it can: for results to be set beside earlier ones. */
  readonly oneEngine?: boolean;
  /** Threads for our own kernels. The caller ends them, after the engine. */
  readonly pool?: ThreadPool;
  /** The most memory this process can have, bytes: weights beyond it are refused before any is read. */
  readonly limitBytes?: number;
  /** Called with the bytes of weights there will be at least (`neededBytes`), and who holds them, before any is read. */
  readonly onNeeded?: (bytes: number, engine: HostDenseName) => void;
  /** Where our own kernels' results come from ({@link WasmDenseOptions}). */
  readonly tensors?: WasmDenseOptions["tensors"];
}

/**
 * Most weight bytes that the web engine holds as float32 by itself. Its WebAssembly memory ends at 4 GiB, where a
 * session's weights are there twice while it is made; and resident memory is about 1.5 times the weights (0.9 GB for
 * the 0.57 GB of SmolLM2-135M).
 */
export const WEB_FLOAT32_LIMIT = 1.5 * 2 ** 30;

/**
 * Makes the dense engine for a model. PalisadeErrors: resources `dense.unavailable` when `node` was asked for by name
 * and is not there, `dense.memory`, `memory.short`, `dense.failed`, `wasm.*`; usage `dense.threads`; `gguf.dtype` for tensors of a type
 * we don't read. RangeError for threads below 1.
 */
export async function pickDense(
  file: GgufFile,
  config: ModelConfig,
  options: PickDenseOptions = {},
): Promise<DenseEngine> {
  const { threads = 1, precision = "auto", onProgress, signal, pool, tensors } = options;
  if (!Number.isInteger(threads) || threads < 1) throw new RangeError(`pickDense() wants threads ≥ 1, not ${threads}`);
  const wasm = {
    precision: precision === "float32" ? precision : "quantised",
    onProgress,
    signal,
    pool,
    tensors,
  } as const;
  const special = ownKernelsFor(config);
  const name = special ? ownEngine(special, options) : await chooseEngine(file, options);
  const form = weightForm(name === "web" ? "web" : "node", precision, config);
  const needed = neededBytes(file, name, form);
  checkNeeded(file, needed, options.limitBytes);
  options.onNeeded?.(needed, name);
  switch (name) {
    case "node":
      return await createNodeEngine(file, config, form, options);
    case "web":
      return await createWebEngine(file, config, form, options);
    case "wasm":
      return await createWasmEngine(file, config, wasm);
    case "mixed":
      return await createMixed(file, config, wasm, options);
    default:
      return name satisfies never;
  }
}

/**
 * Rows at once from which on onnxruntime-node is ahead of our kernels (SmolLM2 Q4_1, one thread; figures in
 * `bench/results/dense.md`).
 */
export const MANY_ROWS = 8;

/**
 * On this side experts, convolutions and layers of several shapes run on our own kernels alone.
 * @throws PalisadeError `dense.experts`, `dense.convolutions`, `dense.mixed-layers` where another engine was named, resources `dense.unavailable` without SIMD.
 */
function ownEngine(what: OwnKernelsFor, { dense = "auto" }: PickDenseOptions): HostDenseName {
  if (dense !== "auto" && dense !== "wasm") {
    throw engineRefused(dense, what);
  }
  if (hasSimd128()) return "wasm";
  const message = `A model with ${
    what.replace("-", " ")
  } needs WebAssembly's 128-bit vectors, which this runtime lacks`;
  throw resourceError("dense.unavailable", message, option("dense"));
}

async function chooseEngine(file: GgufFile, options: PickDenseOptions): Promise<HostDenseName> {
  const { dense = "auto", precision, oneEngine } = options;
  if (dense !== "auto") return dense;
  const ours = hasSimd128() && staysInBlocks(file);
  // Loading onnxruntime takes 60 MB, wanted or not.
  const alone = !hasSmallBlocks(file) || (wideVectors().on && !oneEngine);
  if (ours && precision !== "float32" && alone) return "wasm";
  if (!(await probeNode()).available) return ours ? "wasm" : "web";
  if (!ours || precision === "float32") return "node";
  return oneEngine ? "node" : "mixed";
}

/** What `auto` takes, in a line for people; `node`: whether onnxruntime-node is there. */
export function describeAuto(node: boolean): string {
  const others = node ? "onnxruntime-node" : "onnxruntime-web";
  if (!hasSimd128()) return others;
  const from = wideVectors().on ? "in eval and worker" : `from ${MANY_ROWS} rows at once (eval, worker: always)`;
  const more = node ? `, in files of 32-blocks ${others} ${from}` : "";
  return `own kernels${more}; ${others} for F32, F16 and BF16 files`;
}

/** Our kernels with head and embeddings, and onnxruntime-node's layers. */
async function createMixed(
  file: GgufFile,
  config: ModelConfig,
  wasm: WasmDenseOptions,
  options: PickDenseOptions,
): Promise<DenseEngine> {
  const ours = config.layers + 1, total = ours + 2 * config.layers;
  const after = (before: number) => (done: number) => options.onProgress?.(before + done, total);
  const few = await createWasmEngine(file, config, { ...wasm, onProgress: after(0) });
  try {
    const form = weightForm("node", options.precision ?? "auto", config);
    const many = await createNodeLayers(file, config, form, { ...options, onProgress: after(ours) });
    return new MixedEngine(few, many, MANY_ROWS);
  } catch (error) {
    await few[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * Whether our kernels hold every matrix of the layers in the file's blocks, or in half of float32's. On SmolLM2 Q4_1 they then take 12 ms and
 * 97 MB where the web engine takes about 30 ms and 0.9 GB for one row (`bench/results/dense.md`); files of float weights
 * leave that advantage to the web engine.
 */
export function staysInBlocks(file: Pick<GgufFile, "tensors">): boolean {
  return layerMatrices(file).every(({ type: { kernel, block, held } }) => (kernel && block > 1) || held);
}

/**
 * Whether onnxruntime has the layers' blocks without loss of speed: blocks of 32 only. A file with others (Q4_K_M's mix)
 * is ours alone, and its weights are held once.
 */
export function hasSmallBlocks(file: Pick<GgufFile, "tensors">): boolean {
  return layerMatrices(file).every(({ type: { blocks, block } }) => blocks !== undefined && block === 32);
}

function layerMatrices(file: Pick<GgufFile, "tensors">) {
  return [...file.tensors.values()].filter(({ name, shape }) => name.startsWith("blk.") && shape.length === 2);
}

/**
 * How an engine holds its weights. The web build unpacks a whole quantised matrix at every call, which makes one row
 * about ten times as slow as in float32, so it holds float32 while that fits. The native build takes
 * half the time with blocks for one row, twice the time for many rows, and less than half the memory (`bench/dense.ts`,
 * `bench/results/dense.md`).
 */
export function weightForm(engine: "web" | "node", precision: DensePrecision, config: ModelConfig): WeightForm {
  if (precision !== "auto") return precision === "float32" ? "float32" : "blocks";
  if (engine === "node") return "blocks";
  return float32Bytes(config) <= WEB_FLOAT32_LIMIT ? "float32" : "blocks";
}

/** Bytes of all segments' weights in float32. */
export function float32Bytes(config: ModelConfig): number {
  const { layers: [{ project, finish }], head } = config.decoder, inputs = inputsOf(config);
  const layer = multiplyAddsOf(project, inputs) + multiplyAddsOf(finish, inputs);
  return 4 * (config.layers * layer + multiplyAddsOf(head, inputs));
}
