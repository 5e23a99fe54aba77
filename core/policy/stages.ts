/**
 * Stages: what happens to a cache behind any selection. A policy's text may name them in its brackets,
 * `snapkv(window=16, merge=sum, key-channels=60%)`; options of the library set the same. They change no score and no selection.
 */
import { type CacheType, checkCacheType, ROW_TYPES } from "../cache/entry_type.ts";
import { inputError, option } from "../errors.ts";
import { type Merge, MERGES } from "../merge/merge.ts";
import { type Refit, REFITS } from "../refit/refit.ts";
import { policyError, type PolicyText, type Setting } from "./grammar.ts";
import type { Policy } from "./policy.ts";

/** What is done behind a selection; what is absent is not done. */
export interface Stages {
  /** Evicted entries go into what stays (`core/merge/`). */
  readonly merge?: Exclude<Merge, "none">;
  /** Share of each head's key channels that stay, 0 < share < 1 (`core/measure/key_channels.ts`). */
  readonly keyChannels?: number;
  /** What stays gets biases and new values (`core/refit/`). */
  readonly refit?: Exclude<Refit, "none">;
  /** What stays is stored so once its layer has been read as another type. */
  readonly rows?: CacheType;
}

/** Stages as options give them. */
export interface StageOptions {
  /** What becomes of evicted entries. Default `none`: they are lost. */
  readonly merge?: Merge;
  /** Share of each head's key channels that stay: `60%` or 0.6. Default all of them. */
  readonly keyChannels?: string | number;
}

/** How a stage is said in a policy's brackets. */
interface StageWord {
  readonly name: string;
  /** Undefined for a text that is none of its values; `{}` where nothing is to be done. */
  read(value: string): Stages | undefined;
  readonly wanted: string;
}

const WORDS: readonly StageWord[] = [
  {
    name: "merge",
    read: (value) => isMerge(value) ? stagesOf({ merge: value }) : undefined,
    wanted: `one of ${MERGES.join(", ")}`,
  },
  { name: "key-channels", read: channelsOf, wanted: "a share such as 60%, above 0 to 100%" },
  {
    name: "refit",
    read: (value) => {
      const refit = REFITS.find((each) => each === value);
      return refit && (refit === "none" ? {} : { refit });
    },
    wanted: REFITS.join(", "),
  },
  {
    name: "rows",
    read: (value) => isCacheType(value) ? { rows: checkCacheType(value) } : undefined,
    wanted: `${ROW_TYPES.join(", ")}, or keys and values apart: rows="k=int4,v=int8"`,
  },
];

/** Names that a policy's brackets take besides its parameters. */
export const STAGE_NAMES: readonly string[] = WORDS.map(({ name }) => name);

/**
 * Takes the stages out of a policy's own settings.
 * @throws PalisadeError `policy.parameter`, `policy.value`, pointing at the character.
 */
export function takeStages(parsed: PolicyText, text: string): { policy: PolicyText; stages: Stages } {
  let stages: Stages = {};
  const seen = new Set<string>(), settings: Setting[] = [];
  for (const setting of parsed.settings) {
    const word = WORDS.find(({ name }) => name === setting.name);
    if (!word) {
      settings.push(setting);
      continue;
    }
    if (seen.has(word.name)) {
      throw policyError("policy.parameter", `Cannot set ${word.name}: it is set twice`, text, setting.at);
    }
    seen.add(word.name);
    const read = word.read(setting.value);
    if (!read) {
      const message = `${word.name}=${setting.value}: want ${word.wanted}`;
      throw policyError("policy.value", message, text, setting.at);
    }
    stages = { ...stages, ...read };
  }
  return { policy: { ...parsed, settings }, stages };
}

/** The stages that options ask for. @throws PalisadeError input `merge.unknown`, `key-channels.range`. */
export function stagesOf({ merge = "none", keyChannels = 1 }: StageOptions): Stages {
  if (!isMerge(merge)) {
    throw inputError("merge.unknown", `There is no merge "${merge}": want ${MERGES.join(", ")}`, option("merge"));
  }
  const channels = channelsOf(String(keyChannels));
  if (!channels) {
    const message = `Cannot keep ${keyChannels} of the key channels: want a share such as 60%, above 0 to 100%`;
    throw inputError("key-channels.range", message, option("keyChannels"));
  }
  return { ...(merge !== "none" && { merge }), ...channels };
}

/** `60%` or `0.6`; nothing to do for all of them, undefined for what is no share. */
function channelsOf(text: string): Stages | undefined {
  const match = /^(\d+\.?\d*|\.\d+)(%?)$/.exec(text.trim());
  const share = match ? Number(match[1]) / (match[2] ? 100 : 1) : NaN;
  if (!(share > 0 && share <= 1)) return undefined;
  return share === 1 ? {} : { keyChannels: share };
}

/** The policy with these stages besides its own; they are named among its parameters. */
export function withStages(policy: Policy, added: Stages): Policy {
  const stages = { ...policy.stages, ...added };
  if (Object.keys(added).length === 0) return policy;
  return { ...policy, stages, parameters: { ...policy.parameters, ...parametersOf(stages) } };
}

/** Refuses stages where keys and values are another program's. @throws PalisadeError input `policy.stages`. */
export function refuseStages({ name, stages }: Policy): void {
  const [stage] = Object.keys(stages ?? {});
  if (stage === undefined) return;
  const message = `${name} is asked for ${stage}, but here it is only said which entries stay: leave it out`;
  throw inputError("policy.stages", message, option("policy"));
}

function parametersOf({ merge, keyChannels, refit, rows }: Stages): Record<string, string> {
  return {
    ...(merge && { merge }),
    ...(keyChannels && { "key-channels": `${Number((100 * keyChannels).toPrecision(12))}%` }),
    ...(refit && { refit }),
    ...(rows && { rows }),
  };
}

function isCacheType(text: string): boolean {
  try {
    return checkCacheType(text) !== undefined;
  } catch {
    return false;
  }
}

function isMerge(value: string): value is Merge {
  return (MERGES as readonly string[]).includes(value);
}
