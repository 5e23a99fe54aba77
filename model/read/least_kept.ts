/** What stays where nothing is asked for: a share of the context, but neither too few entries nor too few places. */
import { parseKeep } from "../../core/select/budget.ts";
import { globalShape, type ModelShape } from "../../core/shape.ts";
import { DEFAULTS } from "../defaults.ts";

/** Room for the rounding error of `share · tokens`. */
const SLACK = 1e-9;

/**
 * Entries per head that stay of `tokens` tokens whatever {@link DEFAULTS.keep} comes to: `leastKept`, and the share that
 * gives each token `leastPlaces` places among the heads that evict. A model with windows may have three such heads, and
 * what one of them lets go of no other has: bench/results/few-heads.md.
 */
export function leastKept(tokens: number, config: ModelShape): number {
  return Math.min(tokens, Math.max(DEFAULTS.leastKept, Math.floor(tokens * leastShare(config) + SLACK)));
}

/** The share of a head's entries that gives each token `leastPlaces` places; all where no head evicts. */
export function leastShare(config: ModelShape): number {
  return Math.min(1, DEFAULTS.leastPlaces / evictingHeads(config));
}

/** KV heads of the layers that look at everything. */
export function evictingHeads(config: ModelShape): number {
  const { layers, kvHeads } = globalShape(config);
  return layers * kvHeads;
}

/** Whether that is more than {@link DEFAULTS.keep}. */
export function hasFewHeads(config: ModelShape): boolean {
  return leastShare(config) > usualShare();
}

/** The share of the context that the default budget comes to. */
export function defaultShare(tokens: number, config: ModelShape): number {
  return Math.max(usualShare(), leastKept(tokens, config) / Math.max(1, tokens));
}

function usualShare(): number {
  const share = parseKeep(DEFAULTS.keep);
  return "fraction" in share ? share.fraction : 1;
}
