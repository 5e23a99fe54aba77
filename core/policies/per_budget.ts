/** Numbers that depend on the budget alone, for policies that are asked for them at every layer. */
import type { Budget } from "../policy/policy.ts";

/** `compute`, run once per budget object; what it returns must not be changed. */
export function oncePerBudget<T>(compute: (budget: Budget) => T): (budget: Budget) => T {
  const results = new WeakMap<Budget, { readonly value: T }>();
  return (budget) => {
    let result = results.get(budget);
    if (!result) results.set(budget, result = { value: compute(budget) });
    return result.value;
  };
}
