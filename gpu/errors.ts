/** What can go wrong on a device, by the error that the caller sees. */
import { type PalisadeError, resourceError } from "../core/errors.ts";

/** No adapter, or one that lacks something. `looked`: what was looked for, and where. */
export function noDevice(looked: string, cause?: unknown): PalisadeError {
  return resourceError("gpu.missing", `There is no WebGPU device: ${looked}`, "", cause);
}

/** The device is gone: unplugged, reset, or its driver died. */
export function lostDevice(why: string): PalisadeError {
  return resourceError("gpu.lost", `The WebGPU device was lost: ${why}`);
}

/** The device has no memory left for what was asked. */
export function noMemory(held: number, why: string): PalisadeError {
  const mib = Math.ceil(held / 2 ** 20);
  return resourceError("gpu.memory", `The WebGPU device has no memory left (palisade holds ${mib} MiB on it): ${why}`);
}

/** More in one piece than the device can hold or a stage can see. */
export function tooLarge(what: string, bytes: number, limit: number): PalisadeError {
  return resourceError(
    "gpu.limit",
    `${what} of ${bytes} bytes is more than the ${limit} that the WebGPU device allows`,
  );
}

/** A stage that the device's compiler refuses. */
export function badStage(stage: string, why: string): PalisadeError {
  return resourceError("gpu.shader", `The WebGPU device can't compile ${stage}: ${why}`, stage);
}

/** A command that the device refuses, or an error of its own: a bug, here or there. */
export function refused(why: string): PalisadeError {
  return resourceError("gpu.command", `The WebGPU device refused a command: ${why}`);
}
