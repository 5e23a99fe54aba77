/**
 * What the context's own queries would look at, asked again from behind its end (`core/measure/moved.ts`).
 *
 * score[g, i] = the largest attention on entry i over the group and over every `every`-th query of the context, each moved
 * behind its end, where it sees all keys. A stand-in for KVzip's repetition without a second reading: one attention more
 * in each layer, or a part of it. Variants: `floor=mean` takes no less than the head's mean (DefensiveKV's prior); `norm`
 * weighs by value norms.
 */
import { definePolicy } from "../policy/define.ts";
import { parameter, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { NORM_AXES, valueShares } from "../measure/value_share.ts";
import { defensiveRisk } from "../worst_case/risk.ts";
import { COMPETE } from "./kvzip.ts";

const FLOOR = parameter({
  name: "floor",
  type: "text",
  default: "none",
  choices: ["none", "mean"],
});

export const moved = definePolicy({
  name: "moved",
  parameters: [
    { name: "every", type: "integer", default: 2, min: 1, max: 64 },
    FLOOR,
    { name: "norm", type: "text", default: "off", choices: NORM_AXES },
    COMPETE,
    { ...WINDOW, default: 8 },
    SINKS,
  ],
  needs: ({ every, norm }) => ({ moved: { every }, ...(norm !== "off" && { valueNorms: "l1" }) }),
  allocate: ({ compete }) => ({ kind: compete }),
  score: ({ moved, valueNorms, length, shape: { kvHeads } }, _, { floor, norm }) => {
    const scores = floor === "mean" ? defensiveRisk(moved, kvHeads) : moved.slice();
    if (valueNorms) {
      const shares = valueShares(valueNorms, { kvHeads, length, prefix: length }, norm);
      for (let i = 0; i < scores.length; i++) scores[i] *= shares[i];
    }
    return { scores };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps what the context's own queries look at from behind its end, in one reading",
  paper: "ours, after KVzip, Kim et al. 2025, arXiv 2505.23416",
  source: "our own",
  help: {
    every: "of the queries one in so many is moved",
    floor: "the least that an entry scores: nothing, or the head's mean",
    norm: "what value norms are divided by; or off",
  },
};
