/** How the entries that stay are stored behind a policy's stages. */
import type { CacheType } from "../../core/cache/entry_type.ts";
import { channelCount } from "../../core/measure/key_channels.ts";
import type { Stages } from "../../core/policy/stages.ts";
import type { StoredAs } from "../../core/select/byte_budget.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { RECENT_KEYS } from "./key_channels.ts";

/** In rows of `type`: for `entriesWithin`. */
export function storedAs(
  { merge, refit, keyChannels }: Stages,
  type: CacheType,
  { headDim }: Pick<AttentionShape, "headDim">,
): StoredAs {
  const thin = keyChannels && { channels: channelCount(headDim, keyChannels), recent: RECENT_KEYS };
  return { type, biased: refit !== undefined || merge === "sum", ...(thin && { thin }) };
}
