/** All policies by name, and the way from `--policy TEXT` to one that runs. A new policy is one file and one line. */
import { parsePolicy, policyError, type PolicyText, type Setting } from "./grammar.ts";
import { nearestName } from "./nearest.ts";
import { adakv } from "./policies/adakv.ts";
import { criticalAdakv } from "./policies/critical_adakv.ts";
import { defensive, layerDefensive } from "./policies/defensive.ts";
import { defensiveRisk } from "./policies/defensive_risk.ts";
import { full } from "./policies/full.ts";
import { gate } from "./policies/gate.ts";
import { kvzip } from "./policies/kvzip.ts";
import { random } from "./policies/random.ts";
import { snapkv } from "./policies/snapkv.ts";
import { streamingLlm } from "./policies/streaming_llm.ts";
import type { Parameter, ParameterValues, Policy, PolicyEntry, PolicyMode } from "./policy.ts";

/** Every policy, in the order lists show them. */
export const policies: readonly PolicyEntry[] = [
  full,
  random,
  streamingLlm,
  snapkv,
  adakv,
  criticalAdakv,
  defensive,
  layerDefensive,
  defensiveRisk,
  kvzip,
  gate,
];

/**
 * The policy that a text names, with all parameters resolved; the grammar stands in `grammar.ts`. A scorer inside
 * another policy takes its mode: `adakv@reference(snapkv)` runs the published code of both.
 * @throws PalisadeError `policy.syntax`, `policy.unknown`, `policy.reference`, `policy.scorer`, `policy.parameter` or
 * `policy.value`; each points at the character.
 */
export function resolvePolicy(text: string): Policy {
  return build(parsePolicy(text), text, undefined);
}

function build(parsed: PolicyText, text: string, outer: PolicyMode | undefined): Policy {
  const entry = findEntry(parsed, text);
  const mode = outer ?? parsed.mode ?? "ours";
  if (outer === "ours" && parsed.mode === "reference") {
    const wanted = "the outer one decides the mode, put @reference there";
    throw policyError("policy.reference", `Cannot mix ${parsed.name}@reference into ours: ${wanted}`, text, parsed.at);
  }
  if (parsed.mode === "reference" && entry.reference === undefined) {
    throw policyError("policy.reference", `${entry.name} has no @reference form`, text, parsed.at);
  }
  const values = readSettings(entry, parsed.settings, mode, text);
  if (entry.over === undefined) {
    if (parsed.scorer) throw policyError("policy.scorer", `${entry.name} takes no policy`, text, parsed.scorer.at);
    return entry.create(values, mode);
  }
  const scorer = build(parsed.scorer ?? { name: entry.over, at: parsed.at, settings: [] }, text, mode);
  checkScorer(entry, scorer, parsed.scorer ?? parsed, text);
  const policy = entry.create(values, mode, scorer);
  return {
    ...policy,
    name: parsed.scorer ? `${policy.name}(${scorer.name.replace("@reference", "")})` : policy.name,
    parameters: { scorer: scorer.name, ...scorer.parameters, ...policy.parameters },
  };
}

function findEntry({ name, at }: PolicyText, text: string): PolicyEntry {
  const entry = policies.find((each) => each.name === name);
  if (entry) return entry;
  const names = policies.map((each) => each.name);
  const near = nearestName(name, names);
  const advice = near ? `did you mean ${near}?` : `there are ${names.join(", ")}`;
  throw policyError("policy.unknown", `Unknown policy ${name}: ${advice}`, text, at);
}

function checkScorer(entry: PolicyEntry, scorer: Policy, { at }: { at: number }, text: string): void {
  const twice = Object.keys(scorer.parameters).find((name) => entry.parameters.some((own) => own.name === name));
  if (scorer.keepsAll || twice) {
    const reason = twice ? `both have a parameter ${twice}` : "it scores nothing";
    throw policyError("policy.scorer", `${entry.name} can't work on ${scorer.name}: ${reason}`, text, at);
  }
}

function readSettings(
  entry: PolicyEntry,
  settings: readonly Setting[],
  mode: PolicyMode,
  text: string,
): ParameterValues {
  const known = entry.parameters.filter(({ oursOnly }) => mode === "ours" || !oursOnly);
  const values: Record<string, number | string> = {};
  for (const parameter of known) values[parameter.name] = parameter.default;
  const seen = new Set<string>();
  for (const setting of settings) {
    const parameter = known.find(({ name }) => name === setting.name);
    if (!parameter || seen.has(setting.name)) {
      const form = mode === "ours" ? entry.name : `${entry.name}@reference`;
      const reason = parameter ? "it is set twice" : `there is ${known.map(({ name }) => name).join(", ") || "none"}`;
      const message = `Cannot set parameter ${setting.name} of ${form}: ${reason}`;
      throw policyError("policy.parameter", message, text, setting.at);
    }
    seen.add(setting.name);
    values[setting.name] = readValue(parameter, setting, text);
  }
  return values;
}

function readValue(parameter: Parameter, { value, at }: Setting, text: string): number | string {
  const { name, type, min = -Infinity, max = Infinity, choices } = parameter;
  if (type === "text") {
    if (!choices || choices.includes(value)) return value;
    throw policyError("policy.value", `${name}=${value}: want one of ${choices.join(", ")}`, text, at);
  }
  const number = /^[+-]?(\d+\.?\d*|\.\d+)$/.test(value) ? Number(value) : NaN;
  const odd = name !== "kernel" || number % 2 === 1;
  if (number >= min && number <= max && odd && (type === "number" || Number.isInteger(number))) return number;
  const kind = name === "kernel" ? "an odd integer" : type === "integer" ? "an integer" : "a number";
  throw policyError("policy.value", `${name}=${value}: want ${kind} from ${min} to ${max}`, text, at);
}
