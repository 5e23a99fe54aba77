/**
 * The frame's own tokens stay. What the chat template writes in front of the text, its system turn above all, and the
 * words before it tell a model what it is to do; they are few, and no score that looks for what the text says knows them
 * to be needed. So every policy of ours protects them, as it does its sinks, for as long as that leaves the text room.
 * Where a risk finds the budget they are protected whatever it finds: its search begins with all of the text.
 */
import type { Budget, Policy } from "../../core/policy/policy.ts";

/** The largest part of a head's budget that the frame may take: 1 / this. Measured: bench/results/refit.md. */
const PART = 8;

/**
 * The policy with the first `tokens` protected where its sinks don't reach as far. As it is where they take more than a
 * part of `budget`, where it was told to protect no beginning (`sinks=0`), and where it is published code (`@reference`).
 */
export function withFrameKept(policy: Policy, tokens: number, { perHead }: Pick<Budget, "perHead">): Policy {
  const fits = tokens * PART <= perHead, protects = policy.sinks > 0 && policy.arithmetic !== "reference";
  if (!fits || !protects || tokens <= policy.sinks) return policy;
  const { name, parameters, needs, allocate, meaning, evicts, arithmetic, window, stages, threshold } = policy;
  return {
    ...{ name, parameters, needs, allocate, meaning, evicts, arithmetic, window, ...(stages && { stages }) },
    ...(threshold !== undefined && { threshold }),
    sinks: tokens,
    score: (observation, whole) => policy.score(observation, whole),
  };
}
