/** What the policies share in which every head keeps its own best n, by scores that need no window. */
import type { Budget, LayerScores, ParameterValues, Policy, PolicyMode } from "../policy/policy.ts";
import { protectEnds } from "../select/protect.ts";

/**
 * The common fields. Ours protects the parameters `sinks` and `window`; `@reference` protects nothing by itself and
 * counts in the published arithmetic.
 */
export function perHead(
  name: string,
  values: ParameterValues,
  mode: PolicyMode,
): Pick<Policy, "name" | "parameters" | "scope" | "arithmetic" | "sinks" | "window"> {
  const ours = mode === "ours";
  return {
    name: ours ? name : `${name}@reference`,
    parameters: values,
    scope: "head",
    arithmetic: ours ? "floor" : "reference",
    sinks: ours ? Number(values.sinks) : 0,
    window: ours ? Number(values.window) : 0,
  };
}

/** The scores, `[kvHeads, L]`, with sinks and window protected in our mode. */
export function protectedScores(scores: Float32Array, budget: Budget, mode: PolicyMode): LayerScores {
  return mode === "ours" ? { scores, protectedEntries: protectEnds(budget) } : { scores };
}
