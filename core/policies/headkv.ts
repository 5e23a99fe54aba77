/**
 * Heads keep as much as they matter, by scores measured once per model. HeadKV, Fu et al. 2024, arXiv 2410.19258.
 *
 * Of what sinks and window leave of n, F entries, every head gives F/beta (rounded down) into a pool that is shared by
 * the head scores; the rest is its own. Selection is SnapKV's. `file` names a JSON file of head scores, `[layers]
 * [query heads]` or `[layers][kvHeads]`; `even`, the default, takes all heads as alike.
 *
 * Ours differs from the published code: query heads that share a KV head are meaned, because they share its entries
 * (the published code copies keys and values per query head); average instead of maximum pooling (kernel 7 there);
 * budgets sum to kvHeads × layers × n exactly and never exceed the context.
 */
import { inputError, option } from "../errors.ts";
import { definePolicy } from "../policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { HeadScores, PolicyAbout, PolicyFileNeed, PolicyFiles } from "../policy/policy.ts";
import { apportion } from "../select/apportion.ts";
import type { ModelShape } from "../shape.ts";
import { memoPerBudget } from "./memo_per_budget.ts";
import { snapScores } from "./snapkv.ts";

/** What `file` is when all heads are alike. */
const EVEN = "even";

export const headkv = definePolicy({
  name: "headkv",
  parameters: [
    { name: "file", type: "text", default: EVEN },
    {
      name: "beta",
      type: "number",
      default: 1.2,
      min: 1,
      max: 1000,
    },
    WINDOW,
    KERNEL,
    SINKS,
  ],
  needs: ({ file }, { headScores }) => {
    const read = headScores?.get(file);
    const named: PolicyFileNeed = { kind: "head-scores", name: file, ...(read && { headScores: read }) };
    return { window: ["mean"], ...(file !== EVEN && { file: named }) };
  },
  allocate: { kind: "head", uneven: true },
  score: (observation, budget, values, _, files) => {
    const { kvHeads } = budget.model, first = observation.layer * kvHeads;
    return {
      scores: snapScores(observation, values.kernel),
      counts: headCounts(budget, values, scoresOf(values.file, files)).slice(first, first + kvHeads),
    };
  },
});

export const about: PolicyAbout = {
  summary: "SnapKV's scores, heads keeping by importance measured once per model",
  paper: "Fu et al. 2024, arXiv 2410.19258",
  source: "FYYFU/HeadKV, headkv/snapkv_utils.py",
  help: {
    file: "JSON file of head scores, [layers][heads]; even: all alike",
    beta: "the larger, the less of the budget is shared by head scores",
    window: "last tokens that are observed and never evicted",
  },
};

/** What stands in the file; undefined when all heads are alike. */
function scoresOf(file: string, { headScores }: PolicyFiles): HeadScores | undefined {
  const given = headScores?.get(file);
  if (given || file === EVEN) return given;
  const message = `headkv(file=${file}): nobody has read that file; give the policy as a text, or use loadPolicy()`;
  throw inputError("policy.file", message, option("policy"));
}

/** Entries of every head, `[layers, kvHeads]`, kvHeads × layers × `perHead` in all. */
const headCounts = memoPerBudget((budget, { beta }: { readonly beta: number }, given: HeadScores | undefined) => {
  const { length, perHead, sinks, window, model } = budget;
  const fixed = sinks + window, free = perHead - fixed, heads = model.layers * model.kvHeads;
  const shared = Math.floor(free / beta);
  const weights = kvHeadShares(given, model).map((share) => share * shared * heads + (free - shared));
  const rooms = new Int32Array(heads).fill(length - fixed);
  return apportion(weights, rooms, free * heads).map((seats) => seats + fixed);
});

/** Shares of all KV heads, `[layers, kvHeads]`, summing to 1. */
function kvHeadShares(given: HeadScores | undefined, { layers, heads, kvHeads }: ModelShape): Float64Array {
  if (!given) return new Float64Array(layers * kvHeads).fill(1 / (layers * kvHeads));
  const width = given[0]?.length;
  if (given.length !== layers || (width !== heads && width !== kvHeads) || given.some((row) => row.length !== width)) {
    const wanted = `${layers} layers of ${heads} heads`;
    const message = `Head scores have ${given.length} layers of ${width} heads: the model has ${wanted}`;
    throw inputError("policy.heads", message, option("policy"));
  }
  const group = width / kvHeads;
  const sums = Float64Array.from({ length: layers * kvHeads }, (_, at) => {
    const row = given[Math.floor(at / kvHeads)], first = at % kvHeads * group;
    return row.slice(first, first + group).reduce((a, b) => a + b, 0);
  });
  const total = sums.reduce((a, b) => a + b, 0);
  return sums.map((sum) => sum / total);
}
