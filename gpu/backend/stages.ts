/** What the backend's stages have in common. */
import type { CacheType } from "../../core/cache/entry_type.ts";

/** `KIND` in the stages. */
export const KINDS: Readonly<Record<CacheType, number>> = { f32: 0, f16: 1, int8: 2 };

/** Most workgroups in one direction. */
export const MOST_GROUPS = 65535;

/** Workgroups of 64 for so many invocations, in rows where one direction is not enough. */
export function spread(invocations: number, size = 64): [number, number] {
  const groups = Math.ceil(invocations / size), rows = Math.max(1, Math.ceil(groups / MOST_GROUPS));
  return [Math.ceil(groups / rows), rows];
}
