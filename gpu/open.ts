/** An adapter and its device: what was found, with which features and limits. */
import type { GpuEntry } from "../runtime/gpu.ts";
import { findGpu, withoutComplaints } from "../runtime/gpu.ts";
import { noDevice } from "./errors.ts";

/** Features that the stages have variants for. */
export interface GpuFeatures {
  /** `shader-f16`: 16-bit floats in stages. */
  readonly f16: boolean;
  /** `subgroups`: sums over the invocations that run in step. */
  readonly subgroups: boolean;
}

/** What is known of a device, for people and for choices. */
export interface GpuInfo {
  readonly description: string;
  /** True for a rasteriser that runs on the CPU: right, and slow. */
  readonly emulated: boolean;
  readonly features: GpuFeatures;
  /** Largest buffer that a stage can see, bytes. */
  readonly maxBinding: number;
  /** Largest buffer, bytes. */
  readonly maxBuffer: number;
}

export interface OpenOptions {
  /** Uses fewer features than there are. */
  readonly without?: readonly (keyof GpuFeatures)[];
  /** Instead of the runtime's own, for tests. */
  readonly entry?: GpuEntry;
}

export interface OpenedDevice {
  readonly device: GPUDevice;
  readonly info: GpuInfo;
  /** To be held as long as the device: Dawn's device in Node does not outlive its instance. */
  readonly instance?: unknown;
}

/** Limits that palisade uses more of where there is more: for the rest WebGPU's own minimum is enough. */
const LIMITS = ["maxStorageBufferBindingSize", "maxBufferSize", "maxStorageBuffersPerShaderStage"] as const;
/** How long an adapter is waited for, seconds. */
const PATIENCE = 10;
/** Storage buffers that a stage may use. */
const BUFFERS = 10;
/** Rasterisers that run on the CPU; not every runtime calls them a fallback. */
const SOFTWARE = /\b(llvmpipe|lavapipe|swiftshader|softpipe|microsoft basic render)/i;

/** @throws PalisadeError `gpu.missing`. */
export async function openDevice({ without = [], entry }: OpenOptions = {}): Promise<OpenedDevice> {
  const found = entry ?? await findGpu();
  const { adapter, info } = await findAdapter(found);
  const features: GPUFeatureName[] = [];
  const f16 = info.features.f16 && !without.includes("f16");
  const subgroups = info.features.subgroups && !without.includes("subgroups");
  if (f16) features.push("shader-f16");
  if (subgroups) features.push("subgroups" as GPUFeatureName);
  const requiredLimits = Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]]));
  try {
    const device = await withoutComplaints(() => adapter.requestDevice({ requiredFeatures: features, requiredLimits }));
    return { device, info: { ...info, features: { f16, subgroups } }, instance: [found, adapter] };
  } catch (cause) {
    throw noDevice(`${info.description} gives none (${cause instanceof Error ? cause.message : cause})`, cause);
  }
}

/** What the adapter at hand is like; nothing is opened. @throws PalisadeError `gpu.missing`. */
export async function lookForDevice(entry?: GpuEntry): Promise<GpuInfo> {
  return (await findAdapter(entry ?? await findGpu())).info;
}

async function findAdapter(entry: GpuEntry): Promise<{ adapter: GPUAdapter; info: GpuInfo }> {
  if ("reason" in entry) throw noDevice(entry.reason);
  const { gpu } = entry;
  const adapter = await withoutComplaints(() => inTime(gpu.requestAdapter({ powerPreference: "high-performance" })));
  if (!adapter) throw noDevice("WebGPU is there, but it finds no adapter (GPU or driver)");
  const buffers = adapter.limits.maxStorageBuffersPerShaderStage;
  const { description, emulated } = describeAdapter(adapter.info ?? {});
  if (buffers < BUFFERS) throw noDevice(`${description} lets a stage use ${buffers} buffers: want ${BUFFERS}`);
  const info: GpuInfo = {
    description,
    emulated,
    features: { f16: adapter.features.has("shader-f16"), subgroups: adapter.features.has("subgroups") },
    maxBinding: Math.min(adapter.limits.maxStorageBufferBindingSize, adapter.limits.maxBufferSize),
    maxBuffer: adapter.limits.maxBufferSize,
  };
  return { adapter, info };
}

/** A driver that hangs must not hang the caller. */
async function inTime(asked: Promise<GPUAdapter | null>): Promise<GPUAdapter | null> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(noDevice(`no adapter answered within ${PATIENCE} s`)), 1000 * PATIENCE);
  });
  try {
    return await Promise.race([asked, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Some runtimes tell vendor and architecture as numbers (65541 is Mesa's), which say nothing to people. */
export function describeAdapter(info: Partial<GPUAdapterInfo>): { description: string; emulated: boolean } {
  const words = [info.vendor, info.architecture, info.description || info.device];
  const description = words.filter((word) => word && !/^(0x[\da-f]+|\d+)$/i.test(String(word))).join(" ") || "unnamed";
  const fallback = (info as { isFallbackAdapter?: boolean }).isFallbackAdapter ?? false;
  return { description, emulated: fallback || SOFTWARE.test(description) };
}
