/** Whether `navigator.gpu` gives an adapter. Same code in every runtime. */
import type { GpuProbe } from "./interface.ts";

/** The part of WebGPU (W3C, "GPUAdapterInfo") this file reads. */
interface AdapterLike {
  readonly info?: {
    vendor?: string;
    architecture?: string;
    device?: string;
    description?: string;
    isFallbackAdapter?: boolean;
  };
  readonly isFallbackAdapter?: boolean;
}

interface GpuLike {
  requestAdapter(options?: { powerPreference?: "high-performance" }): Promise<AdapterLike | null>;
}

/** Rasterisers that run on the CPU; not every runtime calls them a fallback. */
const SOFTWARE = /\b(llvmpipe|lavapipe|swiftshader|softpipe|microsoft basic render)/i;

/** Never rejects; answers within `timeoutMs` even when the driver does not. */
export async function probeGpu(timeoutMs = 3000): Promise<GpuProbe> {
  const gpu = (globalThis as { navigator?: { gpu?: GpuLike } }).navigator?.gpu;
  if (!gpu) return { available: false, reason: "this runtime has no WebGPU (navigator.gpu is missing)" };
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<"late">((resolve) => {
    timer = setTimeout(() => resolve("late"), timeoutMs);
  });
  try {
    const adapter = await Promise.race([gpu.requestAdapter({ powerPreference: "high-performance" }), late]);
    if (adapter === "late") return { available: false, reason: `no WebGPU adapter answered within ${timeoutMs} ms` };
    if (adapter === null) {
      return { available: false, reason: "WebGPU is there, but it finds no adapter (GPU or driver)" };
    }
    return { available: true, ...describe(adapter) };
  } catch (error) {
    return { available: false, reason: `asking for a WebGPU adapter failed: ${(error as Error).message ?? error}` };
  } finally {
    clearTimeout(timer);
  }
}

/** Some runtimes tell the vendor as a number (65541 is Mesa's), which says nothing to people. */
function describe(adapter: AdapterLike): { description: string; fallback: boolean } {
  const info = adapter.info ?? {};
  const words = [info.vendor, info.architecture, info.description || info.device];
  const name = words.filter((word) => word && !/^(0x[\da-f]+|\d+)$/i.test(word)).join(" ") || "unnamed adapter";
  const fallback = (info.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false) || SOFTWARE.test(name);
  return { description: fallback ? `software only: ${name}` : name, fallback };
}
