/** Every backend this runtime can start, for the suites that run over all of them. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { Backend } from "../../core/backend/interface.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import { type GpuDevice, openGpu } from "../../gpu/device.ts";
import { hasRelaxedSimd } from "../../runtime/features.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { ThreadPool } from "../../wasm/threads/pool.ts";
import { createWasmBackend } from "../../wasm/backend.ts";
import { createThreadedBackend } from "../../wasm/threads/backend.ts";
import type { ThreadCost } from "../../wasm/threads/cost.ts";
import { AwkwardMemory, createAwkwardBackend } from "./awkward_device.ts";
import { HAS_GPU, NO_GPU } from "./gpu.ts";
import { partedBackend } from "./parted.ts";
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

/** A backend on the device of this process, which is closed with it. */
async function startOnGpu(make: (gpu: GpuDevice) => Backend<Float32Array>): Promise<Backend<Float32Array>> {
  const gpu = await openGpu(), backend = make(gpu);
  return {
    ...backend,
    [Symbol.dispose]() {
      backend[Symbol.dispose]();
      gpu[Symbol.dispose]();
    },
  };
}

const ON_GPU = { slow: true, turnsInFloat32: true };

/** The device of this process, its tensors counted. */
export const WEBGPU_BACKEND: NamedBackend = {
  name: "webgpu",
  ...ON_GPU,
  start: () =>
    startOnGpu((gpu) => {
      const inner = createGpuBackend(gpu);
      return onThisSide(inner, () => inner.tensors.alive);
    }),
};

/** The same as if no stage could see more than a page of a head's rows. */
const PARTED_BACKEND: NamedBackend = {
  name: "webgpu, heads in parts",
  ...ON_GPU,
  start: () => startOnGpu((gpu) => partedBackend(gpu, 1)),
};

if (!HAS_GPU) skipped("the WebGPU backend equals the plain one", NO_GPU);

export const ALL_BACKENDS: readonly NamedBackend[] = [
  { name: "ts", start: () => Promise.resolve(createReferenceBackend()) },
  ...KERNEL_BACKENDS,
  ...(HAS_GPU ? [WEBGPU_BACKEND, PARTED_BACKEND] : []),
  AWKWARD_BACKEND,
];
