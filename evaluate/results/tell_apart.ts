/**
 * Results of different things under one name: two models called alike, a task's file that has changed or has a namesake,
 * another haystack, a policy whose gate or scores are others. Each gets a name of its own, so that nothing is averaged
 * that doesn't belong together.
 */
import { nameOfHash } from "../../model/store/short_name.ts";
import type { ResultLine } from "./results.ts";

/** Models by the name that people know; lines of earlier versions don't say it, unless others are of the same file. */
function shortlyNamed(lines: readonly ResultLine[]): ResultLine[] {
  const names = new Map<string, string>();
  for (const { modelName, model: { sha256 } } of lines) {
    if (modelName !== undefined && !names.has(sha256)) names.set(sha256, modelName);
  }
  return lines.map((line) => {
    const { name, sha256 } = line.model;
    return { ...line, model: { name: names.get(sha256) ?? nameOfHash(sha256) ?? name, sha256 } };
  });
}

/** The lines, those of namesakes with a hint behind the name: `jsonl:cases.jsonl (b/cases.jsonl)`. */
export function tellApart(all: readonly ResultLine[]): ResultLine[] {
  const lines = shortlyNamed(all);
  const models = new Namesakes(), tasks = new Namesakes(), policies = new Namesakes();
  for (const line of lines) {
    models.add(line.model.name, line.model.sha256, [line.model.sha256.slice(0, 8)]);
    tasks.add(line.task, ...originOf(line));
    policies.add(policyPlace(line), parametersOf(line), []);
  }
  return lines.map((line) => {
    const { model, task, asked } = line;
    const policy = `${asked.policy}${policyHint(line, policies)}`;
    return {
      ...line,
      model: { ...model, name: `${model.name}${models.hint(model.name, model.sha256)}` },
      task: `${task}${tasks.hint(task, originOf(line)[0])}`,
      asked: { ...asked, policy },
    };
  });
}

/** What a task's samples were made from, and what it may be called, the shortest first. */
function originOf({ source, haystack }: ResultLine): [key: string, hints: string[]] {
  const [name, sha256] = source ? [source.file, source.sha256] : [haystack?.name, haystack?.sha256];
  if (name === undefined || sha256 === undefined || sha256 === "") return ["", ["file unknown"]];
  const short = sha256.slice(0, 8);
  return [sha256, [name, short, `${name}, ${short}`]];
}

/** Models have gates of their own: only within one is another gate another policy. */
function policyPlace({ model, asked }: ResultLine): string {
  return JSON.stringify([model.sha256, asked.policy]);
}

function parametersOf({ policy: { name, parameters } }: ResultLine): string {
  return JSON.stringify([["name", name], ...Object.entries(parameters).sort()]);
}

/** The parameters that namesakes of this policy have otherwise. */
function policyHint(line: ResultLine, policies: Namesakes): string {
  const all = policies.keys(policyPlace(line)).map((key) => new Map(JSON.parse(key) as [string, unknown][]));
  if (all.length < 2) return "";
  const mine = new Map(JSON.parse(parametersOf(line)) as [string, unknown][]);
  const names = [...new Set(all.flatMap((each) => [...each.keys()]))];
  const differing = names.filter((name) => all.some((each) => each.get(name) !== mine.get(name)));
  return ` (${differing.map((name) => `${name}=${mine.get(name) ?? "none"}`).join(", ")})`;
}

/** Things by name; several under one name are namesakes. */
class Namesakes {
  /** Name → key of a thing → what it may be called. */
  readonly #things = new Map<string, Map<string, readonly string[]>>();

  add(name: string, key: string, hints: readonly string[]): void {
    const things = this.#things.get(name) ?? new Map<string, readonly string[]>();
    this.#things.set(name, things);
    if (!things.has(key)) things.set(key, hints);
  }

  keys(name: string): string[] {
    return [...this.#things.get(name)?.keys() ?? []];
  }

  /** Behind the name, in brackets; nothing where the name says enough. */
  hint(name: string, key: string): string {
    const things = this.#things.get(name)!;
    // Lines of earlier versions don't say their file: with one other they are that one's.
    if (things.size < 2 || (things.size === 2 && things.has(""))) return "";
    const all = [...things.values()];
    const hints = things.get(key)!;
    const at = hints.findIndex((hint, i) => all.filter((other) => (other[i] ?? other.at(-1)) === hint).length === 1);
    return ` (${hints.at(at)})`;
  }
}
