/** Soft tokens for models that have none: ordinary token embeddings, or random ones. */
import { randomSource } from "../../core/measure/random.ts";
import type { ModelConfig } from "../../model/config.ts";
import { SOFT_TOKENS_FORMAT, type SoftTokens, type SoftTokensInfo } from "../../model/policy_files/soft_tokens.ts";

/** What a file says of its soft tokens. */
export function softTokensInfo(
  { name, architecture, width }: Pick<ModelConfig, "name" | "architecture" | "width">,
  sha256 = "0".repeat(64),
): SoftTokensInfo {
  return { format: SOFT_TOKENS_FORMAT, model: { name, sha256, architecture, width }, trained: "not at all" };
}

/** Three that nobody trained. */
export function randomSoftTokens(config: ModelConfig): SoftTokens {
  const next = randomSource(9);
  return {
    name: "random soft tokens",
    info: softTokensInfo(config),
    embeddings: Float32Array.from({ length: 3 * config.width }, () => next() * 2 - 1),
  };
}
