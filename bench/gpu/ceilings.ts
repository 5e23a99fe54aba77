/** What a device can do at best, by a copy and by multiply-adds in registers; and what its runtime takes for itself. */
import type { GpuDevice } from "../../gpu/device.ts";
import { type Ceilings, noise, type Report, seconds, shader } from "./measure.ts";

export async function ceilings(gpu: GpuDevice, report: Report): Promise<Ceilings> {
  const copy = await copyCeiling(gpu);
  report({ what: "copy", value: copy, unit: "GB/s" });
  const multiplyAdd = await multiplyAddCeiling(gpu);
  report({ what: "multiply-add", value: multiplyAdd, unit: "GFLOP/s" });
  return { copy, multiplyAdd };
}

async function copyCeiling(gpu: GpuDevice): Promise<number> {
  const bytes = gpu.info.emulated ? 2 ** 20 : Math.min(2 ** 28, 2 ** Math.floor(Math.log2(gpu.info.maxBinding)));
  const [from, to] = [gpu.own(bytes), gpu.own(bytes)], stage = gpu.stage(shader("copy.wgsl")), count = bytes / 16;
  gpu.write(from, 0, noise(bytes / 4));
  const rows = Math.ceil(count / 1024 / 65535), groups = [Math.ceil(count / 1024 / rows), rows] as const;
  const time = await seconds(gpu, () => gpu.run(stage, { params: [count], buffers: [from, to], groups }));
  for (const buffer of [from, to]) gpu.destroy(buffer);
  return 2 * bytes / time / 1e9;
}

async function multiplyAddCeiling(gpu: GpuDevice): Promise<number> {
  const count = gpu.info.emulated ? 256 : 2 ** 20, steps = gpu.info.emulated ? 4 : 1024;
  const from = gpu.own(32), to = gpu.own(16 * count), stage = gpu.stage(shader("multiply_add.wgsl"));
  gpu.write(from, 0, Float32Array.of(0.999, 0.998, 0.997, 0.996, 0.1, 0.2, 0.3, 0.4));
  const call = { params: [count, steps], buffers: [from, to], groups: [count / 256] as const };
  const time = await seconds(gpu, () => gpu.run(stage, call));
  for (const buffer of [from, to]) gpu.destroy(buffer);
  return 2 * 16 * count * steps / time / 1e9;
}

/** Microseconds of a stage that does next to nothing, one after another: recorded here, and run there; and of a wait. */
export async function overheads(gpu: GpuDevice, report: Report): Promise<void> {
  const [from, to] = [gpu.own(4096), gpu.own(4096)], stage = gpu.stage(shader("copy.wgsl"));
  const call = (i: number) => ({ params: [256], buffers: i % 2 ? [from, to] : [to, from], groups: [1] as const });
  const time = await seconds(gpu, (i) => gpu.run(stage, call(i)));
  report({ what: "a stage that does nothing", value: 1e6 * time, unit: "µs" });
  const start = performance.now();
  for (let i = 0; i < 1024; i++) gpu.run(stage, call(i));
  report({ what: "a stage recorded", value: (performance.now() - start) / 1.024, unit: "µs" });
  await gpu.settled();
  const waits = performance.now();
  for (let i = 0; i < 5; i++) await gpu.read(from, 0, 4);
  report({ what: "a wait", value: 200 * (performance.now() - waits), unit: "µs" });
  for (const buffer of [from, to]) gpu.destroy(buffer);
}
