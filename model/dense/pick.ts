/** The one place where an engine and its precision are chosen. */
import type { ModelConfig } from "../config.ts";
import type { GgufFile } from "../gguf/reader.ts";
import { hasSimd128 } from "../../runtime/simd.ts";
import type { Crew } from "../../wasm/crew.ts";
import { isKernelType } from "../../wasm/dense.ts";
import type { DenseEngine, DenseName } from "./interface.ts";
import { createNodeEngine, probeNode } from "./node.ts";
import type { DenseOptions } from "./segment_engine.ts";
import { createWasmEngine } from "./wasm.ts";
import { createWebEngine } from "./web.ts";
import type { WeightForm } from "./weights.ts";

/**
 * `auto` is `node` where onnxruntime-node can be loaded; else `wasm`, our own kernels, for a file whose layers they
 * multiply as they stand; else `web`.
 */
export const DENSE_CHOICES = ["auto", "web", "node", "wasm"] as const;
export type DenseChoice = typeof DENSE_CHOICES[number];

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
  /** Threads for our own kernels. The caller ends them, after the engine. */
  readonly crew?: Crew;
}

/**
 * Most weight bytes that the web engine holds as float32 by itself. Its WebAssembly memory ends at 4 GiB, where a
 * session's weights are there twice while it is made; and resident memory is about 1.5 times the weights (0.9 GB for
 * the 0.57 GB of SmolLM2-135M).
 */
export const WEB_FLOAT32_LIMIT = 1.5 * 2 ** 30;

/**
 * Makes the dense engine for a model. PalisadeErrors: resources `dense.unavailable` when `node` was asked for by name
 * and is not there, `dense.memory`, `dense.failed`, `wasm.*`; usage `dense.threads`; `gguf.dtype` for tensors of a type
 * we don't read. RangeError for threads below 1.
 */
export async function pickDense(
  file: GgufFile,
  config: ModelConfig,
  options: PickDenseOptions = {},
): Promise<DenseEngine> {
  const { threads = 1, precision = "auto" } = options;
  if (!Number.isInteger(threads) || threads < 1) throw new RangeError(`pickDense() wants threads ≥ 1, not ${threads}`);
  const name = await chooseEngine(file, options.dense ?? "auto");
  switch (name) {
    case "node":
      return await createNodeEngine(file, config, weightForm("node", precision, config), options);
    case "web":
      return await createWebEngine(file, config, weightForm("web", precision, config), options);
    case "wasm":
      return await createWasmEngine(file, config, {
        precision: precision === "float32" ? "float32" : "quantised",
        onProgress: options.onProgress,
        signal: options.signal,
        crew: options.crew,
      });
    default:
      return name satisfies never;
  }
}

/**
 * The native engine where it is there: from 16 rows at once it is ahead of our kernels (193 to 382 rows a second against
 * 122 to 182), which are ahead for one row (63 against 45; `bench/results/dense.md`).
 */
async function chooseEngine(file: GgufFile, choice: DenseChoice): Promise<DenseName> {
  if (choice !== "auto") return choice;
  if ((await probeNode()).available) return "node";
  return hasSimd128() && staysInBlocks(file) ? "wasm" : "web";
}

/**
 * Whether our kernels hold every matrix of the layers in the file's blocks. On SmolLM2 Q4_1 they then take 12 ms and
 * 97 MB where the web engine takes about 30 ms and 0.9 GB for one row (`bench/results/dense.md`); tensors that would be
 * widened to float32 leave that advantage to the web engine.
 */
export function staysInBlocks(file: Pick<GgufFile, "tensors">): boolean {
  const matrices = [...file.tensors.values()].filter(({ name, shape }) =>
    name.startsWith("blk.") && shape.length === 2
  );
  return matrices.every(({ type: { name }, shape: [inputs] }) =>
    name !== "F32" && isKernelType(name === "Q5_0" ? "Q8_0" : name, inputs)
  );
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
