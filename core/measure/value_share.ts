/** How value norms enter a score. */

/**
 * `heads`: each norm divided by the sum over the KV heads at its position (the published code). `tokens`: divided by
 * the sum over the head's own prefix (the paper, for the layer variant). `plain`: the norm itself. `off`: 1.
 */
export const NORM_AXES = ["heads", "tokens", "plain", "off"] as const;
/** One of {@link NORM_AXES}. */
export type NormAxis = typeof NORM_AXES[number];

/**
 * The factor ν of every prefix entry, `[kvHeads, N]`, from norms `[kvHeads, L]`; where a sum is 0 the factor is 0,
 * because losing a zero value changes nothing.
 */
export function valueShares(
  norms: Float32Array,
  { kvHeads, length, prefix }: { kvHeads: number; length: number; prefix: number },
  axis: NormAxis,
): Float32Array {
  const shares = new Float32Array(kvHeads * prefix);
  const each = (divisor: (head: number, i: number) => number) => {
    for (let head = 0; head < kvHeads; head++) {
      for (let i = 0; i < prefix; i++) {
        const by = divisor(head, i);
        shares[head * prefix + i] = by === 0 ? 0 : norms[head * length + i] / by;
      }
    }
    return shares;
  };
  switch (axis) {
    case "heads":
      return each((_, i) => sumOf(norms, i, length, kvHeads));
    case "tokens": {
      const sums = Array.from({ length: kvHeads }, (_, head) => sumOf(norms, head * length, 1, prefix));
      return each((head) => sums[head]);
    }
    case "plain":
      return each(() => 1);
    case "off":
      return shares.fill(1);
    default:
      throw new TypeError(`Unknown norm axis ${axis satisfies never}`);
  }
}

function sumOf(values: Float32Array, start: number, step: number, count: number): number {
  let sum = 0;
  for (let i = 0, at = start; i < count; i++, at += step) sum += values[at];
  return sum;
}
