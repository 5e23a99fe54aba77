/** What all measurements of a device share: figures, and times that wait for the device's work. */
import { readFileSync } from "node:fs";
import type { GpuDevice, ShaderFile } from "../../gpu/device.ts";

/** Tokens of an answer. */
export const ANSWER_TOKENS = 128;
/** About as many are read on an emulated device. */
export const EMULATED_TOKENS = 64;

/** A row of the table: a figure in a unit, and its share of a ceiling. */
export interface Figure {
  readonly what: string;
  readonly value: number;
  readonly unit: string;
  readonly ceiling?: number;
}

/** What the device can do at best: GB of copies, GFLOP of multiply-adds, a second. */
export interface Ceilings {
  readonly copy: number;
  readonly multiplyAdd: number;
}

/** Takes a figure as soon as it is known. */
export type Report = (figure: Figure) => void;

export function shader(name: string): ShaderFile {
  return { name, text: readFileSync(new URL(name, import.meta.url), "utf8") };
}

/** Runs of a piece of work at first, and the time that a run must take: what waiting takes is little beside it. */
const FIRST_RUNS = 4, LEAST_S = 0.06;

/**
 * Seconds of one `work` on the device, the median of three measurements, each of as many runs as take long beside the wait;
 * an emulated device runs it once. `work` is told how often it ran, so that it can go through buffers no cache holds.
 */
export async function seconds(gpu: GpuDevice, work: (run: number) => void): Promise<number> {
  return await secondsOf(work, () => gpu.settled(), gpu.info.emulated);
}

/** The same for any device, whose work is done when `settled` resolves. */
export async function secondsOf(
  work: (run: number) => void | Promise<void>,
  settled: () => Promise<unknown>,
  emulated: boolean,
): Promise<number> {
  const runs = async (many: number) => {
    const start = performance.now();
    for (let i = 0; i < many; i++) await work(i);
    await settled();
    return (performance.now() - start) / 1000;
  };
  if (emulated) return await runs(1);
  const idle = Math.min(...[await runs(0), await runs(0)]);
  let many = FIRST_RUNS;
  await runs(1);
  for (let took = await runs(many); took - idle < LEAST_S && many < 4096; took = await runs(many)) {
    many = Math.ceil(many * Math.min(16, 1.2 * LEAST_S / Math.max(took - idle, 1e-4)));
  }
  const times: number[] = [];
  for (let i = 0; i < 3; i++) times.push((await runs(many) - idle) / many);
  return times.sort((a, b) => a - b)[1];
}

/** Bytes of numbers that look like a model's weights to every tensor type: no scale is large, infinite or none. */
export function weightLike(bytes: number): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(bytes);
  for (let i = 0, state = 1; i < bytes; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    all[i] = (state >>> 24) & 0x3b;
  }
  return all;
}

export function noise(count: number): Float32Array<ArrayBuffer> {
  const all = new Float32Array(count);
  for (let i = 0, state = 7; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    all[i] = state / 2 ** 31 - 1;
  }
  return all;
}
