/** What runs a model: attention, cache and selection on the one side, the dense layers on the other. */
import { option, resourceError } from "../core/errors.ts";
import type { ThreadPool } from "../wasm/threads/pool.ts";
import type { Backend } from "../core/backend/interface.ts";
import { createReferenceBackend } from "../core/backend/reference.ts";
import type { Tensor } from "../core/backend/tensor.ts";
import type { Dense } from "./dense/dense.ts";

/** One place that computes: its two halves hand each other tensors. */
export interface Device<T extends Tensor = Tensor> {
  readonly backend: Backend<T>;
  readonly dense: Dense<T>;
}

/** What may be asked for as a backend. */
export const BACKEND_CHOICES = ["auto", "ts", "wasm", "webgpu"] as const;
/** One of {@link BACKEND_CHOICES}. */
export type BackendChoice = typeof BACKEND_CHOICES[number];
/** Those on this side; `webgpu` starts with its dense part (`model/start_device.ts`). */
export const HOST_BACKENDS = ["auto", "ts", "wasm"] as const satisfies readonly BackendChoice[];
/** One of {@link HOST_BACKENDS}. */
export type HostBackendChoice = typeof HOST_BACKENDS[number];

export interface PickOptions {
  /** Threads for the kernels (`model/threads.ts` starts them); without them one. The caller ends them. */
  readonly pool?: ThreadPool;
}

/**
 * `ts`: the plain backend. `wasm`: the kernels, or an error. `auto`: the kernels where they load, else `ts`, whose
 * `detail` then says why.
 * @throws PalisadeError `backend.missing` when a NAMED backend can't start; never a silent replacement.
 */
export async function pickBackend(
  choice: HostBackendChoice,
  options: PickOptions = {},
): Promise<Backend<Float32Array>> {
  if (choice === "ts") return createReferenceBackend();
  try {
    // Loaded only when wanted: the kernels are a quarter of a megabyte of text.
    if (options.pool) return await (await import("../wasm/threads/backend.ts")).createThreadedBackend(options.pool);
    return await (await import("../wasm/backend.ts")).createWasmBackend();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    if (choice === "auto") return explained(createReferenceBackend(), reason);
    throw resourceError("backend.missing", `The wasm backend can't start: ${reason}`, option("backend"), cause);
  }
}

/** The same backend, saying why the faster one is not there. */
function explained(backend: Backend<Float32Array>, reason: string): Backend<Float32Array> {
  return { ...backend, detail: `${backend.detail}; wasm can't start: ${reason.split("\n")[0]}` };
}
