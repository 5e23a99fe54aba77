/** Where WebGPU comes from: the runtime itself, or the npm package `webgpu` where that is installed (Node, Bun). */

/** As a string, so that no bundler follows it; optional in package.json. */
const PACKAGE: string = "webgpu";

interface WebGpuPackage {
  create(flags: string[]): GPU;
  readonly globals: Record<string, unknown>;
}

/** WebGPU's entry point, or why there is none. */
export type GpuEntry = { readonly gpu: GPU } | { readonly reason: string };

/** Never rejects. `load` stands in for the import in tests. */
export async function findGpu(load: () => Promise<unknown> = () => import(PACKAGE)): Promise<GpuEntry> {
  const own = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (own) return { gpu: own };
  if (typeof (globalThis as { process?: unknown }).process !== "object") {
    return { reason: "this runtime has no WebGPU (navigator.gpu is missing)" };
  }
  try {
    const { create, globals } = await load() as WebGpuPackage;
    // The package's classes and constants (GPUBufferUsage …) are looked up by name.
    for (const [name, value] of Object.entries(globals)) {
      if (!(name in globalThis)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
    }
    return { gpu: create([]) };
  } catch (error) {
    const why = (error instanceof Error ? error.message : String(error)).split("\n")[0];
    return { reason: `navigator.gpu is missing, and the npm package ${PACKAGE} can't be loaded: ${why}` };
  }
}

/**
 * Does something that may load Vulkan's loader, which complains on standard error where `XDG_RUNTIME_DIR` is not set: it is
 * set meanwhile.
 */
export async function withoutComplaints<T>(work: () => Promise<T>): Promise<T> {
  const env = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env;
  const quiet = env !== undefined && setUnset(env, "XDG_RUNTIME_DIR", "/tmp");
  try {
    return await work();
  } finally {
    if (quiet) delete env["XDG_RUNTIME_DIR"];
  }
}

/** Whether the variable was unset, and could be set. */
function setUnset(env: Record<string, string | undefined>, name: string, value: string): boolean {
  try {
    if (env[name] !== undefined) return false;
    env[name] = value;
    return true;
  } catch {
    return false;
  }
}
