/**
 * KVzip, attention counting by what it moves. KVzip+, Jegou et al. 2026, arXiv 2601.07891.
 *
 * score[g, i] = the largest of a · ‖Wo_h·v_i‖ / ‖h_j‖ over the group's heads h and the tokens j of the prompts that make
 * the model repeat the context: what entry i adds to the residual stream of j, as a share of it. The reader measures it
 * (`model/read/reconstruct.ts`); the price is KVzip's, and the values' norms. Ours differs from the published code: h_j is
 * what the layer is given, before its norm, as the paper has it.
 */
import { definePolicy } from "../policy/define.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { KVZIP_HELP, KVZIP_PARAMETERS } from "./kvzip.ts";

export const kvzipPlus = definePolicy({
  name: "kvzip-plus",
  parameters: KVZIP_PARAMETERS,
  needs: ({ chunk, postfix }) => ({ reconstruction: { chunk, postfix, contribution: true } }),
  allocate: ({ compete }) => ({ kind: compete }),
  score: ({ reconstruction }) => ({ scores: reconstruction.slice() }),
});

export const about: PolicyAbout = {
  summary: "As kvzip, attention counting by what it adds to the token that looks",
  paper: "Jegou et al. 2026, arXiv 2601.07891",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/kvzip_press.py",
  help: KVZIP_HELP,
};
