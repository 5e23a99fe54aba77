/** All step rules by name. A new rule is one file and one line here; CLI, tests and docs read this list. */
import { inputError, option } from "../errors.ts";
import { adviceFor } from "../policy/nearest_name.ts";
import type { StepRule } from "./rule.ts";
import { defensiveRule } from "./defensive.ts";
import { fixedPoint } from "./fixed_point.ts";
import { gateRule } from "./gate.ts";
import { h2o, h2oNormalised } from "./h2o.ts";
import { roco } from "./roco.ts";
import { streamingLlmRule } from "./streaming_llm.ts";
import { tova } from "./tova.ts";

/** Every rule, in the order lists show them. */
export const stepRules: readonly StepRule[] = [
  streamingLlmRule,
  h2o,
  h2oNormalised,
  tova,
  roco,
  defensiveRule,
  gateRule,
  fixedPoint,
];

/** The rule taken when none is named. */
export const DEFAULT_STEP_RULE = "defensive";

/**
 * The rule of this name.
 * @throws PalisadeError `step-policy.unknown`.
 */
export function resolveStepRule(name: string): StepRule {
  const rule = stepRules.find((each) => each.name === name.trim());
  if (rule) return rule;
  const names = stepRules.map((each) => each.name);
  const advice = adviceFor(name, names, `there are ${names.join(", ")}`);
  throw inputError("step-policy.unknown", `Unknown step policy ${name}: ${advice}`, option("maxCache.rule"));
}
