/**
 * The statistical worst case of `riskWorst` with a gate: below which score an entry may go so that, with a stated
 * probability, nothing important is lost. Split conformal over whole texts (`core/worst_case/conformal.ts`).
 */
import { conformalQuantile, evictBelow } from "../../core/worst_case/conformal.ts";
import { inputError, option, type PalisadeError } from "../../core/errors.ts";
import type { Budget } from "../../core/policy/policy.ts";
import type { Gate } from "./file.ts";

/**
 * In a new text like the held-out ones, with probability ≥ `coverage`, no entry of importance `limit` or more is
 * evicted: (evicted and important) / all entries is 0. Nothing is said of other kinds of text, nor of longer ones.
 */
export interface WorstCase {
  /** Promised probability, 0 … 1. */
  readonly coverage: number;
  /** q, nats: ln importance ≤ score + q for every unprotected entry of a text. */
  readonly margin: number;
  /** Entries with a score below this are evicted: ln limit − margin. */
  readonly threshold: number;
  /** Held-out texts, and tokens of each. */
  readonly texts: number;
  readonly textTokens: number;
}

/**
 * The worst case at which nothing of importance `limit` (0 … 1) may be lost.
 * @throws PalisadeError of kind input: `risk.margins` when the gate holds no margins, `risk.coverage` when it holds too
 * few for the coverage, `risk.protected` when the budget protects fewer entries than the margins leave out.
 */
export function worstCaseOf(
  { name, info: { conformal, calibration } }: Gate,
  limit: number,
  { coverage, budget }: { readonly coverage: number; readonly budget: Pick<Budget, "sinks" | "window" | "length"> },
): WorstCase {
  const { scores, textTokens, window } = conformal, texts = scores.length;
  if (texts === 0) {
    throw refuse(
      "margins",
      `${name} was fitted without held-out texts, so it has no margins: fit one with palisade calibrate`,
    );
  }
  const margin = conformalQuantile(scores, coverage);
  if (margin === Infinity) {
    const most = Math.floor(1000 * texts / (texts + 1)) / 1000;
    throw refuse("coverage", `${texts} held-out texts can't promise ${coverage}: want gate(coverage=${most}) or less`);
  }
  const { sinks, length } = budget, least = Math.min(calibration.skipped, length);
  if (sinks < least || budget.window < Math.min(window, length - sinks)) {
    throw refuse(
      "protected",
      `the margins leave out the first ${calibration.skipped} and last ${window} tokens, but gate(sinks=${sinks}, ` +
        `window=${budget.window}) may evict them`,
    );
  }
  return { coverage, margin, threshold: evictBelow(limit, margin), texts, textTokens };
}

function refuse(code: string, reason: string): PalisadeError {
  return inputError(`risk.${code}`, `Can't bound what the gate evicts: ${reason}`, option("riskWorst"));
}
