/** What a sweep consists of: lists as typed on the command line, and the groups of cells they make. */
import type { CacheType } from "../../core/cache/entry_type.ts";
import { type Bytes, entriesWithin, parseBytes } from "../../core/select/byte_budget.ts";
import type { ModelShape } from "../../core/shape.ts";
import { checkKeep, type Keep, parseKeep } from "../../core/select/budget.ts";
import { inputError, option } from "../../core/errors.ts";
import type { Policy } from "../../core/policy/policy.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { loadPolicyFile } from "../../model/policy_files/policy_files.ts";
import { storedAs } from "../../model/read/stored_as.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { ResultLine } from "../results/results.ts";
import type { Task } from "../tasks/interface.ts";
import { nonEmpty, refuseRepeated, splitList } from "./lists.ts";

/** A policy at a budget, with the texts it came from. */
export interface AskedCase {
  readonly policy: Policy;
  readonly keep: Keep;
  readonly asked: { readonly policy: string; readonly keep: string };
  /** Bytes that it is to fit, from which `keep` is made for each sample. */
  readonly bytes?: Bytes;
}

/** The unit of work: the cells of one sample of one task at one length, all policies and budgets. They share a prefill. */
export interface CellGroup {
  readonly task: Task;
  /** Tokens; null for tasks that are as long as they are. */
  readonly length: number | null;
  readonly sample: number;
}

/**
 * {@link parseCases} with the files that policies name, each text's read once. Among such a policy's parameters stands the
 * hash of what its file holds, 16 digits, in place of its name: another content is another cell, another name is not.
 * @throws PalisadeError as `parseCases` and `loadPolicy`.
 */
export async function loadCases(
  runtime: Runtime,
  policies: string,
  keeps: string,
  bytes?: string,
): Promise<AskedCase[]> {
  const loaded = new Map<string, Policy>(), cases: AskedCase[] = [];
  for (const each of parseCases(policies, keeps, bytes)) {
    const text = each.asked.policy, policy = loaded.get(text) ?? await loadHashed(text, runtime);
    loaded.set(text, policy);
    cases.push({ ...each, policy });
  }
  refuseRepeatedCases(cases);
  return cases;
}

async function loadHashed(text: string, runtime: Runtime): Promise<Policy> {
  const { policy, hash } = await loadPolicyFile(text, runtime);
  return hash === undefined ? policy : { ...policy, parameters: { ...policy.parameters, file: hash } };
}

function refuseRepeatedCases(cases: readonly AskedCase[]): void {
  refuseRepeated(cases, {
    key: ({ policy, keep, bytes }) =>
      JSON.stringify([policy.name, Object.entries(policy.parameters).sort(), bytes ?? keep]),
    name: ({ asked }) => asked.policy,
    where: "policies",
  });
}

/** What stands for a budget where a policy's threshold says what stays. */
const OWN_SHARE = "threshold";

/**
 * Every policy at every budget; policies that keep everything come once, at 100 %, and first; those with a threshold of
 * their own once, under that word.
 * @throws PalisadeError `policy.*`, `keep.*`, `list.*`.
 */
export function parseCases(policies: string, keeps: string, bytes?: string): AskedCase[] {
  const keepList = bytes === undefined ? keepsOf(keeps) : bytesOf(bytes);
  refuseRepeated(keepList, {
    key: ({ keep, bytes }) => JSON.stringify(bytes ?? keep),
    name: ({ text }) => text,
    where: bytes === undefined ? "keep" : "bytes",
  });
  const cases = nonEmpty(splitList(policies, "policies"), "policies").flatMap((text): AskedCase[] => {
    const policy = resolvePolicy(text);
    const whole = policy.allocate.kind === "all";
    if (!whole && policy.threshold === undefined) {
      return keepList.map(({ text: keep, ...rest }) => ({ policy, ...rest, asked: { policy: text, keep } }));
    }
    const keep = whole ? "100%" : OWN_SHARE;
    return [{ policy, keep: checkKeep({ fraction: 1 }), asked: { policy: text, keep } }];
  });
  refuseRepeatedCases(cases);
  const whole = ({ policy }: AskedCase) => Number(policy.allocate.kind === "all");
  return cases.sort((a, b) => whole(b) - whole(a));
}

/** Budgets, each once. */
interface AskedKeep extends Pick<AskedCase, "keep" | "bytes"> {
  readonly text: string;
}

function keepsOf(keeps: string): AskedKeep[] {
  return nonEmpty(splitList(keeps, "keep"), "keep").map((text) => ({ text, keep: parseKeep(text) }));
}

/** What is kept is known when a sample's tokens are counted ({@link fittedCase}). */
function bytesOf(bytes: string): AskedKeep[] {
  return nonEmpty(splitList(bytes, "bytes"), "bytes")
    .map((text) => ({ text, keep: checkKeep({ fraction: 1 }), bytes: parseBytes(text) }));
}

/**
 * The case for a context of `length` tokens: where bytes were asked for, the entries that fit them.
 * @throws PalisadeError input `bytes.few`.
 */
export function fittedCase<C extends AskedCase>(each: C, length: number, shape: ModelShape, read: CacheType): C {
  const { bytes, policy: { stages = {} } } = each;
  if (!bytes) return each;
  const stored = storedAs(stages, stages.rows ?? read, shape);
  return { ...each, keep: { tokens: entriesWithin(bytes, length, shape, stored) } };
}

/** `1k,2k,512`; k is 1024. @throws PalisadeError `length.syntax`, `list.*`. */
export function parseLengths(text: string): number[] {
  const parts = nonEmpty(splitList(text, "length"), "length");
  const lengths = parts.map((part) => {
    const match = /^([1-9]\d{0,6})(k?)$/i.exec(part);
    if (match) return { part, tokens: Number(match[1]) * (match[2] ? 1024 : 1) };
    throw inputError(
      "length.syntax",
      `Cannot read length "${part}": want tokens such as 1k, 4k or 800`,
      option("length"),
    );
  });
  refuseRepeated(lengths, { key: ({ tokens }) => String(tokens), name: ({ part }) => part, where: "length" });
  return lengths.map(({ tokens }) => tokens);
}

/** A share of the groups. */
export interface GroupPart {
  /** From 1 on. */
  readonly index: number;
  readonly of: number;
}

/** `3/16`. @throws PalisadeError input `part.syntax`. */
export function parsePart(text: string): GroupPart {
  const [, index, of] = /^(\d{1,6})\/(\d{1,6})$/.exec(text.trim()) ?? [];
  if (Number(index) >= 1 && Number(index) <= Number(of)) return { index: Number(index), of: Number(of) };
  throw inputError("part.syntax", `Cannot read part "${text}": want which of how many, such as 3/16`, "part");
}

/** Every `of`-th group, so that each part has samples of all tasks. */
export function partOf(groups: readonly CellGroup[], part: GroupPart | undefined): CellGroup[] {
  return groups.filter((_, i) => !part || i % part.of === part.index - 1);
}

/** All groups, sample by sample, so that a sweep cut short holds about as many samples of every task. */
export function cellGroups(tasks: readonly Task[], lengths: readonly number[], samples: number): CellGroup[] {
  const groups: CellGroup[] = [];
  const sized = lengths.map((length) => ({ length, tasks: tasks.filter((task) => task.sized) }));
  for (const { length, tasks: some } of [{ length: null, tasks: tasks.filter((task) => !task.sized) }, ...sized]) {
    for (let sample = 0; sample < samples; sample++) {
      for (const task of some) if (sample < (task.available ?? Infinity)) groups.push({ task, length, sample });
    }
  }
  return groups;
}

/**
 * How many of each group's cells look as if lines of an earlier run held them: same task, length and sample, policy and
 * keep asked for in the same words. What else a cell depends on is left to its id.
 */
export function cellsBefore(
  lines: readonly Pick<ResultLine, "task" | "source" | "length" | "sample" | "asked">[],
  groups: readonly CellGroup[],
  cases: readonly AskedCase[],
): Map<CellGroup, number> {
  type Place = Pick<CellGroup, "length" | "sample"> & { name: string; source?: string };
  const key = ({ name, source, length, sample }: Place, { policy, keep }: AskedCase["asked"]) =>
    JSON.stringify([name, source, length, sample, policy, keep]);
  const held = new Set(lines.map((line) => key({ ...line, name: line.task, source: line.source?.sha256 }, line.asked)));
  const isHeld = ({ task: { name, source }, length, sample }: CellGroup) => ({ asked }: AskedCase) =>
    held.has(key({ name, source, length, sample }, asked));
  return new Map(groups.map((group) => [group, cases.filter(isHeld(group)).length]));
}
