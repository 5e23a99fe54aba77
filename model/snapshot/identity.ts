/**
 * What a snapshot is of, to the bit. A snapshot of anything else is refused: what is merely alike may have been made
 * alike by somebody (CacheAttack), so there is no distance and no embedding here, only equality of SHA-256 over tagged
 * fields, and of the tokens themselves where they are at hand.
 */
import type { CacheType } from "../../core/cache/entry_type.ts";
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { Policy } from "../../core/policy/policy.ts";
import type { Keep } from "../../core/select/budget.ts";
import type { Positions } from "../decode/answer.ts";
import type { GgufValue } from "../file/gguf/types.ts";
import type { Model, ModelHead } from "../model.ts";
import { frameText } from "../text/frames.ts";
import type { ChatFrame } from "../text/prompt.ts";
import { type Tagged, taggedHash } from "./hash.ts";

/** Raised whenever the same input gives other keys or values than before, beyond rounding, or other kept entries. */
export const ENGINE_VERSION = "1";

/** What must be equal, from what says most to a person to what says least. */
export const IDENTITY_FIELDS = [
  ...["engine", "architecture", "shape", "weights", "rope", "tokenizer", "template", "frame", "model", "salt"],
  ...["policy", "parameters", "files", "budget", "cacheType", "positions", "way"],
] as const satisfies readonly string[];

type ModelField =
  | "engine"
  | "architecture"
  | "shape"
  | "weights"
  | "rope"
  | "tokenizer"
  | "template"
  | "frame"
  | "model"
  | "salt";
type ReadingField = "policy" | "parameters" | "files" | "budget" | "cacheType" | "positions" | "way";
export type IdentityField = ModelField | ReadingField;
export type ModelIdentity = Readonly<Record<ModelField, string>>;
export type ReadingIdentity = Readonly<Record<ReadingField, string>>;
export type Identity = ModelIdentity & ReadingIdentity;

/** What of a reading decides what it keeps, besides the model and the tokens. */
export interface ReadingFacts {
  readonly policy: Policy;
  /** SHA-256 of what counts in the files that scores come from, by kind. */
  readonly files: Readonly<Record<string, string>>;
  /** What was asked to stay, in the words of {@link budgetWords}. */
  readonly budget: string;
  readonly cacheType: CacheType;
  readonly positions: Positions;
  /** How it was read (`model/read/reading.ts`). */
  readonly way: string;
}

/** The fields that take time: a vocabulary is long, and so is a file. */
export type SlowFields = Partial<Pick<ModelIdentity, "tokenizer" | "model">>;

/** What says which model it is, with the words around the text, for one tenant; `known` is taken as it is. */
export async function modelIdentity(
  { config, file, identity, frame }: ModelHead,
  salt: string,
  signal?: AbortSignal,
  known: SlowFields = {},
): Promise<ModelIdentity> {
  const { layers, heads, kvHeads, headDim, vocabulary, architecture } = config;
  return {
    engine: ENGINE_VERSION,
    architecture,
    shape: `${layers} layers, ${heads} heads over ${kvHeads}, width ${headDim}, ${vocabulary} tokens`,
    weights: typesOf(file.tensors.values()),
    rope: taggedHash([["rope", JSON.stringify(config.ropes, plainArrays)], ["trained", String(config.contextLength)]]),
    tokenizer: known.tokenizer ?? tokenizerHash(file),
    template: templateHash(file.metadata, frame),
    frame: JSON.stringify([frame.kind, frameText(frame.words)]),
    model: known.model ?? await identity({ signal }),
    salt: taggedHash([["palisade tenant", salt]]),
  };
}

const TEMPLATE = "tokenizer.chat_template";

/** Vocabularies are long, and stay as they are. */
const tokenizers = new WeakMap<object, string>();

function tokenizerHash(file: Pick<Model["file"], "metadata">): string {
  const known = tokenizers.get(file);
  if (known !== undefined) return known;
  const hash = taggedHash(metadataOf(file.metadata, (key) => key.startsWith("tokenizer.") && key !== TEMPLATE));
  tokenizers.set(file, hash);
  return hash;
}

/** Tensor types and how many tensors of each, `F32 61, Q4_1 211`. */
function typesOf(tensors: Iterable<{ readonly type: { readonly name: string } }>): string {
  const counts = new Map<string, number>();
  for (const { type: { name } } of tensors) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a < b ? -1 : 1).map(([name, count]) => `${name} ${count}`).join(", ");
}

/** The template's source and what it was told; the day it was told is in the tokens. */
function templateHash(metadata: ReadonlyMap<string, GgufValue>, { kind, prefix, suffix, thinking }: ChatFrame): string {
  const system = [...prefix, ...suffix].filter(({ special }) => !special).map(({ text }) => text);
  return taggedHash([
    ...metadataOf(metadata, (key) => key === TEMPLATE),
    ["kind", kind],
    ["system", JSON.stringify(system)],
    ["thinking", JSON.stringify(thinking ?? null)],
  ]);
}

function metadataOf(metadata: ReadonlyMap<string, GgufValue>, wanted: (key: string) => boolean): Tagged[] {
  const keys = [...metadata.keys()].filter(wanted).sort();
  return keys.map((key) => [key, JSON.stringify(metadata.get(key), plainArrays)]);
}

/** Typed arrays as plain ones, and whole numbers beyond doubles as texts. */
function plainArrays(_: string, value: unknown): unknown {
  if (typeof value === "bigint") return `${value}`;
  return ArrayBuffer.isView(value) ? Array.from(value as unknown as ArrayLike<number | bigint>) : value;
}

/** What was asked to stay, in canonical words; `cap`: entries per head, where a cap left less than was asked for. */
export function budgetWords(
  { keep, bytes, risk, riskWorst }: {
    readonly keep: Keep;
    readonly bytes?: string;
    readonly risk?: number;
    readonly riskWorst?: number;
  },
  cap?: number,
): string {
  const asked = risk !== undefined
    ? `risk ${risk}`
    : riskWorst !== undefined
    ? `risk-worst ${riskWorst}`
    : bytes !== undefined
    ? `bytes ${bytes.replaceAll(/\s/g, "").toLowerCase()}`
    : Object.entries(keep).map(([kind, amount]) => `${kind} ${amount}`).join();
  return cap === undefined ? asked : `${asked}, under a cap of ${cap}`;
}

export function readingIdentity({ policy, files, budget, cacheType, positions, way }: ReadingFacts): ReadingIdentity {
  return { ...policyIdentity(policy), files: sortedPairs(files), budget, cacheType, positions, way };
}

/** Which policy, with all its parameters. */
export function policyIdentity({ name, parameters }: Policy): Pick<ReadingIdentity, "policy" | "parameters"> {
  return { policy: name, parameters: sortedPairs(parameters) };
}

/** Which of the {@link ReadingFacts} `files` is no file of the user's: what `self-gate` had learned before. */
export const KNOWN = "known";

/** The kinds of files of an identity, and their hashes; none where they are of another form. */
function filesOf(files: string): Map<string, unknown> {
  try {
    return new Map(JSON.parse(files));
  } catch {
    return new Map();
  }
}

/** The files `there`, but what had been learned before as in `here`. */
export function learnedAs(there: string, here: string): string {
  const files = filesOf(there), known = filesOf(here).get(KNOWN);
  if (!files.has(KNOWN) || known === undefined) return there;
  return sortedPairs(Object.fromEntries(files.set(KNOWN, known)));
}

/** The files of a context that was read with `before`, and gone on with `after`. */
export function filesBehind(before: ReadingFacts["files"], after: ReadingFacts["files"]): ReadingFacts["files"] {
  const [was, is] = [before[KNOWN], after[KNOWN]];
  return was === is ? after : { ...after, [KNOWN]: taggedHash([["known", `${was}`], ["then", `${is}`]]) };
}

function sortedPairs(values: object): string {
  return JSON.stringify(Object.entries(values).sort(([a], [b]) => a < b ? -1 : 1));
}

const GONE_ON = ", gone on at ";

/** The way of a context that was gone on with behind `tokens` tokens. */
export function wayBehind(way: string, tokens: number): string {
  return `${way}${way.includes(GONE_ON) ? " and " : GONE_ON}${tokens}`;
}

/** The same way, wherever it was gone on. */
export function firstWay(way: string): string {
  return way.split(GONE_ON)[0];
}

/** A field in which two identities differ. */
export interface Difference {
  readonly field: IdentityField;
  /** The snapshot's, and what is asked for. */
  readonly there: string;
  readonly here: string;
}

/** The first field of `asked` in which a snapshot differs. */
export function firstDifference(snapshot: Identity, asked: Partial<Identity>): Difference | undefined {
  for (const field of IDENTITY_FIELDS) {
    const here = asked[field], there = snapshot[field];
    if (here !== undefined && here !== there) return { field, there, here };
  }
  return undefined;
}

const NAMES: Readonly<Record<IdentityField, string>> = {
  engine: "version of the engine",
  architecture: "architecture",
  shape: "shape of the model",
  weights: "types of the weights",
  rope: "rotation of positions",
  tokenizer: "tokenizer",
  template: "chat template, system text or thinking",
  frame: "words around text and question",
  model: "bytes of the model file",
  salt: "salt",
  policy: "policy",
  parameters: "parameters of the policy",
  files: "files of the policy",
  budget: "budget",
  cacheType: "type of the cache",
  positions: "positions",
  way: "way of reading",
};

/** One sentence about a difference; a hash says only that it is one. */
export function differenceText({ field, there, here }: Difference): string {
  const shown = (value: string) => value.length > 120 ? `${value.slice(0, 120)}…` : value;
  const hashed = /^[0-9a-f]{64}$/.test(there);
  if (field === "salt") return "it was made with another salt";
  if (field === "files") return filesText(filesOf(there), filesOf(here));
  const values = hashed
    ? `SHA-256 ${there.slice(0, 12)}…, here ${here.slice(0, 12)}…`
    : `${shown(there)}, here ${shown(here)}`;
  return `the ${NAMES[field]} differ${PLURAL.has(field) ? "" : "s"}: ${values}`;
}

function filesText(there: ReadonlyMap<string, unknown>, here: ReadonlyMap<string, unknown>): string {
  const kinds = [...new Set([...there.keys(), ...here.keys()])].filter((kind) => there.get(kind) !== here.get(kind));
  if (kinds.join() === KNOWN) return "what self-gate had learned of other texts differs";
  return `the files of the policy differ: ${kinds.join(", ").replace(KNOWN, "what self-gate had learned")}`;
}

const PLURAL = new Set<IdentityField>(["weights", "frame", "model", "parameters", "files", "positions"]);

/** The refusal of a snapshot that is of something else; `where` is the field. */
export function refuseDifference(name: string, difference: Difference): PalisadeError {
  const message = `${name} can't be used here: ${differenceText(difference)}`;
  return inputError("snapshot.identity", message, difference.field);
}

/** The key that a snapshot with this identity and these tokens goes by in a cache: its SHA-256. */
export function snapshotKey(identity: Identity, tokens: string): string {
  return taggedHash([...IDENTITY_FIELDS.map((field): Tagged => [field, identity[field]]), ["tokens", tokens]]);
}
