/** Which rows judge a policy: those it looks at itself, or the usual window for one that looks at none. */
import { KERNEL, WINDOW } from "../policy/parameters.ts";
import type { Budget, Needs, Policy } from "../policy/policy.ts";

/** Window queries that judge a policy without an observation window. */
export const EXPLAIN_WINDOW = WINDOW.default;

/** What a certificate needs observed, and how many queries. */
export function observationFor(
  { needs }: Pick<Policy, "needs">,
  { length, window }: Pick<Budget, "length" | "window">,
): { window: number; needs: Needs } {
  return {
    window: needs.window ? window : Math.min(EXPLAIN_WINDOW, length),
    needs: { window: ["pooledMax", "logSumExp"], kernel: needs.kernel ?? KERNEL.default },
  };
}
