/** Models that send tokens to experts: which engines run them. */
import { hasExperts } from "../../core/dense/operations.ts";
import { inputError, option, type PalisadeError } from "../../core/errors.ts";
import type { DenseOperation } from "../architecture.ts";
import type { ModelConfig } from "../config.ts";

type Experts = Extract<DenseOperation, { op: "choose" | "expand" | "collect" }>;

export function hasExpertLayers({ decoder }: Pick<ModelConfig, "decoder">): boolean {
  return decoder.layers.some(({ finish }) => hasExperts(finish));
}

/** They run on our own kernels, and on WebGPU but for those of gpt-oss. */
export function expertsRefused(engine: string): PalisadeError {
  const what = engine === "webgpu" ? "A model whose experts have biases and limited gates" : "A model with experts";
  const message = `${what} runs on our own kernels alone (wasm), not on ${engine}`;
  return inputError("dense.experts", message, option("dense"));
}

/**
 * The operation, for an engine that knows of no experts and their gates.
 * @throws PalisadeError `dense.experts`.
 */
export function withoutExperts<O extends DenseOperation>(operation: O, engine: string): Exclude<O, Experts> {
  const limited = operation.op === "gate" && operation.activation === "limited";
  if (limited || operation.op === "choose" || operation.op === "expand" || operation.op === "collect") {
    throw expertsRefused(engine);
  }
  return operation as Exclude<O, Experts>;
}
