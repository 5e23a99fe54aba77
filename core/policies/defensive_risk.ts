/**
 * The worst case and nothing else: what DefensiveKV (arXiv 2510.13334) is about, without its floor, its value norms and
 * its forced set. Ours, for comparison and for certificates.
 *
 * score[g, i] = max_j I[j, i], j over the window's queries of the group, I the pooled rows scaled back to their own mass.
 * All layers and heads compete. Among all sets of its size that keep sinks and window, the kept one has both the
 * smallest largest evicted risk and the smallest sum of evicted risks (`core/worst_case/certificate.ts`): taking the lowest scores
 * out minimises either.
 */
import { definePolicy } from "../policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { appendWindow, largest } from "../select/protect.ts";

export const defensiveRisk = definePolicy({
  name: "defensive-risk",
  parameters: [WINDOW, KERNEL, SINKS],
  needs: ({ kernel }) => ({ window: ["pooledMax"], kernel }),
  allocate: { kind: "model" },
  meaning: { kind: "importance" },
  score: ({ pooledMax, shape: { kvHeads }, window }) => ({
    scores: appendWindow(pooledMax, kvHeads, window, largest(pooledMax)),
  }),
});

export const about: PolicyAbout = {
  summary: "Keeps the largest worst-case importance, all layers competing, nothing added",
  paper: "ours, after Feng et al. 2025, arXiv 2510.13334",
  source: "none",
  help: {
    window: "last tokens that are observed and never evicted",
  },
};
