/**
 * Stages: what happens to a cache behind any selection. A policy's text may name them in its brackets,
 * `snapkv(window=16, merge=sum)`; options of the library set the same. They change no score and no selection.
 */
import { inputError, option } from "../errors.ts";
import { type Merge, MERGES } from "../merge/merge.ts";
import { policyError, type PolicyText, type Setting } from "./grammar.ts";
import type { Policy } from "./policy.ts";

/** What is done behind a selection; what is absent is not done. */
export interface Stages {
  /** Evicted entries go into what stays (`core/merge/`). */
  readonly merge?: Exclude<Merge, "none">;
}

/** Stages as options give them. */
export interface StageOptions {
  /** What becomes of evicted entries. Default `none`: they are lost. */
  readonly merge?: Merge;
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
    wanted: MERGES.join(", "),
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
      const message = `${word.name}=${setting.value}: want one of ${word.wanted}`;
      throw policyError("policy.value", message, text, setting.at);
    }
    stages = { ...stages, ...read };
  }
  return { policy: { ...parsed, settings }, stages };
}

/** The stages that options ask for. @throws PalisadeError input `merge.unknown`. */
export function stagesOf({ merge = "none" }: StageOptions): Stages {
  if (!isMerge(merge)) {
    throw inputError("merge.unknown", `There is no merge "${merge}": want ${MERGES.join(", ")}`, option("merge"));
  }
  return { ...(merge !== "none" && { merge }) };
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

function parametersOf({ merge }: Stages): Record<string, string> {
  return { ...(merge && { merge }) };
}

function isMerge(value: string): value is Merge {
  return (MERGES as readonly string[]).includes(value);
}
