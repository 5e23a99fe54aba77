/** All policies by name, and the way from a text to one that runs. A new policy is one file and two lines. */
import { parsePolicy, policyError, type PolicyText, type Setting } from "./grammar.ts";
import { adviceFor } from "./nearest_name.ts";
import { about as aboutAdakv, adakv } from "../policies/adakv.ts";
import { about as aboutCake, cake } from "../policies/cake.ts";
import { about as aboutCapkv, capkv } from "../policies/capkv.ts";
import { about as aboutChunkkv, chunkkv } from "../policies/chunkkv.ts";
import { about as aboutCritical, critical } from "../policies/critical.ts";
import { about as aboutCriticalAdakv, criticalAdakv } from "../policies/critical_adakv.ts";
import { aboutDefensive, aboutLayerDefensive, defensive, layerDefensive } from "../policies/defensive.ts";
import { about as aboutDefensiveRisk, defensiveRisk } from "../policies/defensive_risk.ts";
import { about as aboutDropkv, dropkv } from "../policies/dropkv.ts";
import { about as aboutExpectedAttention, expectedAttention } from "../policies/expected_attention.ts";
import { about as aboutFasa, fasa } from "../policies/fasa.ts";
import { about as aboutFull, full } from "../policies/full.ts";
import { about as aboutGate, gate } from "../policies/gate.ts";
import { about as aboutH2o, h2o } from "../policies/h2o.ts";
import { about as aboutHeadkv, headkv } from "../policies/headkv.ts";
import { about as aboutJudgeQ, judgeQ } from "../policies/judge_q.ts";
import { about as aboutKeydiff, keydiff } from "../policies/keydiff.ts";
import { about as aboutKnorm, knorm } from "../policies/knorm.ts";
import { about as aboutKvzip, kvzip } from "../policies/kvzip.ts";
import { about as aboutKvzipPlus, kvzipPlus } from "../policies/kvzip_plus.ts";
import { about as aboutKvzap, kvzap } from "../policies/kvzap.ts";
import { about as aboutLagkv, lagkv } from "../policies/lagkv.ts";
import { about as aboutMoved, moved } from "../policies/moved.ts";
import { about as aboutPyramidkv, pyramidkv } from "../policies/pyramidkv.ts";
import { about as aboutQfilter, qfilter } from "../policies/qfilter.ts";
import { about as aboutRandom, random } from "../policies/random.ts";
import { about as aboutRkv, rkv } from "../policies/rkv.ts";
import { about as aboutSelfGate, selfGate } from "../policies/self_gate.ts";
import { about as aboutSnapkv, snapkv } from "../policies/snapkv.ts";
import { about as aboutStreamingLlm, streamingLlm } from "../policies/streaming_llm.ts";
import { about as aboutTova, tova } from "../policies/tova.ts";
import { about as aboutTriattention, triattention } from "../policies/triattention.ts";
import { takeStages, withStages } from "./stages.ts";
import type {
  Parameter,
  ParameterValues,
  Policy,
  PolicyAbout,
  PolicyEntry,
  PolicyFiles,
  PolicyMode,
} from "./policy.ts";

const DEFINED = [
  full,
  random,
  streamingLlm,
  knorm,
  keydiff,
  lagkv,
  tova,
  h2o,
  expectedAttention,
  qfilter,
  triattention,
  capkv,
  snapkv,
  rkv,
  dropkv,
  pyramidkv,
  headkv,
  cake,
  adakv,
  critical,
  criticalAdakv,
  chunkkv,
  defensive,
  layerDefensive,
  defensiveRisk,
  kvzip,
  kvzipPlus,
  moved,
  gate,
  kvzap,
  selfGate,
  judgeQ,
  fasa,
] as const;

/** Every policy, in the order lists show them. */
export const policies: readonly PolicyEntry[] = DEFINED;

/** The same in words, which nothing that runs needs: who only evicts doesn't carry them. One for each, or it won't compile. */
export const ABOUT: Readonly<Record<(typeof DEFINED)[number]["name"], PolicyAbout>> = {
  full: aboutFull,
  random: aboutRandom,
  "streaming-llm": aboutStreamingLlm,
  knorm: aboutKnorm,
  keydiff: aboutKeydiff,
  lagkv: aboutLagkv,
  tova: aboutTova,
  h2o: aboutH2o,
  "expected-attention": aboutExpectedAttention,
  qfilter: aboutQfilter,
  triattention: aboutTriattention,
  capkv: aboutCapkv,
  snapkv: aboutSnapkv,
  rkv: aboutRkv,
  dropkv: aboutDropkv,
  pyramidkv: aboutPyramidkv,
  headkv: aboutHeadkv,
  cake: aboutCake,
  adakv: aboutAdakv,
  critical: aboutCritical,
  "critical-adakv": aboutCriticalAdakv,
  chunkkv: aboutChunkkv,
  defensive: aboutDefensive,
  "layer-defensive": aboutLayerDefensive,
  "defensive-risk": aboutDefensiveRisk,
  kvzip: aboutKvzip,
  "kvzip-plus": aboutKvzipPlus,
  moved: aboutMoved,
  gate: aboutGate,
  kvzap: aboutKvzap,
  "self-gate": aboutSelfGate,
  "judge-q": aboutJudgeQ,
  fasa: aboutFasa,
};

/** What a policy is made from. */
interface Given {
  readonly text: string;
  readonly files: PolicyFiles;
}

/**
 * The policy that a text names, with all parameters resolved; the grammar stands in `grammar.ts`. A scorer inside
 * another policy takes its mode: `adakv@reference(snapkv)` runs the published code of both. The outermost brackets may
 * name stages too (`stages.ts`).
 * @throws PalisadeError `policy.syntax`, `policy.unknown`, `policy.reference`, `policy.scorer`, `policy.parameter` or
 * `policy.value`, each pointing at the character. What a policy's file holds is looked for among `files` when it scores.
 */
export function resolvePolicy(text: string, files: PolicyFiles = {}): Policy {
  const { policy, stages } = takeStages(parsePolicy(text), text);
  return withStages(build(policy, { text, files }, undefined), stages);
}

function build(parsed: PolicyText, given: Given, outer: PolicyMode | undefined): Policy {
  const { text, files } = given;
  const entry = findEntry(parsed, text);
  const mode = outer ?? parsed.mode ?? "ours";
  if (outer === "ours" && parsed.mode === "reference") {
    const wanted = "the outer one decides the mode, put @reference there";
    throw policyError("policy.reference", `Cannot mix ${parsed.name}@reference into ours: ${wanted}`, text, parsed.at);
  }
  if (parsed.mode === "reference" && !entry.reference) {
    throw policyError("policy.reference", `${entry.name} has no @reference form`, text, parsed.at);
  }
  const values = readSettings(entry, parsed.settings, mode, text);
  if (entry.over === undefined) {
    if (parsed.scorer) throw policyError("policy.scorer", `${entry.name} takes no policy`, text, parsed.scorer.at);
    return entry.create(values, mode, undefined, files);
  }
  const scorer = build(parsed.scorer ?? { name: entry.over, at: parsed.at, settings: [] }, given, mode);
  checkScorer(entry, scorer, parsed.scorer ?? parsed, text);
  const policy = entry.create(values, mode, scorer, files);
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
  const advice = adviceFor(name, names, `there are ${names.join(", ")}`);
  throw policyError("policy.unknown", `Unknown policy ${name}: ${advice}`, text, at);
}

function checkScorer(entry: PolicyEntry, scorer: Policy, { at }: { at: number }, text: string): void {
  const { kind } = scorer.allocate;
  const twice = Object.keys(scorer.parameters).find((name) => entry.parameters.some((own) => own.name === name));
  if (kind === "all" || kind === "cascade" || scorer.threshold !== undefined || twice) {
    const reason = twice
      ? `both have a parameter ${twice}`
      : kind === "cascade"
      ? "its layers share a budget that is split last"
      : scorer.threshold !== undefined
      ? "it has a threshold, no budget"
      : "it scores nothing";
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
  for (const { name, later, default: usual } of known) if (!later) values[name] = usual;
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
    const value = readValue(parameter, setting, text);
    if (!parameter.later || value !== parameter.default) values[setting.name] = value;
  }
  return values;
}

function readValue(parameter: Parameter, { value, at }: Setting, text: string): number | string {
  const { name } = parameter;
  if (parameter.type === "text") {
    const { choices } = parameter;
    if (!choices || choices.includes(value)) return value;
    throw policyError("policy.value", `${name}=${value}: want one of ${choices.join(", ")}`, text, at);
  }
  const { type, min = -Infinity, max = Infinity } = parameter;
  const number = /^[+-]?(\d+\.?\d*|\.\d+)$/.test(value) ? Number(value) : NaN;
  const odd = name !== "kernel" || number % 2 === 1;
  if (number >= min && number <= max && odd && (type === "number" || Number.isInteger(number))) return number;
  const kind = name === "kernel" ? "an odd integer" : type === "integer" ? "an integer" : "a number";
  throw policyError("policy.value", `${name}=${value}: want ${kind} from ${min} to ${max}`, text, at);
}
