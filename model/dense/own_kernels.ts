/**
 * Models that send tokens to experts, models that convolve, and models of mixed layers (`Architecture.mixed`): our own
 * kernels and WebGPU run them, onnxruntime none of them.
 */
import { hasExperts } from "../../core/dense/operations.ts";
import { inputError, option, type PalisadeError } from "../../core/errors.ts";
import type { DenseOperation } from "../architecture.ts";
import type { ModelConfig } from "../config.ts";

/** What a model has that onnxruntime doesn't run. */
export type OwnKernelsFor = "experts" | "convolutions" | "mixed-layers";

type Special = Extract<
  DenseOperation,
  { op: "choose" | "expand" | "collect" | "couple" | "unitNorm" | "gateBy" }
>;

/** Why a model runs on our own kernels alone on this side, if it does. */
export function ownKernelsFor(
  { decoder, convolutions, windowHeads, sources }: Pick<
    ModelConfig,
    "decoder" | "convolutions" | "windowHeads" | "sources"
  >,
) {
  if (windowHeads || sources || decoder.perLayer) return "mixed-layers" satisfies OwnKernelsFor;
  if (decoder.layers.some(({ finish }) => hasExperts(finish))) return "experts" satisfies OwnKernelsFor;
  return convolutions && "convolutions" satisfies OwnKernelsFor;
}

/** `dense.experts`, `dense.convolutions` or `dense.mixed-layers`. */
export function engineRefused(engine: string, what: OwnKernelsFor): PalisadeError {
  const whose = what === "mixed-layers" ? "layers of several shapes" : what;
  const message = `A model with ${whose} runs on our own kernels (wasm) or on webgpu, not on ${engine}`;
  return inputError(`dense.${what}`, message, option("dense"));
}

/**
 * The operation, for an engine that knows of no experts and their gates, and of no convolutions.
 * @throws PalisadeError `dense.experts`, `dense.convolutions`, `dense.mixed-layers`.
 */
export function ordinary<O extends DenseOperation>(operation: O, engine: string): Exclude<O, Special> {
  const limited = operation.op === "gate" && operation.activation === "limited";
  if (limited || operation.op === "choose" || operation.op === "expand" || operation.op === "collect") {
    throw engineRefused(engine, "experts");
  }
  if (operation.op === "couple") throw engineRefused(engine, "convolutions");
  if (operation.op === "unitNorm" || operation.op === "gateBy") throw engineRefused(engine, "mixed-layers");
  return operation as Exclude<O, Special>;
}
