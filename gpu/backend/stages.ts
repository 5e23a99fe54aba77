/** What the backend's stages have in common. */
import type { CacheType } from "../../core/cache/entry_type.ts";
import type { GpuDevice } from "../device.ts";
import { tooLarge } from "../errors.ts";

/** Types that the stages know, in the order of their `KIND`: keys and values alike. */
const KINDS = ["f32", "f16", "int8"] as const;

/** `KIND` in the stages. @throws RangeError for a type that they don't know. */
export function kindOf(type: CacheType): number {
  const kind = KINDS.findIndex((each) => each === type);
  if (kind < 0) throw new RangeError(`The WebGPU backend has no rows of type ${type}`);
  return kind;
}

/** @throws PalisadeError `gpu.limit` for numbers of `what` that no stage of the device could see together. */
export function checkSeen({ info: { maxBinding } }: Pick<GpuDevice, "info">, what: string, bytes: number): void {
  if (bytes > maxBinding) throw tooLarge(what, bytes, maxBinding);
}

/** Most workgroups in one direction. */
export const MOST_GROUPS = 65535;

/** Workgroups of 64 for so many invocations, in rows where one direction is not enough. */
export function spread(invocations: number, size = 64): [number, number] {
  const groups = Math.ceil(invocations / size), rows = Math.max(1, Math.ceil(groups / MOST_GROUPS));
  return [Math.ceil(groups / rows), rows];
}
