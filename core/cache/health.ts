/**
 * How far a cache is from a contiguous one inside the trained context: after Poudel, arXiv 2511.04686. Window layers don't
 * count: they hold all that they can look back to.
 */
import { SINKS } from "../policy/parameters.ts";
import type { RaggedCache } from "./ragged.ts";

/** How far a cache is from a contiguous one. */
export interface Health {
  /** Entries held of all that were ever appended to global layers, 0 … 1. */
  readonly keptFraction: number;
  /** Most tokens missing in a row in front of a kept one, in any head. */
  readonly largestGap: number;
  /** Logical position of the next token: what the trained context is to be compared with. */
  readonly position: number;
  readonly trained: number;
  /** Heads, over all global layers, that hold every one of the first tokens (4, or all there are). */
  readonly headsWithSinks: number;
  readonly heads: number;
}

/** Reads the state of a cache for a model trained on `trained` tokens. O(entries). */
export function healthOf(cache: RaggedCache, trained: number): Health {
  const { globals, shape: { kvHeads } } = cache, heads = globals.length * kvHeads;
  const sinks = Math.min(Number(SINKS.default), cache.seen);
  let largestGap = 0, headsWithSinks = 0;
  for (const layer of globals) {
    for (let head = 0; head < kvHeads; head++) {
      const positions = cache.positions(layer, head);
      if (sinks === 0 || positions[sinks - 1] === sinks - 1) headsWithSinks++;
      for (let i = 0, before = -1; i < positions.length; before = positions[i++]) {
        largestGap = Math.max(largestGap, positions[i] - before - 1);
      }
    }
  }
  const all = cache.seen * heads;
  return {
    keptFraction: all === 0 ? 1 : cache.globalEntries() / all,
    largestGap,
    position: cache.position,
    trained,
    headsWithSinks,
    heads,
  };
}
