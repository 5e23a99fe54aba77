/** `maxCache`: what it needs, and what it leaves of the budget. */
import { lowWater } from "../../core/cache/limit.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { inputError, option, say } from "../../core/errors.ts";
import { SINKS } from "../../core/policy/parameters.ts";
import type { Budget, Policy } from "../../core/policy/policy.ts";
import type { StepRule } from "../../core/rules/rule.ts";
import { resolveStepRule } from "../../core/rules/registry.ts";
import { DEFAULTS } from "../defaults.ts";
import type { Model } from "../model.ts";
import { controlPositions, questionIds } from "../text/prompt.ts";

/** A cap of the cache while answering. */
export interface MaxCache {
  /** Most entries per KV head on average, at any time after reading; an integer. */
  readonly tokens: number;
  /** The rule that evicts when it is full, or its name. Default `defensive`. */
  readonly rule?: StepRule | string;
}

/**
 * Checks a cap for this model; `markers`: control tokens in the context.
 * @throws PalisadeError `max-cache.range` when N is no whole number ≥ 1, `max-cache.small` when the sinks, the chat
 * template's markers and one recent token don't fit below its low-water mark, `step-policy.unknown`.
 */
export function resolveMaxCache(
  { tokens, rule = DEFAULTS.stepRule }: MaxCache,
  model: Pick<Model, "frame" | "tokenizer">,
  markers: number,
): { tokens: number; rule: StepRule } {
  if (!Number.isSafeInteger(tokens) || tokens < 1) {
    throw inputError(
      "max-cache.range",
      `Can't cap the cache at ${tokens} entries per head: want 1 or more`,
      option("maxCache"),
    );
  }
  const ahead = controlPositions(questionIds(model.frame, model.tokenizer, ""), model.tokenizer).length;
  const needed = Number(SINKS.default) + markers + ahead + 1;
  if (lowWater(tokens) < needed) {
    let least = needed;
    while (lowWater(least) < needed) least++;
    throw inputError(
      "max-cache.small",
      `Can't cap the cache at ${tokens} entries per head: ${needed} are protected (the first tokens, the chat ` +
        `template's markers, the last token), so want at least ${least}`,
      option("maxCache"),
    );
  }
  return { tokens, rule: typeof rule === "string" ? resolveStepRule(rule) : rule };
}

/**
 * The budget under a cap: `asked`, or the cap's low-water mark per head where that is less, so that the cache is not
 * full before the first question's tokens have shown what they need.
 * @throws PalisadeError `max-cache.policy` when the policy evicts nothing whatever the budget.
 */
export function budgetUnderCap(policy: Policy, asked: Budget, tokens: number): Budget {
  const { length, model } = asked, most = lowWater(tokens);
  if (
    asked.perHead <= most && asked.perLayer <= most * model.kvHeads &&
    asked.total <= most * model.kvHeads * model.layers
  ) {
    return asked;
  }
  if (policy.allocate.kind === "all") {
    throw inputError(
      "max-cache.policy",
      say`${policy.name} evicts nothing, and a context of ${length} tokens has no room below ${
        option("maxCache")
      } ${tokens}`,
      option("policy"),
    );
  }
  return resolveBudget(policy, { tokens: most }, length, model);
}
