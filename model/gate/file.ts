/**
 * `NAME.gate.safetensors`: a gate with everything that says for which model it was fitted, on what, and how well.
 *
 * Tensors `weight`, F16 `[layers, kvHeads, width]`, and `bias`, F32 `[layers, kvHeads]`; the metadata key `palisade_gate`
 * holds a {@link GateInfo} as JSON. Where the gate looks at keys, too, `keyed.weight`, `keyed.bias` and `keyed.terms`, F32
 * `[layers, kvHeads, terms]`, are that one; the first two stand for what goes by hidden states alone.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import { kindByMetadata, type OutputKind } from "../../runtime/output.ts";
import type { ModelConfig } from "../config.ts";
import { parseSafetensors, type SafetensorsFile, writeSafetensors } from "../file/safetensors.ts";
import type { GateWeights, KeyedWeights } from "./scorer.ts";
import { termsOf } from "./key_terms.ts";

/** The form of the metadata. */
export const GATE_FORMAT = 1;
const KEY = "palisade_gate";
/** Largest file that is read: ten times a gate for a model of 128 layers, 16 KV heads and width 16384. */
export const MAX_GATE_BYTES = 2 ** 30;

/** What identifies and describes a gate. */
export interface GateInfo {
  readonly format: typeof GATE_FORMAT;
  readonly model: {
    readonly name: string;
    /** SHA-256 of the model file, hexadecimal. */
    readonly sha256: string;
    readonly architecture: string;
    readonly layers: number;
    readonly kvHeads: number;
    readonly width: number;
  };
  readonly calibration: {
    /** Where the text came from: `built in` and the names of the user's files. */
    readonly texts: readonly string[];
    readonly seed: number;
    /** Tokens the gate was fitted on, and how long each text was. */
    readonly tokens: number;
    readonly textTokens: number;
    /** y = ln(importance + floor). */
    readonly floor: number;
    /** Whose importance: missing for KVzip's. */
    readonly towards?: "kvzip-plus";
    /** First tokens of each text that were left out. */
    readonly skipped: number;
    /** Names that nobody else has, of what readings left one after another, this gate the last; of learned gates alone. */
    readonly grown?: readonly string[];
  };
  /** Ridge per layer, as a share of the mean diagonal of XᵀX. */
  readonly ridge: readonly number[];
  /** Correlation of score and ln importance on texts the gate has not seen, `[layers][kvHeads]`. */
  readonly correlation: readonly (readonly number[])[];
  /** Split conformal: for each held-out text the largest ln importance − score of an unprotected entry, ascending. */
  readonly conformal: { readonly textTokens: number; readonly window: number; readonly scores: readonly number[] };
}

export interface Gate extends GateWeights {
  /** Where it came from, for messages. */
  readonly name: string;
  readonly info: GateInfo;
}

/** A file that a gate may take the place of: another gate, of whatever format. */
export const GATE_FILE: OutputKind = kindByMetadata("a gate", KEY);

/** The file's bytes. */
export function writeGate(info: GateInfo, { weights, bias, keyed }: GateWeights): Uint8Array<ArrayBuffer> {
  const { layers, kvHeads, width } = info.model, heads = layers * kvHeads;
  const tensors = (prefix: string, one: Pick<GateWeights, "weights" | "bias">) => [
    { name: `${prefix}bias`, dtype: "F32", shape: [layers, kvHeads], data: one.bias } as const,
    { name: `${prefix}weight`, dtype: "F16", shape: [layers, kvHeads, width], data: one.weights } as const,
  ];
  return writeSafetensors([
    ...tensors("", { weights, bias }),
    ...(keyed
      ? [
        ...tensors("keyed.", keyed),
        {
          name: "keyed.terms",
          dtype: "F32",
          shape: [layers, kvHeads, keyed.terms.length / heads],
          data: keyed.terms,
        } as const,
      ]
      : []),
  ], { [KEY]: JSON.stringify(info) });
}

/**
 * Reads a gate file's bytes; `name` is for messages. PalisadeErrors of kind input: `safetensors.*`, `gate.format` (no
 * gate, or of another version), `gate.metadata`, `gate.shape`, `gate.values` (not finite).
 */
export function parseGate(bytes: Uint8Array, name: string): Gate {
  const file = parseSafetensors(bytes, name);
  const info = parseInfo(file, name);
  const { layers, kvHeads, width } = info.model;
  return {
    name,
    info,
    weights: tensor(file, name, "weight", [layers, kvHeads, width]),
    bias: tensor(file, name, "bias", [layers, kvHeads]),
    ...keyedOf(file, name, info),
  };
}

/** All three tensors, or none. */
function keyedOf(file: SafetensorsFile, name: string, { model }: GateInfo): { readonly keyed?: KeyedWeights } {
  const { layers, kvHeads, width } = model;
  if (![...file.tensors.keys()].some((key) => key.startsWith("keyed."))) return {};
  const terms = file.tensors.get("keyed.terms")?.shape.at(-1) ?? 0;
  return {
    keyed: {
      weights: tensor(file, name, "keyed.weight", [layers, kvHeads, width]),
      bias: tensor(file, name, "keyed.bias", [layers, kvHeads]),
      terms: tensor(file, name, "keyed.terms", [layers, kvHeads, terms]),
    },
  };
}

/**
 * Refuses a gate that was not fitted for this model file.
 * @throws PalisadeError `gate.model`, naming both.
 */
export function checkGate(gate: Gate, config: ModelConfig, sha256: string): void {
  const { model } = gate.info;
  const same = model.sha256 === sha256 && model.architecture === config.architecture &&
    (["layers", "kvHeads", "width"] as const).every((size) => model[size] === config[size]) &&
    (!gate.keyed || gate.keyed.terms.length === model.layers * model.kvHeads * termsOf(config));
  if (same) return;
  const theirs = `${model.name} (SHA-256 ${model.sha256.slice(0, 12)}…)`;
  throw inputError(
    "gate.model",
    `The gate was fitted for ${theirs}, not for ${config.name} (SHA-256 ${sha256.slice(0, 12)}…): ` +
      "fit one with palisade calibrate",
    gate.name,
  );
}

function refuse(code: string, name: string, reason: string): PalisadeError {
  return inputError(`gate.${code}`, `Can't use the gate: ${reason}`, name);
}

function parseInfo(file: SafetensorsFile, name: string): GateInfo {
  const text = file.metadata.get(KEY);
  if (text === undefined) throw refuse("format", name, `there is no ${KEY} in its metadata; it is some other file`);
  let info: unknown;
  try {
    info = JSON.parse(text);
  } catch (error) {
    throw refuse("metadata", name, `its ${KEY} is no JSON: ${(error as Error).message}`);
  }
  const { format } = (info ?? {}) as { format?: unknown };
  if (format !== GATE_FORMAT) throw refuse("format", name, `it has format ${format}; ${GATE_FORMAT} is read`);
  const problem = problemOf(info as GateInfo);
  if (problem) throw refuse("metadata", name, problem);
  return info as GateInfo;
}

/** The first thing that is not as {@link GateInfo} says; the type is what it claims to be. */
function problemOf({ model, calibration, ridge, correlation, conformal }: GateInfo): string | undefined {
  if (!isText(model?.name) || !/^[0-9a-f]{64}$/.test(model.sha256) || !isText(model.architecture)) {
    return "model must have a name, a SHA-256 and an architecture";
  }
  const { layers, kvHeads, width } = model;
  if (!isSize(layers, 4096) || !isSize(kvHeads, 4096) || !isSize(width, 2 ** 20)) {
    return "model must have layers, kvHeads and width, whole numbers of a sensible size";
  }
  const { texts, seed, tokens, textTokens, floor, skipped } = calibration ?? {};
  if (!Array.isArray(texts) || !texts.every(isText) || ![seed, tokens, textTokens, floor, skipped].every(isNumber)) {
    return "calibration must have texts, seed, tokens, textTokens, floor and skipped";
  }
  if (calibration.towards !== undefined && calibration.towards !== "kvzip-plus") {
    return `calibration.towards is ${JSON.stringify(calibration.towards)}; want kvzip-plus, or none for kvzip`;
  }
  const { grown } = calibration;
  if (grown !== undefined && !(Array.isArray(grown) && grown.every(isText))) return "calibration.grown must be texts";
  if (!isNumbers(ridge, layers)) return `ridge must be ${layers} numbers`;
  if (
    !Array.isArray(correlation) || correlation.length !== layers || !correlation.every((row) => isNumbers(row, kvHeads))
  ) {
    return `correlation must be ${layers} rows of ${kvHeads} numbers`;
  }
  const { scores, window } = conformal ?? {};
  if (
    !Array.isArray(scores) || !isNumbers(scores, scores.length) || !isNumber(window) || !isNumber(conformal.textTokens)
  ) {
    return "conformal must have textTokens, window and scores";
  }
  return undefined;
}

function isText(value: unknown): value is string {
  return typeof value === "string";
}

function isNumber(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

function isSize(value: unknown, most: number): boolean {
  return Number.isInteger(value) && (value as number) >= 1 && (value as number) <= most;
}

function isNumbers(value: unknown, length: number): boolean {
  return Array.isArray(value) && value.length === length && value.every(isNumber);
}

function tensor(file: SafetensorsFile, name: string, key: string, shape: readonly number[]): Float32Array {
  const found = file.tensors.get(key);
  if (!found) throw refuse("shape", name, `there is no tensor ${key}`);
  if (found.shape.join() !== shape.join()) {
    throw refuse("shape", name, `tensor ${key} is ${found.shape.join(" × ")}; want ${shape.join(" × ")}`);
  }
  const values = found.read();
  if (!values.every(Number.isFinite)) throw refuse("values", name, `tensor ${key} holds numbers that are not finite`);
  return values;
}
