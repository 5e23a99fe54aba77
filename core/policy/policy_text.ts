/** The other way round: from a policy that runs to a text that names it, parameters and all. */
import { inputError, option } from "../errors.ts";
import type { ParameterValues, Policy, PolicyEntry } from "./policy.ts";
import { policies } from "./registry.ts";
import { STAGE_NAMES } from "./stages.ts";

const REFERENCE = "@reference";

/**
 * The text that `resolvePolicy` makes this policy of, every parameter named.
 * @throws PalisadeError input `policy.unnamed` for a policy that the registry doesn't know.
 */
export function policyText({ name, parameters }: Pick<Policy, "name" | "parameters">): string {
  const stages = STAGE_NAMES.filter((each) => Object.hasOwn(parameters, each));
  const rest = Object.fromEntries(Object.entries(parameters).filter(([each]) => !stages.includes(each)));
  const text = unstagedText(name, rest), said = stages.map((each) => setting(each, parameters[each]));
  if (said.length === 0) return text;
  return `${text.slice(0, -1)}${text.endsWith("()") ? "" : ","}${said.join(",")})`;
}

/** In quotation marks only where the grammar wants them. */
function setting(name: string, value: string | number): string {
  const text = String(value);
  return `${name}=${/^[A-Za-z0-9.+_/\\:~%-]+$/.test(text) ? text : `"${text.replace(/["\\]/g, "\\$&")}"`}`;
}

function unstagedText(name: string, parameters: ParameterValues): string {
  const [, outer, inner] = /^([^(@]+)(?:@reference)?(?:\((.*)\))?$/.exec(name) ?? [];
  const entry = policies.find((each) => each.name === outer);
  if (!entry) {
    const message = `${name} is none of the policies with a name, so nothing could tell later what it was`;
    throw inputError("policy.unnamed", message, option("policy"));
  }
  const reference = name.includes(REFERENCE), own = entry.parameters.map((each) => each.name);
  const settings = own.filter((each) => Object.hasOwn(parameters, each) && !(reference && isOurs(entry, each)))
    .map((each) => setting(each, parameters[each]));
  // A scorer that nobody named has no settings of its own.
  const scorer = inner === undefined ? [] : [scorerText(inner, parameters, own)];
  return `${outer}${reference ? REFERENCE : ""}(${[...scorer, ...settings].join(",")})`;
}

/** A scorer's parameters are those that are not the outer policy's. */
function scorerText(name: string, parameters: ParameterValues, own: readonly string[]): string {
  const theirs = Object.entries(parameters).filter(([each]) => each !== "scorer" && !own.includes(each));
  return unstagedText(name, Object.fromEntries(theirs));
}

function isOurs({ parameters }: PolicyEntry, name: string): boolean {
  return parameters.some((each) => each.name === name && each.oursOnly);
}
