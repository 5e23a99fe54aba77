/**
 * Models that send tokens to experts, and models that convolve: our own kernels run them, onnxruntime neither, and WebGPU
 * the experts alone, but for those of gpt-oss.
 */
import { hasExperts } from "../../core/dense/operations.ts";
import { inputError, option, type PalisadeError } from "../../core/errors.ts";
import type { DenseOperation } from "../architecture.ts";
import type { ModelConfig } from "../config.ts";

/** What a model has that onnxruntime doesn't run. */
export type OwnKernelsFor = "experts" | "convolutions";

type Special = Extract<DenseOperation, { op: "choose" | "expand" | "collect" | "couple" }>;

/** Why a model runs on our own kernels alone on this side, if it does. */
export function ownKernelsFor({ decoder, convolutions }: Pick<ModelConfig, "decoder" | "convolutions">) {
  if (decoder.layers.some(({ finish }) => hasExperts(finish))) return "experts" satisfies OwnKernelsFor;
  return convolutions && "convolutions" satisfies OwnKernelsFor;
}

/** `dense.experts` or `dense.convolutions`. */
export function engineRefused(engine: string, what: OwnKernelsFor): PalisadeError {
  const odd = engine === "webgpu" && what === "experts";
  const model = odd ? "A model whose experts have biases and limited gates" : `A model with ${what}`;
  const message = `${model} runs on our own kernels alone (wasm), not on ${engine}`;
  return inputError(`dense.${what}`, message, option("dense"));
}

/**
 * The operation, for an engine that knows of no experts and their gates, and of no convolutions.
 * @throws PalisadeError `dense.experts`, `dense.convolutions`.
 */
export function ordinary<O extends DenseOperation>(operation: O, engine: string): Exclude<O, Special> {
  const limited = operation.op === "gate" && operation.activation === "limited";
  if (limited || operation.op === "choose" || operation.op === "expand" || operation.op === "collect") {
    throw engineRefused(engine, "experts");
  }
  if (operation.op === "couple") throw engineRefused(engine, "convolutions");
  return operation as Exclude<O, Special>;
}
