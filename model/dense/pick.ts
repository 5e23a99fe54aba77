/** The one place where an engine and its precision are chosen. */
import type { ModelConfig } from "../config.ts";
import type { GgufFile } from "../gguf/reader.ts";
import type { DenseEngine } from "./interface.ts";
import { createNodeEngine, probeNode } from "./node.ts";
import type { DenseOptions } from "./segment_engine.ts";
import { createWebEngine } from "./web.ts";
import type { WeightForm } from "./weights.ts";

/** `auto` is `node` where onnxruntime-node can be loaded, else `web`. */
export type DenseChoice = "auto" | "web" | "node";

/**
 * `float32`: logits within 2e-3 of the file's weights in float32. `quantised`: weights stay in the file's blocks where
 * those can be multiplied (`toBlocks`), as exactly: a quarter of the memory. `auto`: what runs best.
 */
export type DensePrecision = "auto" | "float32" | "quantised";

export interface PickDenseOptions extends DenseOptions {
  /** Default `auto`. */
  readonly dense?: DenseChoice;
  /** Default `auto`. */
  readonly precision?: DensePrecision;
}

/**
 * Most weight bytes that the web engine holds as float32 by itself. Its WebAssembly memory ends at 4 GiB, where a
 * session's weights are there twice while it is made; and resident memory is about 1.5 times the weights (0.9 GB for
 * the 0.57 GB of SmolLM2-135M).
 */
export const WEB_FLOAT32_LIMIT = 1.5 * 2 ** 30;

/**
 * Makes the dense engine for a model. PalisadeErrors: resources `dense.unavailable` when `node` was asked for by name
 * and is not there, `dense.memory`, `dense.failed`; usage
 * `dense.threads`; `gguf.dtype` for tensors of a type we don't read. RangeError for threads below 1.
 */
export async function pickDense(
  file: GgufFile,
  config: ModelConfig,
  options: PickDenseOptions = {},
): Promise<DenseEngine> {
  const { dense: choice = "auto", threads = 1 } = options;
  if (!Number.isInteger(threads) || threads < 1) throw new RangeError(`pickDense() wants threads ≥ 1, not ${threads}`);
  const useNode = choice === "node" || (choice === "auto" && (await probeNode()).available);
  const form = weightForm(useNode ? "node" : "web", options.precision ?? "auto", config);
  return useNode
    ? await createNodeEngine(file, config, form, options)
    : await createWebEngine(file, config, form, options);
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
  const { width, heads, kvHeads, headDim, feedForward, layers, vocabulary } = config;
  const attention = width * headDim * (2 * heads + 2 * kvHeads);
  return 4 * (layers * (attention + 3 * width * feedForward) + vocabulary * width);
}
