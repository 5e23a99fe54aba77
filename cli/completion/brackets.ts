/** What may stand next in a text of policies: names, and inside brackets parameters, their choices, and scorers. */
import { ROW_TYPES } from "../../core/cache/entry_type.ts";
import { MERGES } from "../../core/merge/merge.ts";
import { type DescribedPolicy, describePolicies } from "../../core/policy/about.ts";
import type { Parameter } from "../../core/policy/policy.ts";
import { STAGE_NAMES } from "../../core/policy/stages.ts";
import { REFITS } from "../../core/refit/refit.ts";
import type { Word } from "../options.ts";

/** What stages can be told, those that take words. */
const STAGE_CHOICES: Readonly<Record<string, readonly string[]>> = { merge: MERGES, refit: REFITS, rows: ROW_TYPES };

const policies = describePolicies();

type Pair = readonly [word: string, about: string];

/** A policy whose brackets are open. */
interface Open {
  readonly entry?: DescribedPolicy;
  readonly published: boolean;
  /** What stands in its brackets so far, up to the word that is being typed. */
  readonly said: string;
  readonly outermost: boolean;
}

/** Whole texts that begin with `typed`, each one word longer: `adakv(snapkv, saf` gives `adakv(snapkv, safeguard=`. */
export function inBrackets(typed: string): Word[] {
  const [, before, last] = /^(.*[(,]\s*|)([^(,]*)$/s.exec(typed)!, open = innermost(before);
  const words = open ? inside(open, last) : names();
  return words.filter(([word]) => word.startsWith(last)).map(([word, about]) => [`${before}${word}`, about]);
}

function names(): Pair[] {
  return policies.map(({ name, summary }) => [name, summary]);
}

/** The innermost policy whose brackets are open where `before` ends. */
function innermost(before: string): Open | undefined {
  const open: { name: string; published: boolean; at: number }[] = [];
  for (const { 0: all, 1: name, 2: published, index } of before.matchAll(/([A-Za-z0-9-]*)(@reference)?\s*\(|\)/g)) {
    if (all === ")") open.pop();
    else open.push({ name, published: published !== undefined, at: index + all.length });
  }
  const last = open.at(-1);
  if (!last) return undefined;
  const entry = policies.find(({ name }) => name === last.name);
  return { entry, published: open[0].published, said: before.slice(last.at), outermost: open.length === 1 };
}

function inside({ entry, published, said, outermost }: Open, last: string): Pair[] {
  if (!entry) return [];
  const own = entry.parameters.filter(({ oursOnly }) => !published || !oursOnly), stages = outermost ? STAGE_NAMES : [];
  const [parameter] = /^[A-Za-z0-9-]+(?==)/.exec(last) ?? [];
  if (parameter !== undefined) return valuesOf(own, stages, parameter);
  const settings = [
    ...own.map(({ name, help }): Pair => [`${name}=`, help]),
    ...stages.map((name): Pair => [`${name}=`, "what happens to the cache behind the selection"]),
  ];
  const taken = said.split(",").map((each) => each.trim());
  const free = settings.filter(([word]) => !taken.some((each) => each.startsWith(word)));
  // A scorer stands first.
  return entry.over !== undefined && said.trim() === "" ? [...scorersFor(entry), ...free] : free;
}

function scorersFor({ name: own }: DescribedPolicy): Pair[] {
  return names().filter(([name]) => name !== own);
}

/** Choices, or the default, which says what a value looks like. */
function valuesOf(own: readonly Parameter[], stages: readonly string[], name: string): Pair[] {
  const found = own.find((each) => each.name === name), pair = (value: unknown): Pair => [`${name}=${value}`, ""];
  if (found) return (found.type === "text" && found.choices ? found.choices : [found.default]).map(pair);
  return stages.includes(name) ? (STAGE_CHOICES[name] ?? []).map(pair) : [];
}
