/** Starts what runs a model, of one place: this side, or a WebGPU device. */
import { option, PalisadeError, say } from "../core/errors.ts";
import { adviceFor } from "../core/policy/nearest_name.ts";
import { openGpu } from "../gpu/device.ts";
import type { Runtime } from "../runtime/interface.ts";
import type { ModelConfig } from "./config.ts";
import { DEFAULTS } from "./defaults.ts";
import { HostDense } from "./dense/host.ts";
import { perLayerBytes } from "./dense/embedding.ts";
import { neededBytes } from "./dense/needed.ts";
import { DENSE_CHOICES, type DenseChoice, type DensePrecision, type HostDenseChoice, pickDense } from "./dense/pick.ts";
import { BACKEND_CHOICES, type BackendChoice, type Device, type HostBackendChoice, pickBackend } from "./device.ts";
import type { HostDenseName } from "./dense/interface.ts";
import type { Modules } from "./needed_memory.ts";
import type { GgufFile } from "./file/gguf/reader.ts";
import type { judgeGpu } from "./gpu_choice.ts";
import { startPool, type ThreadChoice } from "./threads.ts";

export interface DeviceOptions {
  /** Default `auto`. */
  readonly backend?: BackendChoice;
  /** Default `auto`. */
  readonly dense?: DenseChoice;
  readonly oneEngine?: boolean;
  readonly precision?: DensePrecision;
  readonly threads?: ThreadChoice;
  /** Called with the bytes of weights there will be at least, before any is read, and where they and the cache will be. */
  readonly onNeeded?: (weights: number, modules: Modules) => void;
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
  /** Hears why `auto` goes on without the WebGPU device that it had taken. */
  readonly onDeviceLost?: (why: string) => void;
  /** Whether `auto` takes a WebGPU device, for tests. */
  readonly judge?: typeof judgeGpu;
}

/** A device that ends with all it started. */
export interface StartedDevice extends Device, AsyncDisposable {
  /**
   * Where `auto` took a WebGPU device and `error` is that device's: starts this side in its place, so that both halves are
   * others from then on. Resolves with whether it did; the same work may then be tried again.
   */
  recover?(error: unknown): Promise<boolean>;
}

/**
 * The device that the two choices name, with the model's weights. `webgpu` for one of them is `webgpu` for both.
 * PalisadeErrors: `device.unknown` (usage) for a name that is none, `device.halves` (usage) for halves of two places,
 * `gpu.*`, `backend.*`, `dense.*`, `threads.*`, `memory.short`, `gguf.*`. Nothing is kept on failure.
 */
export async function startDevice(
  file: GgufFile,
  config: ModelConfig,
  runtime: Runtime,
  options: DeviceOptions = {},
): Promise<StartedDevice> {
  const { backend = DEFAULTS.backend, dense = DEFAULTS.dense } = options;
  checkChoice("backend", backend, BACKEND_CHOICES);
  checkChoice("dense", dense, DENSE_CHOICES);
  if (backend !== "webgpu" && dense !== "webgpu") {
    // Results that are set beside earlier ones are made where those were.
    const free = backend === "auto" && dense === "auto" && !options.oneEngine;
    if (free && await isWanted(runtime, options)) return await startAuto(file, config, runtime, options);
    return await startHere(file, config, runtime, { ...options, backend, dense });
  }
  for (const [name, choice] of [["backend", backend], ["dense", dense]] as const) {
    if (choice === "webgpu" || choice === "auto") continue;
    const other = option(name === "backend" ? "dense" : "backend");
    const message = say`${
      option(name)
    } can't be ${choice} where ${other} is webgpu: what one computes stays on the device`;
    throw new PalisadeError("usage", "device.halves", message, { where: option(name) });
  }
  return await startGpu(file, config, options);
}

function checkChoice(name: "backend" | "dense", choice: string, choices: readonly string[]): void {
  if (choices.includes(choice)) return;
  const hint = adviceFor(String(choice), choices, `want ${choices.join(", ")}`);
  const message = say`${option(name)} can't be ${JSON.stringify(choice)}; ${hint}`;
  throw new PalisadeError("usage", "device.unknown", message, { where: option(name) });
}

async function isWanted(runtime: Runtime, { judge }: DeviceOptions): Promise<boolean> {
  // Loaded only when wanted: it measures the kernels too.
  const { taken } = await (judge ?? (await import("./gpu_choice.ts")).judgeGpu)(runtime);
  return taken;
}

/** A WebGPU device as long as it lasts, then this side. */
async function startAuto(
  file: GgufFile,
  config: ModelConfig,
  runtime: Runtime,
  options: DeviceOptions,
): Promise<StartedDevice> {
  const here = async (why: string) => {
    options.onDeviceLost?.(why);
    return explained(await startHere(file, config, runtime, { ...options, backend: "auto", dense: "auto" }), why);
  };
  let now: StartedDevice;
  try {
    now = await startGpu(file, config, options);
  } catch (error) {
    if (!isOfGpu(error)) throw error;
    return await here(error.message);
  }
  let moved: Promise<void> | undefined;
  const move = async (why: string) => {
    const lost = now;
    now = await here(why);
    await lost[Symbol.asyncDispose]();
  };
  return {
    get backend() {
      return now.backend;
    },
    get dense() {
      return now.dense;
    },
    async recover(error) {
      if (!isOfGpu(error)) return false;
      await (moved ??= move(error.message));
      return true;
    },
    [Symbol.asyncDispose]: () => now[Symbol.asyncDispose](),
  };
}

function isOfGpu(error: unknown): error is PalisadeError {
  return error instanceof PalisadeError && error.code.startsWith("gpu.");
}

/** The same device, saying why it is not the WebGPU one. */
function explained(device: StartedDevice, why: string): StartedDevice {
  return { ...device, backend: { ...device.backend, detail: `${device.backend.detail}; ${why}` } };
}

/** Kernels and dense engine on this side, over a pool of threads where there is one. */
async function startHere(
  file: GgufFile,
  config: ModelConfig,
  runtime: Runtime,
  options: DeviceOptions & { readonly backend: HostBackendChoice; readonly dense: HostDenseChoice },
): Promise<StartedDevice> {
  const { threads = DEFAULTS.threads } = options, pool = await startPool(runtime, threads);
  let backend: Device<Float32Array>["backend"] | undefined;
  try {
    backend = await pickBackend(options.backend, { pool });
    const count = threads === "auto" ? 1 : threads, { limitBytes } = runtime.memory();
    const started = backend, modules = pool?.size ?? 1;
    const onNeeded = (weights: number, engine: HostDenseName) =>
      options.onNeeded?.(weights, {
        weightModules: engine === "wasm" || engine === "mixed" ? modules : 0,
        outsideBytes: perLayerBytes(file, config),
        cacheModules: started.name === "wasm" ? modules : 0,
      });
    const dense = new HostDense(
      await pickDense(file, config, {
        ...options,
        threads: count,
        pool,
        limitBytes,
        onNeeded,
        tensors: started.tensors,
      }),
      started.tensors,
    );
    return {
      backend: started,
      dense,
      async [Symbol.asyncDispose]() {
        await dense[Symbol.asyncDispose]();
        started[Symbol.dispose]();
        pool?.[Symbol.dispose]();
      },
    };
  } catch (error) {
    backend?.[Symbol.dispose]();
    pool?.[Symbol.dispose]();
    throw error;
  }
}

/** Both halves on a WebGPU device. */
async function startGpu(file: GgufFile, config: ModelConfig, options: DeviceOptions): Promise<StartedDevice> {
  // Loaded only when wanted: the stages are text.
  const [{ createGpuBackend }, { createGpuDense }] = await Promise.all([
    import("../gpu/backend/backend.ts"),
    import("./dense/gpu/engine.ts"),
  ]);
  const gpu = await openGpu();
  options.onNeeded?.(neededBytes(file, "webgpu", "blocks"), { weightModules: 0, cacheModules: 0 });
  try {
    const host = await pickBackend("auto"), backend = createGpuBackend(gpu, { host });
    const dense = await createGpuDense(file, config, gpu, backend.tensors, options);
    return {
      backend,
      dense,
      async [Symbol.asyncDispose]() {
        await dense[Symbol.asyncDispose]();
        backend[Symbol.dispose]();
        host[Symbol.dispose]();
        gpu[Symbol.dispose]();
      },
    };
  } catch (error) {
    gpu[Symbol.dispose]();
    throw error;
  }
}
