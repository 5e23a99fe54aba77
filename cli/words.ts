/** Words that completion offers, of lists that the library holds. They are loaded when somebody asks for them. */
import type { Word } from "./options.ts";

/** Policies by name, and those with a form as published. */
export async function policyWords(): Promise<Word[]> {
  const { describePolicies } = await import("../core/policy/about.ts");
  const policies = describePolicies(), published = policies.filter(({ reference }) => reference !== undefined);
  return [
    ...policies.map(({ name, summary }): Word => [name, summary]),
    ...published.map(({ name }): Word => [`${name}@reference`, "the published code"]),
  ];
}

/** What a cap evicts by. */
export async function ruleWords(): Promise<Word[]> {
  const { stepRules } = await import("../core/rules/registry.ts");
  return stepRules.map(({ name, summary }): Word => [name, summary]);
}

/** Models with a name of their own, and some of the hub. */
export async function modelWords(): Promise<Word[]> {
  const { HUB_SUGGESTIONS, MODELS } = await import("../model/store/registry.ts");
  const named = MODELS.map(({ name, summary }): Word => [name, summary]);
  return [...named, ...HUB_SUGGESTIONS.map(({ name, licence }): Word => [name, licence])];
}

/** Words around text and question. */
export async function frameWords(): Promise<Word[]> {
  return Object.keys((await import("../model/text/frames.ts")).FRAMES);
}

/** Tasks of sweeps; those of files end where the file's name begins. */
export async function taskWords(): Promise<Word[]> {
  const { rulerTasks } = await import("../evaluate/tasks/registry.ts");
  return [["ruler", "all of RULER's"], ...rulerTasks.map(({ name }) => name), "qa:", "jsonl:"];
}
