/** Entries no score can evict: the first `sinks` and the last `window` of every head. */
import type { Budget } from "../policy/policy.ts";

/** `[kvHeads, L]`, 1 = protected. The budget's sinks and window already fit into `perHead`. */
export function protectEnds({ model, length, sinks, window }: Budget): Uint8Array {
  const mask = new Uint8Array(model.kvHeads * length);
  for (let head = 0; head < model.kvHeads; head++) {
    mask.fill(1, head * length, head * length + sinks);
    mask.fill(1, (head + 1) * length - window, (head + 1) * length);
  }
  return mask;
}

/**
 * Scores of the prefix, `[kvHeads, N]`, with the window appended to each head at one value: `[kvHeads, L]`.
 * `window` entries per head are added.
 */
export function appendWindow(prefix: Float32Array, kvHeads: number, window: number, value: number): Float32Array {
  const prefixLength = prefix.length / kvHeads, length = prefixLength + window;
  const scores = new Float32Array(kvHeads * length).fill(value);
  for (let head = 0; head < kvHeads; head++) {
    scores.set(prefix.subarray(head * prefixLength, (head + 1) * prefixLength), head * length);
  }
  return scores;
}

/** Puts the first `sinks` scores of each head, `[kvHeads, L]`, above all others, in place; what they score doesn't count. */
export function protectSinks(scores: Float32Array, length: number, sinks: number): void {
  for (let at = 0; at < scores.length; at += length) scores.fill(0, at, at + sinks);
  const top = largest(scores) + 1;
  for (let at = 0; at < scores.length; at += length) scores.fill(top, at, at + sinks);
}

/** The largest number in the array; NaN is passed over. `fallback` when there is none. */
export function largest(values: ArrayLike<number>, fallback = 0): number {
  let best = -Infinity;
  for (let i = 0; i < values.length; i++) if (values[i] > best) best = values[i];
  return best === -Infinity ? fallback : best;
}
