/** Every backend this runtime can start, for the suites that run over all of them. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { Backend } from "../../core/backend/interface.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import { openGpu } from "../../gpu/device.ts";
import { hasRelaxedSimd } from "../../runtime/features.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { ThreadPool } from "../../wasm/threads/pool.ts";
import { createWasmBackend } from "../../wasm/backend.ts";
import { createThreadedBackend } from "../../wasm/threads/backend.ts";
import type { ThreadCost } from "../../wasm/threads/cost.ts";
import { AwkwardMemory, createAwkwardBackend } from "./awkward_device.ts";
import { HAS_GPU, NO_GPU } from "./gpu.ts";
import { skipped } from "./skip.ts";
import { onThisSide } from "./this_side.ts";

export interface NamedBackend {
  readonly name: string;
  /** True where every type of rows goes through the same code as another backend's, so that one is enough. */
  readonly oneType?: boolean;
  /** True for an emulated device: fewer and smaller runs. */
  readonly slow?: boolean;
  /** True where turned keys are computed in float32, and so may be rounded otherwise. */
  readonly turnsInFloat32?: boolean;
  start(): Promise<Backend<Float32Array>>;
}

/** The kernels with bounds, overflow and debug checks on. */
export async function checkedModule(): Promise<Uint8Array<ArrayBuffer>> {
  const path = fileURLToPath(new URL("../data/kernels_checked.wasm", import.meta.url));
  return new Uint8Array(await readFile(path));
}

/** The kernels over several threads, which end with the backend. */
export async function startThreaded(threads: number, cost?: ThreadCost): Promise<Backend<Float32Array>> {
  const { startThread } = await currentRuntime();
  const pool = await ThreadPool.start({ threads, startThread });
  const backend = await createThreadedBackend(pool, cost);
  return { ...backend, [Symbol.dispose]: () => pool[Symbol.dispose]() };
}

export const KERNEL_BACKENDS: readonly NamedBackend[] = [
  { name: "wasm simd128", start: () => createWasmBackend({ simd: "simd128" }) },
  { name: "wasm relaxed", start: () => createWasmBackend({ simd: "relaxed" }) },
  { name: "wasm checked", start: async () => createWasmBackend({ module: await checkedModule() }) },
  { name: "wasm, 2 threads", oneType: true, start: () => startThreaded(2) },
  { name: "wasm, 3 threads", oneType: true, start: () => startThreaded(3) },
].filter(({ name }) => name !== "wasm relaxed" || hasRelaxedSimd());

if (!hasRelaxedSimd()) skipped("the relaxed kernels equal the plain backend", "no relaxed SIMD here", "device");

/** The plain backend behind handles, its tensors counted. */
export const AWKWARD_BACKEND: NamedBackend = {
  name: "awkward, behind handles",
  start() {
    const memory = new AwkwardMemory();
    return Promise.resolve(onThisSide(createAwkwardBackend(memory), () => memory.alive));
  },
};

/** The device of this process, its tensors counted; closed with the backend. */
export const WEBGPU_BACKEND: NamedBackend = {
  name: "webgpu",
  slow: true,
  turnsInFloat32: true,
  async start() {
    const gpu = await openGpu(), inner = createGpuBackend(gpu);
    const backend = onThisSide(inner, () => inner.tensors.alive);
    return {
      ...backend,
      [Symbol.dispose]() {
        backend[Symbol.dispose]();
        gpu[Symbol.dispose]();
      },
    };
  },
};

if (!HAS_GPU) skipped("the WebGPU backend equals the plain one", NO_GPU);

export const ALL_BACKENDS: readonly NamedBackend[] = [
  { name: "ts", start: () => Promise.resolve(createReferenceBackend()) },
  ...KERNEL_BACKENDS,
  ...(HAS_GPU ? [WEBGPU_BACKEND] : []),
  AWKWARD_BACKEND,
];
