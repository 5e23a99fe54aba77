/** What can't be asked of a model whose layers look at rows of other layers (`ModelShape.sources`). */
import { inputError, option } from "../../core/errors.ts";
import type { Policy } from "../../core/policy/policy.ts";
import type { ModelConfig } from "../config.ts";
import { isCalibrated } from "../statistics/needed.ts";

/** @throws PalisadeError input `shared-rows.calibrate`: what is fitted on one layer's input is asked for by others, too. */
export function checkOwnRows({ sources, name }: Pick<ModelConfig, "sources" | "name">): void {
  if (!sources) return;
  const message = `Can't calibrate for ${name}: its layers look at the keys and values of earlier ones`;
  throw inputError("shared-rows.calibrate", message, name);
}

/**
 * Scores by the queries of all layers that look at an entry are joined (`model/joined.ts`). What is fitted, trained or repeated for
 * one layer's own queries is not known of the others.
 * @throws PalisadeError input `shared-rows.policy`, `shared-rows.refit`, `shared-rows.merge`, `shared-rows.key-channels`.
 */
export function checkSharedRows(
  { sources, name }: Pick<ModelConfig, "sources" | "name">,
  { name: policy, needs, stages = {} }: Pick<Policy, "name" | "needs" | "stages">,
  refits: boolean,
): void {
  if (!sources) return;
  const shared = `layers of ${name} look at the keys and values of earlier layers`;
  const refuse = (code: string, where: Parameters<typeof option>[0], what: string) => {
    throw inputError(
      `shared-rows.${code}`,
      `${what}, and ${shared}: take kvzip or layer-defensive alone`,
      option(where),
    );
  };
  const { softTokens, selfGate, moved, foresight, reconstruction, gate } = needs;
  const calibrated = isCalibrated(needs);
  if (softTokens || selfGate || moved || foresight || gate || calibrated || reconstruction?.contribution) {
    refuse("policy", "policy", `${policy} goes by what each layer's own queries look at`);
  }
  const rest = (what: string) => `${what} goes by what one layer's queries look at`;
  if (refits) refuse("refit", "refit", rest("A refit"));
  if (stages.merge) refuse("merge", "merge", rest("A merge"));
  if (stages.keyChannels) refuse("key-channels", "keyChannels", rest("Leaving out channels of keys"));
}
