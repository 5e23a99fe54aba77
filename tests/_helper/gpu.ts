/** WebGPU adapters for tests: emulators, so shapes are tiny and nothing is timed. */
import { findGpu } from "../../runtime/gpu.ts";
import { type GpuDevice, openGpu, type OpenOptions } from "../../gpu/device.ts";
import { skipped } from "./skip.ts";

const found = await findGpu();
/** Whether this process finds an adapter. CI installs one, so that there a missing one is a failure. */
export const HAS_GPU = "gpu" in found && (await found.gpu.requestAdapter()) !== null;
export const NO_GPU = "no WebGPU adapter on this machine: tools/install_test_tools.sh installs one that is emulated";

/** A test on a device of its own, which is closed afterwards. */
export function gpuTest(name: string, body: (gpu: GpuDevice) => void | Promise<void>, options?: OpenOptions): void {
  if (!HAS_GPU) return skipped(name, NO_GPU);
  Deno.test(name, async () => {
    using gpu = await openGpu(options);
    await body(gpu);
  });
}

/**
 * Work in which the event loop turns only where something is waited for: a clock that stands still keeps `breathe` from
 * turning it. So a device's answer isn't heard earlier when this side is slow, and waits can be counted.
 */
export async function unhurried<T>(work: () => Promise<T>): Promise<T> {
  const still = performance.now(), { performance: clock } = globalThis;
  Object.defineProperty(clock, "now", { value: () => still, configurable: true });
  try {
    return await work();
  } finally {
    delete (clock as { now?: unknown }).now;
  }
}
