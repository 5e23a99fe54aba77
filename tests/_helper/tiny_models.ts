/** The tiny models under tests/data/models, opened. */
import { fileURLToPath } from "node:url";
import type { ModelConfig } from "../../model/config.ts";
import { configOf } from "../../model/file/gguf/config.ts";
import { type GgufFile, openGguf } from "../../model/file/gguf/reader.ts";
import { currentRuntime } from "../../runtime/mod.ts";

/** Together they hold every tensor type and every architecture. */
export const TINY_MODELS = [
  "llama-plain",
  "llama-linear",
  "llama-yarn",
  "llama3-factors",
  "qwen2-plain",
  "qwen2-yarn",
  "qwen3-plain",
  "granite-plain",
  "phi3-long",
  "smollm3-plain",
  "mistral3-yarn",
  "gemma3-windows",
  "llama-biases",
  "qwen3moe-plain",
  "llama-iq",
  "gpt-oss-plain",
  "lfm2-plain",
  "gemma4-shared",
  "gemma4-keys",
] as const;

/** Those that send tokens to experts, convolve, or have layers of several shapes: onnxruntime runs none of them. */
export const SPECIAL_MODELS: readonly (typeof TINY_MODELS[number])[] = [
  "qwen3moe-plain",
  "gpt-oss-plain",
  "lfm2-plain",
  "gemma4-shared",
  "gemma4-keys",
];
/** The others, for every engine. */
export const DENSE_MODELS: readonly (typeof TINY_MODELS[number])[] = TINY_MODELS.filter((name) => {
  return !SPECIAL_MODELS.includes(name);
});

export interface OpenModel extends AsyncDisposable {
  readonly file: GgufFile;
  readonly config: ModelConfig;
}

/** Opens any GGUF; close it with `await using`. */
export async function openModel(path: string): Promise<OpenModel> {
  const runtime = await currentRuntime();
  const file = await openGguf(await runtime.openFile(path));
  return { file, config: await configOf(file), [Symbol.asyncDispose]: () => file.close() };
}

/** Opens a tiny model by its name. */
export function openTiny(name: typeof TINY_MODELS[number]): Promise<OpenModel> {
  return openModel(fileURLToPath(new URL(`../data/models/${name}.gguf`, import.meta.url)));
}
