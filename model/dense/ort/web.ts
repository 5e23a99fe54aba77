/** Dense engine on onnxruntime-web: WebAssembly, in every runtime. */
import { PalisadeError } from "../../../core/errors.ts";
import type { ModelConfig } from "../../config.ts";
import type { GgufFile } from "../../file/gguf/reader.ts";
import type { DenseEngine } from "../interface.ts";
import { createSegmentEngine, type DenseOptions } from "./engine.ts";
import type { WeightForm } from "./weights.ts";

type WebModule = typeof import("onnxruntime-web");

/** Where onnxruntime-web finds its WebAssembly, for programs that carry it inside, such as a single binary. */
export interface OrtFiles {
  /** A folder URL ending in `/`, or the URLs of `ort-wasm-simd-threaded.mjs` and `.wasm`. */
  readonly wasmPaths?: string | { readonly mjs?: string | URL; readonly wasm?: string | URL };
  /** The bytes of `ort-wasm-simd-threaded.wasm`. */
  readonly wasmBinary?: ArrayBuffer | Uint8Array<ArrayBuffer>;
}

let files: OrtFiles = {};
let started: { readonly module: WebModule; readonly threads: number } | undefined;

/**
 * Says where onnxruntime-web's files are. To be called before the first `createWebEngine`; throws an Error later.
 *
 * @example
 * import mjs from "onnxruntime-web/ort-wasm-simd-threaded.mjs" with { type: "file" };
 * import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm" with { type: "file" };
 * configureOrt({ wasmPaths: { mjs: pathToFileURL(mjs), wasm: pathToFileURL(wasm) } });
 */
export function configureOrt(where: OrtFiles): void {
  if (started) throw new Error("configureOrt() must be called before the first web engine is made");
  files = where;
}

/**
 * Makes the engine from a GGUF, with weights in float32 or in the file's blocks. onnxruntime's thread count is fixed by
 * the first engine of the process: a later one that wants another is refused (`dense.threads`, kind usage). Other
 * errors as in `createSegmentEngine`.
 */
export async function createWebEngine(
  file: GgufFile,
  config: ModelConfig,
  form: WeightForm,
  options: DenseOptions = {},
): Promise<DenseEngine> {
  const threads = options.threads ?? 1;
  const ort = await start(threads);
  return await createSegmentEngine(file, config, {
    name: "web",
    library: `onnxruntime-web ${ort.env.versions.web ?? ""}`,
    ort,
    session: { executionProviders: ["wasm"], enableCpuMemArena: false, enableMemPattern: false },
    form,
    style: "web",
  }, options);
}

async function start(threads: number): Promise<WebModule> {
  if (started && started.threads !== threads) {
    const message = `onnxruntime-web already runs with ${started.threads} threads in this process, not ${threads}`;
    throw new PalisadeError("usage", "dense.threads", message, { where: "threads" });
  }
  if (started) return started.module;
  const module = await import("onnxruntime-web");
  // Another engine may have been first meanwhile.
  if (started) return await start(threads);
  module.env.logLevel = "error";
  module.env.wasm.numThreads = threads;
  if (files.wasmPaths !== undefined) module.env.wasm.wasmPaths = files.wasmPaths;
  if (files.wasmBinary !== undefined) module.env.wasm.wasmBinary = files.wasmBinary;
  started = { module, threads };
  return module;
}
