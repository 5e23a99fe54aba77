/** What stays where nothing is asked for: a share of the context, but neither too few entries nor too few places. */
import { parseKeep } from "../../core/select/budget.ts";
import { globalShape, type ModelShape } from "../../core/shape.ts";
import { DEFAULTS } from "../defaults.ts";

/** Room for the rounding error of `share · tokens`. */
const SLACK = 1e-9;

/**
 * Entries per head that stay of `tokens` tokens whatever {@link DEFAULTS.keep} comes to: `leastKept`, and as many as give
 * each token `leastPlaces` places among the heads that evict. A model with windows may have three such heads, and what
 * one of them lets go of no other has: bench/results/few-heads.md.
 */
export function leastKept(tokens: number, config: ModelShape): number {
  const { layers, kvHeads } = globalShape(config);
  // Where no head evicts, all of them.
  const share = Math.min(1, DEFAULTS.leastPlaces / (layers * kvHeads));
  return Math.min(tokens, Math.max(DEFAULTS.leastKept, Math.ceil(tokens * share - SLACK)));
}

/** The share of the context that the default budget comes to. */
export function defaultShare(tokens: number, config: ModelShape): number {
  const share = parseKeep(DEFAULTS.keep), fraction = "fraction" in share ? share.fraction : 1;
  return Math.max(fraction, leastKept(tokens, config) / Math.max(1, tokens));
}
