/** `risk`, `riskWorst` and what goes with them: checked, and made into one of two ways to read. */
import { inputError, option, PalisadeError, say } from "../../core/errors.ts";
import { joined, type OptionName } from "../../core/options.ts";
import type { Policy } from "../../core/policy/policy.ts";
import { DEFAULTS } from "../defaults.ts";

export interface RiskSettings {
  /**
   * Instead of `keep`: the smallest budget at which the mean over layers and query heads of the largest attention mass
   * that a window query loses is at most this; 0 < risk < 1.
   */
  readonly risk?: number;
  /**
   * Instead of `keep`: evicts only entries whose worst-case importance is below this; 0 < riskWorst < 1. With a gate
   * that importance is predicted, and holds with a stated probability (`model/gate/worst_case.ts`).
   */
  readonly riskWorst?: number;
  /** Bytes of keys and values that may wait for `risk`, an integer ≥ 1. Beyond it the context is read several times. */
  readonly maxCacheBytes?: number;
}

/** `mean`: search a budget (`read_risk.ts`). `worst`: a plain threshold. */
export type Risk =
  | { readonly kind: "mean"; readonly limit: number; readonly maxCacheBytes: number }
  | { readonly kind: "worst"; readonly limit: number };

/**
 * What was asked for; undefined when nothing was. `others`: names of options given that also say what stays.
 * @throws PalisadeError (usage) `risk.exclusive` beside one of those, (input) `risk.range`, and `risk.policy` when a
 * threshold is asked of a policy whose scores are no importances.
 */
export function resolveRisk(settings: RiskSettings, policy: Policy, others: readonly OptionName[]): Risk | undefined {
  const { risk, riskWorst, maxCacheBytes = DEFAULTS.maxCacheBytes } = settings;
  if (!(Number.isSafeInteger(maxCacheBytes) && maxCacheBytes >= 1)) {
    throw inputError(
      "risk.range",
      `Can't let ${maxCacheBytes} bytes wait: want a whole number ≥ 1`,
      option("maxCacheBytes"),
    );
  }
  if (risk === undefined && riskWorst === undefined) return undefined;
  const name: OptionName = risk === undefined ? "riskWorst" : "risk";
  const rivals: OptionName[] = [
    ...others,
    ...(risk !== undefined && riskWorst !== undefined ? ["riskWorst"] as const : []),
  ];
  if (rivals.length > 0) {
    const message = say`Can't take both ${option(name)} and ${
      joined(rivals.map(option), ", ")
    }: each says on its own what stays`;
    throw new PalisadeError("usage", "risk.exclusive", message, { where: option(name) });
  }
  const limit = risk ?? riskWorst!;
  if (!(limit > 0 && limit < 1)) {
    throw inputError("risk.range", `Can't bound the risk by ${limit}: want a number above 0 and below 1`, option(name));
  }
  if (risk !== undefined) return { kind: "mean", limit, maxCacheBytes };
  if (policy.meaning.kind === "order") {
    const message = `${policy.name} has no importance to compare with a threshold: use defensive-risk, or plain gate`;
    throw inputError("risk.policy", message, option(name));
  }
  return { kind: "worst", limit };
}
