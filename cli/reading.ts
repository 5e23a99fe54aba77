/** How a text is to be read: what `ask` and `read` can both be told, and what the library is told then. */
import { checkCacheType, ROW_TYPES } from "../core/cache/entry_type.ts";
import { inputError, option, PalisadeError } from "../core/errors.ts";
import type { Policy } from "../core/policy/policy.ts";
import { MERGES } from "../core/merge/merge.ts";
import { REFITS } from "../core/refit/refit.ts";
import { resolveStepRule } from "../core/rules/registry.ts";
import { type Keep, parseKeep } from "../core/select/budget.ts";
import { POSITIONS } from "../model/decode/answer.ts";
import { DEFAULTS } from "../model/defaults.ts";
import type { Context } from "../model/context.ts";
import { checkEffort, EFFORTS } from "../model/read/effort.ts";
import { loadPolicy } from "../model/policy_files/policy_files.ts";
import type { ContextOptions, MaxCache } from "../model/session.ts";
import { DEFAULT_KEEP, DEFAULT_POLICY, DEFAULT_REFIT } from "./engine.ts";
import { parseBytes } from "../core/select/byte_budget.ts";
import type { Io } from "./io.ts";
import { type OptionTable, share, type Values, whole } from "./options.ts";
import type { Progress } from "./print/progress.ts";
import { frameWords, policyWords, ruleWords } from "./words.ts";

/** What stays, and by what. */
export const BUDGET = {
  keep: {
    value: "amount",
    help: "what stays: 20%, or tokens per head",
    shown: DEFAULT_KEEP,
    more: "what stays: `20%` and `0.2` are fractions, a bare whole number is tokens per head",
  },
  bytes: {
    value: "size",
    help: "instead of --keep: 2MB, or 1/16 of the float16 cache",
    conflicts: ["keep", "risk", "riskWorst"],
    rare: true,
  },
  effort: {
    value: "how",
    help: "best: reads longer, stores what answers most",
    choices: EFFORTS,
    shown: DEFAULTS.effort,
    rare: true,
    more: "`best`: the text is read twice, and policy, types and refit are chosen for `--bytes`",
  },
  policy: {
    value: "name",
    help: "see: palisade policies",
    shown: DEFAULT_POLICY,
    words: policyWords,
    here: "policies",
    more: "what is kept of the context: `palisade policies`; the default: docs/gates.md",
  },
  risk: {
    value: "share",
    help: "instead of --keep: largest loss of attention, mean",
    read: share,
    conflicts: ["keep", "riskWorst", "maxCache"],
    rare: true,
    more: "instead of `--keep`: the smallest budget that holds this risk",
  },
  riskWorst: {
    value: "share",
    help: "instead: evict what is less important",
    read: share,
    conflicts: ["keep", "maxCache"],
    rare: true,
    more: "instead of `--keep`: evict only what is less important than this",
  },
  maxCacheBytes: {
    value: "n",
    help: "may wait for --risk",
    read: whole(1),
    shown: `${DEFAULTS.maxCacheBytes / 2 ** 30} GiB`,
    rare: true,
    more: "keys and values that may wait while `--risk` looks for its budget",
  },
  explain: {
    help: "print what eviction can have cost at worst",
    rare: true,
    more: "print what eviction can have cost at worst, layer by layer",
  },
  maxCache: {
    value: "n",
    help: "cap while answering, tokens per head",
    read: whole(1),
    more: "caps the cache while answering",
  },
  stepPolicy: {
    value: "name",
    help: "its rule, see policies --steps",
    shown: DEFAULTS.stepRule,
    rare: true,
    words: ruleWords,
    more: "what the cap evicts by: `palisade policies --steps`",
  },
  positions: {
    value: "mode",
    help: "kept keys stay or close up",
    choices: POSITIONS,
    shown: DEFAULTS.positions,
    rare: true,
    more: "`true`: a kept key stays where it was; `rerotate`: kept keys close up",
  },
  refit: {
    value: "what",
    help: "fit what stays to what all of it gave",
    choices: REFITS,
    shown: DEFAULT_REFIT,
    rare: true,
    more:
      "fits what stays to what all of it gave: `values`, `both` values and biases, or `pursuit`: both, of what fits best",
  },
  merge: {
    value: "how",
    help: "put evicted entries into the nearest kept",
    choices: MERGES,
    shown: DEFAULTS.merge,
    rare: true,
    more: "evicted entries go into the nearest kept: `mean`, or `sum` with their weight",
  },
  keyChannels: {
    value: "share",
    help: "leave out the others of each key: 60%",
    shown: DEFAULTS.keyChannels,
    rare: true,
    more: "leaves out the others of each head's key channels, those that matter least",
  },
  cacheType: {
    value: "type",
    help: `keys and values: ${ROW_TYPES.join(", ")}, or apart: k=int4,v=int8`,
    read: checkCacheType,
    shown: DEFAULTS.cacheType,
    rare: true,
    words: () => ROW_TYPES,
    more: "how keys and values are stored: `f32`, `f16`, `int8`, `int4`, or apart, `k=int4,v=int8`",
  },
} satisfies OptionTable;

/** What stands around the text, and what it is read with. */
export const WORDS = {
  system: {
    value: "text",
    help: "system prompt instead of the template's own",
    rare: true,
  },
  think: { help: "let the model think first", rare: true, more: "let the model think before it answers" },
  frame: {
    value: "name|text",
    help: "words around text and question",
    rare: true,
    words: frameWords,
    more: "the words around text and question",
  },
  gate: {
    value: "file",
    help: "for policy gate: see palisade calibrate",
    rare: true,
    more: "for policy or step policy `gate`: a file instead of the one found for the model",
  },
  noLearn: { help: "fit no first gate, and leave nothing of a self-gate", rare: true },
  beyondTrained: {
    help: "allow more context than the model was trained on",
    rare: true,
    more: "read more context than the model was trained on, at positions it has never seen",
  },
} satisfies OptionTable;

/** What both tables give. */
export type ReadingOptions = Values<typeof BUDGET & typeof WORDS>;

/** Options read as far as that is possible without a model. */
export interface ParsedReading {
  readonly policy?: Policy;
  readonly keep?: Keep;
  readonly maxCache?: MaxCache;
}

/**
 * Reads the options, files of the policy included.
 * @throws PalisadeErrors of policies, budgets and effort; usage where one would do nothing.
 */
export async function parseReading(options: ReadingOptions, io: Io): Promise<ParsedReading> {
  const policy = options.policy === undefined ? undefined : await loadPolicy(options.policy, io.runtime);
  const keep = options.keep === undefined ? undefined : parseKeep(options.keep);
  if (options.bytes !== undefined) parseBytes(options.bytes);
  checkEffort(options);
  const maxCache = maxCacheOf(options);
  refuseIdle(options, policy, maxCache);
  return { policy, keep, maxCache };
}

/** What `openContext` is told of them. */
export function contextOptions(
  options: ReadingOptions,
  parsed: ParsedReading,
  io: Io,
  progress: Progress,
): ContextOptions {
  const { risk, riskWorst, maxCacheBytes, explain, positions, refit, merge, keyChannels, cacheType } = options;
  const { beyondTrained, noLearn, bytes, effort } = options;
  return {
    ...parsed,
    effort,
    ...(bytes !== undefined && { bytes }),
    ...{ risk, riskWorst, maxCacheBytes, explain, positions, refit, merge, keyChannels, cacheType, beyondTrained },
    learn: !noLearn,
    signal: io.signal,
    onFirstGate: (done, total) => progress.update("Fitting a gate, once (--no-learn: not)", done, total),
    onLayer: (done, layers) => progress.update("Reading, layer", done, layers),
  };
}

/** The text of a file, or of standard input. @throws PalisadeError input `context.empty`, and as `readText`. */
export async function readContextText(path: string, io: Io): Promise<string> {
  const text = await io.runtime.readText(path, { signal: io.signal });
  if (text.trim() !== "") return text;
  throw inputError("context.empty", `There is no text in ${path === "-" ? "standard input" : path}`, option("context"));
}

const ESCAPED = { n: "\n", t: "\t", "\\": "\\" };

/** Words around text and question as they were typed, with their line breaks. */
export function typedFrame(frame: string | undefined): string | undefined {
  return frame?.replace(/\\([nt\\])/g, (_, letter: "n" | "t" | "\\") => ESCAPED[letter]);
}

/** What said how much stays. */
export function keepAsked(
  { keep, bytes, risk, riskWorst }: Pick<ReadingOptions, "keep" | "bytes" | "risk" | "riskWorst">,
  { effort }: Pick<Context, "effort"> = {},
): string {
  if (effort && bytes === undefined) return `${effort.bytes} of the bytes`;
  if (bytes !== undefined) return `${bytes} bytes`.replace(/b bytes$/i, "B");
  if (risk !== undefined) return `risk ${risk}`;
  return riskWorst === undefined ? keep ?? DEFAULTS.keep : `risk-worst ${riskWorst}`;
}

/** Why the default was a slow one, and what makes it the fast one; undefined where it was not. */
export function noGate({ needs }: Policy, model: string): string | undefined {
  const how = needs.reconstruction
    ? "kvzip read the text a second time"
    : needs.selfGate && "the model repeated a part of the text";
  return how && `No gate is fitted for this model, so ${how} to find what must stay.\n` +
      `To keep more of the answers, in one reading: palisade calibrate --model ${model}`;
}

function maxCacheOf({ maxCache, stepPolicy }: ReadingOptions): MaxCache | undefined {
  if (maxCache !== undefined) return { tokens: maxCache, rule: stepPolicy && resolveStepRule(stepPolicy) };
  if (stepPolicy !== undefined) throw idle("step-policy", "There is nothing to evict by it without --max-cache");
  return undefined;
}

/** Refuses options that would be read and then do nothing. */
function refuseIdle({ risk, maxCacheBytes, gate }: ReadingOptions, policy?: Policy, maxCache?: MaxCache): void {
  if (maxCacheBytes !== undefined && risk === undefined) throw idle("max-cache-bytes", "Nothing waits without --risk");
  const rule = maxCache?.rule, needs = policy?.needs;
  const asks = !needs || needs.gate || needs.selfGate || (typeof rule === "object" && rule.predicted);
  if (gate !== undefined && !asks) throw idle("gate", "Nothing asks a gate: add --policy gate or --step-policy gate");
}

/** The refusal of an option that would do nothing. */
export function idle(option: string, message: string): PalisadeError {
  return new PalisadeError("usage", `${option}.alone`, message, { where: `--${option}` });
}
