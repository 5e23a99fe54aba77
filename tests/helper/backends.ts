/** Every backend this runtime can start, for the suites that run over all of them. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { Backend } from "../../backend/interface.ts";
import { createReferenceBackend } from "../../backend/reference.ts";
import { hasRelaxedSimd } from "../../runtime/simd.ts";
import { createWasmBackend } from "../../wasm/kernels.ts";
import { skipped } from "./skip.ts";

export interface NamedBackend {
  readonly name: string;
  start(): Promise<Backend>;
}

/** The kernels with bounds, overflow and debug checks on. */
export async function checkedModule(): Promise<Uint8Array<ArrayBuffer>> {
  const path = fileURLToPath(new URL("../data/kernels_checked.wasm", import.meta.url));
  return new Uint8Array(await readFile(path));
}

export const KERNEL_BACKENDS: readonly NamedBackend[] = [
  { name: "wasm simd128", start: () => createWasmBackend({ simd: "simd128" }) },
  { name: "wasm relaxed", start: () => createWasmBackend({ simd: "relaxed" }) },
  { name: "wasm checked", start: async () => createWasmBackend({ module: await checkedModule() }) },
].filter(({ name }) => name !== "wasm relaxed" || hasRelaxedSimd());

if (!hasRelaxedSimd()) skipped("the relaxed kernels equal the plain backend", "no relaxed SIMD here", "device");

export const ALL_BACKENDS: readonly NamedBackend[] = [
  { name: "ts", start: () => Promise.resolve(createReferenceBackend()) },
  ...KERNEL_BACKENDS,
];
