/** What people read about policies: lists, help and documentation. Nothing that runs needs it. */
import { ABOUT, policies } from "./registry.ts";
import type { Parameter, PolicyAbout } from "./policy.ts";

/** Of parameters that policies share. */
const SHARED: Readonly<Record<string, string>> = {
  sinks: "first tokens that are never evicted",
  window: "last tokens that are never evicted",
  kernel: "width of the average pooling over positions, odd",
  compete: "who shares a budget: all layers, the heads of a layer, or nobody",
  future: "positions to come that are meaned over",
  statistics:
    "whose queries: the context's own, those of texts that palisade calibrate read (calibrated), or of such a file",
  safeguard: "share of its even budget that every head is sure of",
  first: "share of a head's budget decided by score alone",
};

/** A parameter, and what it is. */
export type DescribedParameter = Parameter & { readonly help: string };

/** A policy in words. */
export interface DescribedPolicy extends Omit<PolicyAbout, "help"> {
  readonly name: string;
  /** For a policy that works on another's scores: the scorer it takes when none is named. */
  readonly over?: string;
  readonly parameters: readonly DescribedParameter[];
}

/**
 * Every policy in words, in the order lists show them: what it keeps, where it was published, its parameters with
 * defaults and ranges.
 *
 * ```ts
 * import { describePolicies } from "palisade-kv";
 *
 * for (const { name, summary } of describePolicies()) console.log(`${name}: ${summary}`);
 * ```
 */
export function describePolicies(): DescribedPolicy[] {
  // The lines of the list have forgotten that their names are those of the table.
  const abouts: Readonly<Record<string, PolicyAbout>> = ABOUT;
  return policies.map(({ name, over, parameters }) => {
    const { help = {}, ...about } = abouts[name];
    const described = parameters.map((each) => ({ ...each, help: help[each.name] ?? SHARED[each.name] }));
    return { name, over, ...about, parameters: described };
  });
}
