/** Layers that look back over a window: what is supported of them. */
import { inputError, type Where } from "../../core/errors.ts";
import type { ModelConfig } from "../config.ts";

/**
 * Layers that look back over a window hide nothing of fewer tokens than it has: more are not read yet. `tokens`: all that
 * there would be, evicted ones among them.
 * @throws PalisadeError input `context.window`.
 */
export function checkWindows({ name, windows }: Pick<ModelConfig, "name" | "windows">, tokens: number, where: Where) {
  const window = shortestWindow({ windows });
  if (tokens <= window) return;
  throw inputError(
    "context.window",
    `Layers of ${name} look back ${window} tokens only, which is supported for as many tokens at most, question and ` +
      `answer included, not for ${tokens}: shorten the context`,
    where,
  );
}

/** Tokens up to which no layer hides anything. */
export function shortestWindow({ windows }: Pick<ModelConfig, "windows">): number {
  return Math.min(Infinity, ...windows.filter((window) => window > 0));
}
