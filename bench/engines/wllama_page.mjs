/** The page that bench/engines/wllama.ts opens: wllama's single-thread build, one sequence, full cache. */
import { LoggerWithoutDebug, Wllama } from "/wllama/index.js";

const wllama = new Wllama({ "single-thread/wllama.wasm": "/wllama/single-thread/wllama.wasm" }, {
  suppressNativeLog: true,
  logger: LoggerWithoutDebug,
});
let length = 0;

/** Loads the model with a cache of `n_ctx` rows of a type, f16 or f32. */
globalThis.load = async (n_ctx, type) => {
  const model = await (await fetch("/model.gguf")).blob();
  // Over float32 rows llama.cpp's WebAssembly is fastest without its flash attention.
  const cache = type === "f32" ? { cache_type_k: type, cache_type_v: type, flash_attn: false } : {};
  await wllama.loadModel([model], { n_ctx, n_threads: 1, n_batch: 512, ...cache });
  if (wllama.isMultithread()) throw new Error("wllama runs on more than one thread");
  await wllama.samplingInit({ temp: 0, top_k: 1 });
};

/** Milliseconds to read `ids` into an empty cache. */
globalThis.prefill = async (ids) => {
  await wllama.kvClear();
  const start = performance.now();
  length = (await wllama.decode(ids, {})).nPast;
  return performance.now() - start;
};

/** Milliseconds of each of `steps` greedy tokens after `id`; the cache as before. */
globalThis.decode = async (id, steps) => {
  const ms = [];
  while (ms.length < steps) {
    const start = performance.now();
    await wllama.decode([id], {});
    id = (await wllama.samplingSample()).token;
    ms.push(performance.now() - start);
  }
  await wllama.kvRemove(length, -1);
  return ms;
};
