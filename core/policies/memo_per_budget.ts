/** Numbers that depend on a policy's values and the budget alone, for policies that are asked for them at every layer. */
import type { Budget } from "../policy/policy.ts";

/** `compute`, run once for the same budget and values, which are objects; its result must not be changed. */
export function memoPerBudget<V extends object, Rest extends readonly unknown[], T>(
  compute: (budget: Budget, values: V, ...rest: Rest) => T,
): (budget: Budget, values: V, ...rest: Rest) => T {
  const results = new WeakMap<V, WeakMap<Budget, { readonly value: T }>>();
  return (budget, values, ...rest) => {
    let byBudget = results.get(values);
    if (!byBudget) results.set(values, byBudget = new WeakMap());
    let result = byBudget.get(budget);
    if (!result) byBudget.set(budget, result = { value: compute(budget, values, ...rest) });
    return result.value;
  };
}
