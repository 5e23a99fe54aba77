/**
 * From what the user asks to keep to the exact number of entries.
 *
 * Keep is what STAYS; the papers' compression ratio r is what goes. All products are taken in doubles, left to right.
 */
import { inputError, option } from "../errors.ts";
import { layerBudgetOf } from "../policy/define.ts";
import type { Budget, Policy } from "../policy/policy.ts";
import { globalShape, type ModelShape } from "../shape.ts";

/**
 * `fraction`: 0 < fraction ≤ 1 of the context's entries. `tokens`: entries per KV head on average, an integer ≥ 1; a
 * number at or above the context's length keeps all. `ratio`: the papers' r, the fraction removed, 0 ≤ r < 1.
 */
export type Keep = { readonly fraction: number } | { readonly tokens: number } | { readonly ratio: number };

/** Room for the rounding error of `fraction · length`, so that 0.2 · 10 counts as 2. */
const SLACK = 1e-9;

const WANTED = "want a percentage such as 20%, a fraction such as 0.2 or 1.0, or whole tokens per head such as 800";

/**
 * Reads `keep`. Plain decimal digits only, blanks around them are ignored: `20%` and `0.2` are fractions (a number
 * with a point or a percent sign), a bare integer is tokens.
 * @throws PalisadeError `keep.syntax` when the text is no such number, `keep.range` when it is 0, negative or above all.
 */
export function parseKeep(text: string): Keep {
  const match = /^([+-]?)(\d*)(\.\d*)?( ?%)?$/.exec(text.trim());
  if (!match || !/\d/.test(text)) {
    throw inputError("keep.syntax", `Cannot read keep "${text}": ${WANTED}`, option("keep"));
  }
  const [, sign, whole, decimals, percent] = match;
  const number = Number(`${whole || "0"}${decimals && decimals.length > 1 ? decimals : ""}`);
  if (sign === "-" || number === 0) {
    throw inputError("keep.range", `Cannot keep "${text}": nothing would stay; ${WANTED}`, option("keep"));
  }
  if (percent) return checkKeep({ fraction: number / 100 }, text);
  return checkKeep(decimals === undefined ? { tokens: number } : { fraction: number }, text);
}

/**
 * Checks a keep that did not come from {@link parseKeep}; returns it.
 * @throws PalisadeError `keep.range`.
 */
export function checkKeep(keep: Keep, text: string = JSON.stringify(keep)): Keep {
  const fine = "tokens" in keep
    ? Number.isSafeInteger(keep.tokens) && keep.tokens >= 1
    : "ratio" in keep
    ? keep.ratio >= 0 && keep.ratio < 1
    : keep.fraction > 0 && keep.fraction <= 1;
  if (!fine) {
    throw inputError(
      "keep.range",
      `Cannot keep "${text}": it is not between nothing and 100%; ${WANTED}`,
      option("keep"),
    );
  }
  return keep;
}

/**
 * The budget of one context of `length` tokens: of the model's global layers, which alone evict.
 *
 * Ours: n = floor(keep·L + 1e−9) per head; heads × n per layer for policies counted by head, floor(keep·L·Hkv + 1e−9)
 * for one rounded per layer; floor(keep·L·Hkv·layers + 1e−9) over the model. When n < sinks + window the window
 * shrinks to max(1, n − sinks), then the sinks.
 *
 * `@reference`: trunc(L·(1−r)·…) instead, nothing shrinks. Given a fraction f, r is the double nearest to 1 − f
 * rounded to 12 decimals, the number the user meant: keep 90 % is r = 0.1, not 0.09999999999999998.
 *
 * A policy with a threshold of its own has no budget: everything may stay.
 *
 * @throws PalisadeError `context.empty` for no tokens, `keep.nothing` when n would be 0, `context.short` when published
 * code (`@reference`) is asked to evict from a context no longer than its window.
 */
export function resolveBudget(
  policy: Pick<Policy, "name" | "arithmetic" | "allocate" | "sinks" | "window" | "threshold">,
  keep: Keep,
  length: number,
  whole: ModelShape,
): Budget {
  const model = globalShape(whole);
  if (!(length > 0)) throw inputError("context.empty", "The context has no tokens: nothing to keep", option("context"));
  checkKeep(keep);
  const counts = policy.allocate.kind === "all" || policy.threshold !== undefined || keepsEverything(keep, length)
    ? exactCounts(length, length, model)
    : "tokens" in keep
    ? exactCounts(keep.tokens, length, model)
    : policy.arithmetic === "reference"
    ? referenceCounts(keep, length, model)
    : floorCounts(keep, length, model);
  if (counts.perHead < 1) {
    const share = `${Number((100 * counts.fraction).toPrecision(6))} %`;
    throw inputError(
      "keep.nothing",
      `Keeping ${share} of ${length} tokens leaves none: want at least one`,
      option("keep"),
    );
  }
  if (layerBudgetOf(policy.allocate).fromHeads) counts.perLayer = model.kvHeads * counts.perHead;
  return { length, model, ...counts, ...protectedSpan(policy, counts.perHead, length), windowAsked: policy.window };
}

function keepsEverything(keep: Keep, length: number): boolean {
  return "tokens" in keep ? keep.tokens >= length : "ratio" in keep ? keep.ratio === 0 : keep.fraction === 1;
}

function exactCounts(perHead: number, length: number, { kvHeads, layers }: ModelShape) {
  const perLayer = perHead * kvHeads;
  return { fraction: perHead / length, perHead, perLayer, total: perLayer * layers };
}

function floorCounts(keep: { fraction: number } | { ratio: number }, length: number, { kvHeads, layers }: ModelShape) {
  const fraction = "ratio" in keep ? roundTo12(1 - keep.ratio) : keep.fraction;
  const floor = (product: number) => Math.floor(product + SLACK);
  return {
    fraction,
    perHead: floor(fraction * length),
    perLayer: floor(fraction * length * kvHeads),
    total: floor(fraction * length * kvHeads * layers),
  };
}

function referenceCounts(
  keep: { fraction: number } | { ratio: number },
  length: number,
  { kvHeads, layers }: ModelShape,
) {
  const ratio = "ratio" in keep ? keep.ratio : roundTo12(1 - keep.fraction);
  const fraction = 1 - ratio;
  return {
    fraction,
    perHead: Math.trunc(length * fraction),
    perLayer: Math.trunc(length * fraction * kvHeads),
    total: Math.trunc(length * fraction * kvHeads * layers),
  };
}

/** The double nearest to the decimal with 12 places. */
function roundTo12(value: number): number {
  return Math.round(value * 1e12) / 1e12;
}

function protectedSpan(
  policy: Pick<Policy, "name" | "arithmetic" | "sinks" | "window">,
  perHead: number,
  length: number,
) {
  const { sinks, window } = policy;
  if (policy.arithmetic === "reference" && perHead < length) {
    if (length <= window) {
      const message = `${policy.name} needs more than its window of ${window} tokens, the context has ${length}`;
      throw inputError("context.short", message, option("context"));
    }
    return { sinks, window };
  }
  if (perHead >= sinks + window) return { sinks, window };
  const shrunk = Math.min(window, Math.max(1, perHead - sinks));
  return { sinks: Math.min(sinks, perHead - shrunk), window: shrunk };
}
