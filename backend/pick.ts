/** Picks the backend a user named, or the fastest that is there. */
import { resourceError } from "../core/errors.ts";
import type { Backend } from "./interface.ts";
import { createReferenceBackend } from "./reference.ts";

export const BACKEND_CHOICES = ["auto", "ts", "wasm"] as const;
export type BackendChoice = typeof BACKEND_CHOICES[number];

export interface PickOptions {
  /** Worker threads of the wasm backend; its own default when absent. */
  readonly threads?: number;
}

/** What the wasm importer exports. */
interface WasmModule {
  createWasmBackend(options: PickOptions): Backend | Promise<Backend>;
}

/**
 * `ts`: the plain backend. `wasm`: the kernels, or an error. `auto`: the kernels where they load, else `ts`, whose
 * `detail` then says why.
 * @throws PalisadeError `backend.missing` when a NAMED backend can't start; never a silent replacement.
 */
export async function pickBackend(choice: BackendChoice, options: PickOptions = {}): Promise<Backend> {
  if (choice === "ts") return createReferenceBackend();
  try {
    return await (await loadWasm()).createWasmBackend(options);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    if (choice === "auto") return explained(createReferenceBackend(), reason);
    throw resourceError("backend.missing", `The wasm backend can't start: ${reason}`, "--backend", cause);
  }
}

/** The same backend, saying why the faster one is not there. */
function explained(backend: Backend, reason: string): Backend {
  return { ...backend, detail: `${backend.detail}; wasm can't start: ${reason.split("\n")[0]}` };
}

async function loadWasm(): Promise<WasmModule> {
  // Not a literal, so that a checkout without built kernels still type-checks.
  const importer = "../wasm/kernels.ts";
  return await import(importer);
}
